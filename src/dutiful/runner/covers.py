"""What of an attempt's outcome is masked or encrypted before it is stored."""

import re

import msgspec

from dutiful.job import Ack, ErrorInfo
from dutiful.sealing import Cover
from dutiful.secret import MASK

_PLACE = re.compile(r'  File ".*", line \d+, in .*')


def covered(ack: Ack, cover: Cover) -> Ack:
    """Return an outcome as it is to be stored."""
    result, error = ack.result, ack.error
    if result is not None:
        result = cover.put(result, "result", ack.id)
    if error is not None and cover.keyring is not None:
        message = cover.keyring.seal(error.message, "message", ack.id, ack.attempt)
        trace = cover.keyring.seal(error.traceback, "traceback", ack.id, ack.attempt)
        error = ErrorInfo(error.type, message, trace)
    return msgspec.structs.replace(ack, result=result, error=error)


def without_message(ack: Ack) -> Ack:
    """Return an outcome whose error tells its type and where it was, and nothing that may be secret."""
    error = ack.error
    if error is None:
        return ack
    # Exceptions quote what they failed on, in their text and in that of their causes; lines of code do not.
    places = _PLACE.findall(error.traceback)
    trace = "\n".join([*places, f"{error.type}: {MASK}"]) if places else ""
    return msgspec.structs.replace(ack, error=ErrorInfo(error.type, MASK, trace))
