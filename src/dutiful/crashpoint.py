"""
Named places where a test can make the process die (see dutiful.testing.crash_at).

`DUTIFUL_CRASHPOINT=name` ends the process, as `kill -9` would, when it first comes to
that place; `name:3` at the third time. Without the variable a crash point costs nothing
but the call.
"""

import os

STATUS = 137  # what a shell says of a process that `kill -9` has ended

_name, _, _times = os.environ.get("DUTIFUL_CRASHPOINT", "").partition(":")
ARMED = bool(_name)
_left = [int(_times or 1)]


def crashpoint(name: str) -> None:
    """Die here, without any clean-up, if this place was named."""
    if name == _name:
        _left[0] -= 1
        if _left[0] == 0:
            os._exit(STATUS)
