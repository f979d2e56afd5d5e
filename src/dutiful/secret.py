"""
What must not be shown: single values (`Secret`), and whole payloads (`secret=True`).

Both are marked where they are stored, in the JSON itself, so that whoever shows a job masks them
without knowing its type:

    {"card": {"$secret": "4111"}}    a field
    secret:{"card": "4111"}          all of it; no JSON, so that no reader takes it for a payload

That is a mask, not a lock: whoever reads the database reads it. Against that there is `encrypt=`.
"""

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast, get_args, get_origin

import msgspec

T = TypeVar("T")

KEY = "$secret"
PREFIX = "secret:"
MASK = "***"
_KEY_JSON = f'"{KEY}"'
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Secret(Generic[T]):
    """
    A value in a payload that is masked wherever it is shown: in logs, tracebacks, CLI and dashboard.

    Annotate a field with it: `token: Secret[str]`. What is sent as a bare value, or was before the
    field became a Secret, is read as one too.

    Args:
        value: Any value that the type argument allows; it is validated when it is read back.

    >>> card = Secret("4111 1111")
    >>> print(card, [card], card.reveal())
    *** [Secret('***')] 4111 1111
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value = value

    def reveal(self) -> T:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == cast("Secret[object]", other)._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[Any, ...]:
        return Secret, (self._value,)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Callable[[Any], Any]) -> Any:
        """Say to pydantic, which alone calls this, how to read and write one."""
        from pydantic_core import core_schema

        inner = handler((get_args(source) or (Any,))[0])
        read = core_schema.no_info_before_validator_function(_bare, inner)
        return core_schema.no_info_after_validator_function(
            cls, read, serialization=core_schema.plain_serializer_function_ser_schema(written)
        )


def is_secret_type(kind: Any) -> bool:
    """Tell whether an annotation is Secret, or Secret of something."""
    return kind is Secret or get_origin(kind) is Secret


def written(secret: Secret[Any]) -> dict[str, Any]:
    """Return what is stored of a Secret."""
    return {KEY: secret.reveal()}


def read(kind: Any, value: object, convert: Callable[[object, Any], Any]) -> Secret[Any]:
    """
    Return what was stored as a Secret.

    Raises:
        ValueError: It is not of the type that the annotation says. The value is not in the text.
    """
    inner = (get_args(kind) or (Any,))[0]
    try:
        return Secret(convert(_bare(value), inner))
    except Exception:  # noqa: BLE001  # a validator may raise anything, with the value in its text
        raise ValueError(f"Expected a secret `{getattr(inner, '__name__', inner)}`") from None


def _bare(value: object) -> object:
    if isinstance(value, Secret):
        return cast("Secret[object]", value).reveal()
    if not isinstance(value, dict):
        return value
    found = cast("dict[str, object]", value)
    return found[KEY] if len(found) == 1 and KEY in found else found


# --- whole payloads -------------------------------------------------------------------------------


def marked(text: str) -> str:
    """Return JSON text marked as secret, all of it."""
    return text if text.startswith(PREFIX) else PREFIX + text


def is_marked(text: str) -> bool:
    """Tell whether a stored text is secret, all of it."""
    return text.startswith(PREFIX)


def unmarked(text: str) -> str:
    """Return the JSON text itself."""
    return text.removeprefix(PREFIX)


# --- showing ----------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """Return JSON text to show: what is secret in it is "***"."""
    if is_marked(text):
        return f'"{MASK}"'
    return _each_secret(text, lambda _value: MASK, otherwise=f'"{MASK}"')


def revealed(text: str) -> str:
    """Return JSON text without marks, what was secret in clear."""
    text = unmarked(text)
    return _each_secret(text, lambda value: value, otherwise=text)


def _each_secret(text: str, shown: Callable[[Any], Any], *, otherwise: str) -> str:
    # Written otherwise ("$secret") it is not ours: our encoder escapes nothing in it.
    if _KEY_JSON not in text:
        return text
    try:
        value = _decode(text)
    except (msgspec.DecodeError, RecursionError):
        return otherwise
    return _encode(_replaced(value, shown)).decode()


def _replaced(value: Any, shown: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        found = cast("dict[str, Any]", value)
        if len(found) == 1 and KEY in found:
            return shown(_replaced(found[KEY], lambda inner: inner))
        return {name: _replaced(each, shown) for name, each in found.items()}
    if isinstance(value, list):
        return [_replaced(each, shown) for each in cast("list[object]", value)]
    return value
