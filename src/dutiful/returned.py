"""What a function said it returns, for reading back what was stored of it."""

from collections.abc import Callable
from typing import Any, Union

from dutiful.errors import ConfigError
from dutiful.job import Cancel, Discard, Snooze
from dutiful.payload import decode_plain, reader
from dutiful.signature import members

_STEERING = (Snooze, Cancel, Discard)  # a handler may return these, but none is its result


def decoder_of(annotation: Any) -> Callable[[str], Any]:
    """
    Return a function from JSON text to what the annotation says.

    What does not fit it comes as plain values: it was returned all the same, and stored; or the
    annotation has changed since.
    """
    kept = [each for each in members(annotation) if each not in _STEERING]
    if len(kept) < len(list(members(annotation))):
        if not kept:
            return decode_plain
        annotation = Union[(*kept, None)]
    if annotation is Any or annotation is None:
        return decode_plain
    try:
        read = reader(annotation)
    except ConfigError:
        return decode_plain

    def decode(text: str) -> Any:
        try:
            return read(text)
        except Exception:  # noqa: BLE001  # __post_init__ and validators may raise anything
            return decode_plain(text)

    return decode
