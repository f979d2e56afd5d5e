"""A payload with its own options, where several are sent together."""

from typing import Any


class Link:
    """
    One job of a `Chain`, or the callback of a `Group`, with options of its own.

    Args:
        payload: As for `worker.send`.
        options: Those of `worker.send`: task, queue, priority and so on.
    """

    __slots__ = ("options", "payload")

    def __init__(self, payload: object, **options: Any) -> None:
        self.payload = payload
        self.options = options

    def __repr__(self) -> str:
        options = "".join(f", {name}={value!r}" for name, value in self.options.items())
        return f"Link({self.payload!r}{options})"
