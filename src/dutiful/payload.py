"""
Payload type <-> task name <-> JSON text.

The rules, which the documentation repeats:

- What is stored is JSON, never code. A dataclass, msgspec Struct, TypedDict, attrs
  class, NamedTuple or pydantic model is stored by its fields; datetime, UUID,
  Decimal, bytes and Enum as msgspec writes them, and read back by annotation.
- What would come back as something else is refused when it is sent: NaN and
  infinity (JSON has none, and encoders write null in silence), and in a plain dict
  or list also sets and keys that are no strings.
- A task's name is the name of its type without the module: a script's `__main__`
  and an import of the same file must agree. Local classes count by their own name.
- Limits: bytes (the caller's), and `DEPTH_MAX` levels of nesting.

`encode` runs once per job, so what is suspicious is found from the bytes first, at
the speed of C; only then is the value walked to say where the trouble is.
"""

import inspect
import math
import re
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, cast, get_origin, is_typeddict

import msgspec

from dutiful.errors import ConfigError, NotDecodable, NotEncodable
from dutiful.secret import Secret, is_secret_type, written
from dutiful.secret import read as read_secret

DEPTH_MAX = 64  # far above honest data, far below what exhausts a C stack
_SEARCH_MAX = 100_000  # values looked at to name the place of an error
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_ASTERISKS = "*" * 10  # what pydantic writes of a SecretStr
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_HARMLESS = frozenset({str, int, bool, type(None)})
_PLAIN = frozenset({dict, list, tuple, set, frozenset, OrderedDict, defaultdict})


def check_name(name: str, what: str) -> str:
    """
    Return `name` if it can name a task, queue or worker; `what` says which, for the error.

    Raises:
        ConfigError: It is no string, empty, longer than 100, or has other characters.
    """
    if not isinstance(cast("object", name), str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{name!r} cannot name a {what}: use 1 to 100 of the characters A-Z a-z 0-9 _ . : -"
        )
    return name


def task_name(payload_type: type) -> str:
    """
    Return the task name of a payload type: its own name, without the module.

    >>> from datetime import date
    >>> task_name(date)
    'date'

    Raises:
        ConfigError: It is no class, or its name cannot name a task.
    """
    # isinstance alone lets list[int] through, whose __qualname__ is that of list.
    if get_origin(payload_type) or not isinstance(cast("object", payload_type), type):
        raise ConfigError(
            f"{payload_type!r} is no class, so it names no task. Give it a name: "
            'handlers={…: Handler(function, task="name")}, or send(payload, task="name").'
        )
    name = payload_type.__qualname__.rpartition("<locals>.")[2]
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"the type name {name!r} cannot name a task (1 to 100 of A-Z a-z 0-9 _ . : -). "
            f'Give it one: handlers={{…: Handler(function, task="name")}}.'
        )
    return name


def is_pydantic(payload_type: object) -> bool:
    """Tell a pydantic model by its looks: pydantic is no dependency, and never imported."""
    return hasattr(payload_type, "__pydantic_validator__") and hasattr(payload_type, "model_validate_json")


def is_payload_type(candidate: object) -> bool:
    """Tell whether this is a class whose fields are a payload (builtins are not)."""
    kind: Any = get_origin(candidate) or candidate
    if not inspect.isclass(kind):
        return False
    return (
        any(hasattr(kind, mark) for mark in ("__dataclass_fields__", "__attrs_attrs__"))
        or issubclass(kind, msgspec.Struct)
        or is_typeddict(kind)
        or is_pydantic(kind)
        or hasattr(kind, "_fields")  # a NamedTuple
    )


def encode(
    payload: object, task: str, bytes_max: int, limit: str = "payload_bytes_max", *, beside: int = 0
) -> str:
    """
    Return `payload` as JSON text of at most `bytes_max` bytes, with the `beside` bytes that go along.

    `limit` is the name of that setting.

    Raises:
        NotEncodable: It has no faithful JSON, is too large, or nests too deep.
    """
    try:
        data = _ENCODER.encode(payload)
    except Exception as error:
        raise NotEncodable(task, _why_unencodable(payload, error)) from error
    size = len(data)
    if size + beside > bytes_max:
        raise NotEncodable(task, _too_large(size, bytes_max, limit, beside))
    text = data.decode()
    # 65 levels take 130 brackets, so most payloads are done with a comparison.
    if size > 2 * DEPTH_MAX and _is_too_deep(text):
        raise NotEncodable(task, f"it nests deeper than {DEPTH_MAX} levels")
    # In the text, not the bytes: `in` takes 30 ns there, 140 ns here (CPython 3.11).
    if "null" in text and _holds_non_finite((payload,), 0):
        _refuse(payload, task, _non_finite)
    if type(payload) in _PLAIN and not _comes_back(text, payload):
        _refuse(payload, task, _changed_by_json)
    return text


def encode_result(value: object, bytes_max: int, task: str = "result") -> str | None:
    """
    Return a handler's result as JSON text, None for None.

    Raises:
        NotEncodable: As for `encode`; `reason` says why.
    """
    return None if value is None else encode(value, task, bytes_max, "result_bytes_max")


def decode_plain(text: str) -> Any:
    """Return the plain value of JSON text; raises what msgspec raises."""
    return _PLAIN_DECODER.decode(text)


def decoder(payload_type: Any, task: str | None = None) -> Callable[[str], Any]:
    """
    Return a function from JSON text to a validated `payload_type`. Keep it: making one is slow.

    Args:
        payload_type: A class, or any annotation that msgspec reads.
        task: The name for the errors; default the type's own.

    Raises:
        ConfigError: No text can be told to be of this type.

    The function raises `NotDecodable`, whatever goes wrong.
    """
    named = task if task is not None else task_name(payload_type)
    read = reader(payload_type)

    def decode(text: str) -> Any:
        try:
            return read(text)
        except Exception as error:  # __post_init__ and validators may raise anything
            raise NotDecodable(named, _why_undecodable(error)) from error

    return decode


# How values are written and read.


def _write_other(value: object) -> msgspec.Raw:
    """Encode what msgspec does not know: pydantic models and secrets, at any depth."""
    if isinstance(value, Secret):
        return msgspec.Raw(_ENCODER.encode(written(cast("Secret[object]", value))))
    if not is_pydantic(type(value)):
        raise NotImplementedError
    # By field name and without computed fields: what `_read_model` accepts again.
    text = cast("Any", value).model_dump_json(by_alias=False, round_trip=True)
    if _ASTERISKS in text:
        _check_no_secret_of_pydantics(value)
    if "NaN" in text or "Infinity" in text:  # ser_json_inf_nan="constants" writes what is no JSON
        _PLAIN_DECODER.decode(text)
    return msgspec.Raw(text)


def _check_no_secret_of_pydantics(value: object) -> None:
    """Raise if a SecretStr or SecretBytes was written as asterisks, and is lost."""
    for _place, each in islice(_places(value, "$", 0), _SEARCH_MAX):
        if _is_secret_of_pydantics(each):
            raise NotImplementedError


def _is_secret_of_pydantics(value: object) -> bool:
    return hasattr(value, "get_secret_value")


def _read_other(kind: type, value: object) -> Any:
    if kind is object:  # an annotation that says nothing takes anything
        return value
    if is_secret_type(kind):
        return read_secret(kind, value, _converted)
    if not is_pydantic(kind):
        raise NotImplementedError
    return _read_model(kind)(_ENCODER.encode(value).decode())


def _converted(value: object, kind: Any) -> Any:
    # Through JSON: as it was written, so are dates and bytes read.
    return msgspec.json.decode(_ENCODER.encode(value), type=kind, dec_hook=_read_other)


def _read_model(model: Any) -> Callable[[str], Any]:
    validate: Callable[..., Any] = model.model_validate_json
    if "by_name" in inspect.signature(validate).parameters:  # pydantic 2.11 and later
        return partial(validate, by_name=True, by_alias=True)
    return validate


def reader(payload_type: Any) -> Callable[[str], Any]:
    """
    Return the bare function behind `decoder`, which raises whatever goes wrong.

    Raises:
        ConfigError: No text can be told to be of this type.
    """
    if is_pydantic(payload_type):
        return _read_model(payload_type)
    try:
        return msgspec.json.Decoder(payload_type, dec_hook=_read_other).decode
    except Exception as error:  # TypeError, NameError, and what annotations raise
        raise ConfigError(
            f"{payload_type!r} cannot be a payload: {error}. In a union, give each Struct a "
            "tag (class A(Struct, tag=True)); for forward references, define the type at module level."
        ) from error


_ENCODER = msgspec.json.Encoder(enc_hook=_write_other)
_PLAIN_DECODER = msgspec.json.Decoder()


# What is found from the bytes.


def _is_too_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= DEPTH_MAX:
        return False
    # Every second piece between quotes is outside of the strings. Then one innermost
    # level of brackets goes per round. All in C: a list of 1,000 objects takes microseconds.
    unescaped = text.replace("\\\\", "").replace('\\"', "")
    outside = "".join(unescaped.split('"')[::2])
    brackets = outside.encode().translate(_ONE_KIND, _NOT_BRACKETS)
    for _ in range(DEPTH_MAX):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return False
    return True


def _comes_back(text: str, payload: object) -> bool:
    try:
        return bool(_PLAIN_DECODER.decode(text) == payload)
    except Exception:  # noqa: BLE001 - a value's own == may raise anything; the walk will tell
        return False


def _holds_non_finite(values: Iterable[object], depth: int) -> bool:
    """Tell whether there may be a NaN or infinity: null is common, so this is to be quick."""
    for value in values:
        kind = type(value)
        if kind is float:
            if not math.isfinite(cast("float", value)):
                return True
        elif kind in _HARMLESS or depth > DEPTH_MAX:
            continue
        elif _holds_non_finite(_inner(value), depth + 1):
            return True
    return False


def _inner(value: Any) -> Iterable[object]:
    # The most common first: an optional field that is None brings every payload here.
    fields: Iterable[str] | None = getattr(value, "__dataclass_fields__", None)
    if fields is None:
        if isinstance(value, dict):
            return cast("dict[object, object]", value).values()
        if isinstance(value, (list, tuple, set, frozenset)):
            return cast("Iterable[object]", value)
        fields = _field_names(value)
    return [getattr(value, name, None) for name in fields]


# The slow walk: only for what is already suspicious, to name the place.


def _refuse(payload: object, task: str, problem: Callable[[object], str | None]) -> None:
    found = _first(payload, problem)
    if found is not None:
        raise NotEncodable(task, found)


def _first(payload: object, problem: Callable[[object], str | None]) -> str | None:
    for place, value in islice(_places(payload, "$", 0), _SEARCH_MAX):
        reason = problem(value)
        if reason is not None:
            return f"{reason} (at {place})"
    return None


def _places(value: object, place: str, depth: int) -> Iterator[tuple[str, object]]:
    """Yield every value inside `value` with its place, outer before inner, as msgspec goes."""
    yield place, value
    if depth < DEPTH_MAX + 1:
        for step, inner in _steps(value):
            yield from _places(inner, place + step, depth + 1)


def _steps(value: Any) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        for key, inner in cast("Mapping[object, object]", value).items():
            step = f".{str(key)[:40]!s}"
            if not isinstance(key, str) or not key.isascii():
                yield f"{step} (the key)".encode(errors="replace").decode(), key
            yield step.encode(errors="replace").decode(), inner
    elif isinstance(value, (list, tuple, set, frozenset)):
        for at, inner in enumerate(cast("list[object]", value)):
            yield f"[{at}]", inner
    else:
        for name in _field_names(value):
            yield f".{name}", getattr(value, name, None)


def _field_names(value: Any) -> list[str]:
    if isinstance(value, Secret):
        return ["_value"]
    kind: Any = type(cast("object", value))
    if isinstance(value, msgspec.Struct):
        return list(value.__struct_fields__)
    if is_pydantic(kind):
        return [*kind.model_fields, *(getattr(value, "__pydantic_extra__", None) or ())]
    if hasattr(kind, "__dataclass_fields__"):
        return list(kind.__dataclass_fields__)
    return [field.name for field in getattr(kind, "__attrs_attrs__", ())]


def _non_finite(value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value!r} is not in JSON, and would be read as null"
    return None


def _changed_by_json(value: object) -> str | None:
    if isinstance(value, (set, frozenset)):
        return "a set would come back as a list: send a list, or a payload type with that field"
    if isinstance(value, Mapping):
        for key in cast("Mapping[object, object]", value):
            if not isinstance(key, str):
                return f"the key {key!r} is a {type(key).__name__} and would come back as a string"
    return None


def _unencodable(value: object) -> str | None:
    if next(_steps(value), None) is not None:
        return None  # a container: the trouble is inside
    try:
        _ENCODER.encode(value)
    except Exception as error:  # noqa: BLE001 - what __str__, properties and dumpers raise
        return _in_words(value, error)
    return None


def _why_unencodable(payload: object, error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it refers to itself, or nests deeper than {DEPTH_MAX} levels"
    return (
        _first(payload, _unencodable)
        or _first(payload, _changed_by_json)  # a key that msgspec cannot write
        or _in_words(payload, error)
    )


def _in_words(value: object, error: Exception) -> str:
    match error:
        case NotImplementedError() if _is_secret_of_pydantics(value):
            return f"a {type(value).__qualname__} is written as asterisks, and lost: use dutiful.Secret[str]"
        case NotImplementedError():
            return f"a value of type {type(value).__qualname__} has no JSON"
        case msgspec.DecodeError():
            return "it holds NaN or infinity, which JSON does not have"
        case UnicodeError():
            return "a string holds half a surrogate pair, which is no Unicode text"
        case _:
            return f"{type(error).__name__}: {error}"


def _too_large(size: int, bytes_max: int, limit: str, beside: int) -> str:
    headers = f" and {beside:,} of headers" if beside else ""
    return (
        f"it is {size:,} bytes of JSON{headers}, and the limit is {bytes_max:,} ({limit}). "
        f"Keep the data elsewhere and {'send' if limit.startswith('payload') else 'return'} where it is"
    )


def _why_undecodable(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it nests too deep"
    if isinstance(error, msgspec.MsgspecError):
        return str(error)
    if type(error).__module__.partition(".")[0] == "pydantic_core" and hasattr(error, "errors"):
        # pydantic's own text quotes the payload, which does not belong into logs.
        found: list[dict[str, Any]] = cast("Any", error).errors(include_input=False, include_url=False)
        return "; ".join(f"{'.'.join(map(str, it['loc']))}: {it['msg']}" for it in found[:5])
    return f"{type(error).__name__}: {error}"
