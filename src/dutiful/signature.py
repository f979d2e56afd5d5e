"""
What a handler's signature asks for.

The rules of signatures:

1. A parameter annotated with `Context`, or named `ctx`, receives the job's Context. It is
   no part of the payload.
2. A handler for a payload type gets the payload, decoded into that type, as its one other
   parameter (more may follow if they have defaults).
3. A handler for a name, with exactly one other parameter that is not annotated, or is
   annotated with Any, a mapping, list, set, tuple or payload type: gets the whole payload,
   decoded into that. So does one with `*args`, and a builtin such as `print`, undecoded.
4. Any other handler for a name: the payload is a JSON object, spread over the parameters by
   name, each validated by its annotation. A missing or an unknown key is an error (unless
   there is `**kwargs`). If there is exactly one parameter, its bare value will do as well.
5. A handler without parameters takes no payload: null or {}.
"""

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias, Union, cast, get_args, get_origin

from dutiful.errors import ConfigError
from dutiful.payload import is_payload_type

Function: TypeAlias = Callable[..., Any]

_CONTEXTS = ("Context", "BatchContext")  # by name, as they stand above this module
_EMPTY = inspect.Parameter.empty
_FRAMES_MAX = 20  # callers whose local names are looked at for a forward reference


class Parameter(NamedTuple):
    """A parameter that the payload fills; `annotation` is resolved, Any if there is none."""

    name: str
    annotation: Any
    required: bool
    by_position: bool  # it comes first, so it can be given without its name
    position_only: bool


@dataclass(frozen=True, slots=True)
class Asks:
    """What a handler's signature asks for, without the Context."""

    label: str
    parameters: tuple[Parameter, ...]
    ctx_name: str | None
    takes_any: bool  # *args, or no signature to be read
    takes_extra: bool  # **kwargs
    returns: Any = Any  # what it says it returns; Any if it does not say, or nobody can tell

    @property
    def whole(self) -> Any:
        """What the whole payload of a named task is decoded into; None if it is spread (rules 3 to 5)."""
        if self.takes_any:
            return Any
        if len(self.parameters) != 1 or self.takes_extra:
            return None
        annotation = self.parameters[0].annotation
        return annotation if any(map(_is_whole, members(annotation))) else None

    @property
    def payload_types(self) -> list[type]:
        """The payload types that the first parameter is annotated with."""
        if not self.parameters:
            return []
        found = members(self.parameters[0].annotation)
        return [each for each in found if isinstance(each, type) and is_payload_type(each)]


def members(annotation: Any) -> Iterator[Any]:
    """Yield the types an annotation stands for: of unions each, without None and wrappings."""
    if get_origin(annotation) is Annotated:
        yield from members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from members(each)
    elif isinstance(annotation, typing.NewType):
        yield from members(annotation.__supertype__)
    elif hasattr(annotation, "__value__"):  # `type X = …`, Python 3.12
        yield from members(annotation.__value__)
    elif annotation is not type(None):
        yield annotation


def _is_whole(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if kind is Any or kind is object or is_payload_type(kind):
        return True
    if not inspect.isclass(kind) or issubclass(kind, (str, bytes, bytearray)):
        return False
    return issubclass(kind, (Mapping, Sequence, AbstractSet))


def asks_of(fn: Function) -> Asks:
    """
    Read the signature of `fn`; forward references are looked up where it was made and called.

    Raises:
        ConfigError: An annotation cannot be resolved, or the Context cannot be passed by name.
    """
    label = str(getattr(fn, "__qualname__", repr(fn))).rpartition("<locals>.")[2]
    try:
        found = list(signature_of(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin that does not say
        return Asks(label, (), None, takes_any=True, takes_extra=False)
    ctx_name: str | None = None
    wanted: list[Parameter] = []
    for at, each in enumerate(found):
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            continue
        annotation = _resolved(fn, each, label)
        if _is_context(annotation) or each.name == "ctx":
            if each.kind is each.POSITIONAL_ONLY:
                raise ConfigError(f"{label}(): move {each.name!r} behind the '/': it is given by name.")
            ctx_name = each.name
        else:
            first = at == 0 and each.kind is not each.KEYWORD_ONLY
            only = each.kind is each.POSITIONAL_ONLY
            required = each.default is _EMPTY
            wanted.append(Parameter(each.name, annotation, required, first or only, only))
    kinds = {each.kind for each in found}
    any_args = inspect.Parameter.VAR_POSITIONAL in kinds
    if any_args and ctx_name is not None and found[0].name == ctx_name:
        raise ConfigError(f"{label}(): move {ctx_name!r} behind *args: it is given by name.")
    takes_extra = inspect.Parameter.VAR_KEYWORD in kinds
    return Asks(label, tuple(wanted), ctx_name, any_args, takes_extra, returns_of(fn))


def returns_of(fn: Function) -> Any:
    """Return what `fn` is annotated to return; Any if it is not, or that cannot be resolved."""
    try:
        annotation = signature_of(fn).return_annotation
        if annotation is _EMPTY or annotation is None or annotation is Any:
            return Any
        result = inspect.Parameter("result", inspect.Parameter.KEYWORD_ONLY, annotation=annotation)
        return _resolved(fn, result, "")
    except (TypeError, ValueError):  # no signature to be read; a ConfigError: a name for type checkers alone
        return Any


def signature_of(fn: Function) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # annotations are evaluated late there, and may not be yet
        import annotationlib

        return inspect.signature(fn, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(fn)


def _resolved(fn: Function, parameter: inspect.Parameter, label: str) -> Any:
    """Return the annotation as an object; a Context that cannot be resolved stays a string."""
    annotation = parameter.annotation
    if annotation is _EMPTY:
        return Any
    inner = _innermost(fn)
    holder = types.SimpleNamespace(__annotations__={"it": annotation})
    names: dict[str, Any] = {}
    for name, cell in zip(
        getattr(getattr(inner, "__code__", None), "co_freevars", ()),
        getattr(inner, "__closure__", None) or (),
        strict=False,
    ):
        names.update(_content(name, cell))
    while True:
        try:
            spaces = getattr(inner, "__globals__", {}), names
            return typing.get_type_hints(holder, *spaces, include_extras=True)["it"]
        except Exception as error:  # NameError, SyntaxError, and what evaluating may raise
            missing = getattr(error, "name", None)
            if isinstance(error, NameError) and missing and missing not in names:
                here = _local_of_callers(missing)
                if here is not None:
                    names[missing] = here
                    continue
            if _is_context(annotation):
                return annotation
            raise ConfigError(
                f"{label}(): the annotation {annotation!r} of {parameter.name!r} cannot be "
                f"resolved ({error}). Define or import the type before the handler, at module "
                "level and not under TYPE_CHECKING."
            ) from error


def _content(name: str, cell: types.CellType) -> dict[str, Any]:
    try:
        return {name: cell.cell_contents}
    except ValueError:  # still empty: defined later in the enclosing function
        return {}


def _local_of_callers(name: str) -> Any:
    """Return what a calling function calls `name`: the type of a handler made in a function."""
    frame = inspect.currentframe()
    for _ in range(_FRAMES_MAX):
        if frame is None:
            return None
        if not frame.f_globals.get("__name__", "").startswith("dutiful.") and name in frame.f_locals:
            return frame.f_locals[name]
        frame = frame.f_back
    return None


def _innermost(fn: Any) -> Any:
    """Return the plain function whose globals and closure the annotations were written in."""
    for _ in range(_FRAMES_MAX):
        if isinstance(fn, functools.partial):
            fn = cast("Any", fn).func
        elif hasattr(fn, "__wrapped__"):
            fn = fn.__wrapped__
        elif inspect.ismethod(fn):
            fn = fn.__func__
        elif inspect.isclass(fn):
            fn = fn.__init__
        elif inspect.isroutine(fn):
            return fn
        else:
            fn = type(fn).__call__
    return fn


def _is_context(annotation: Any) -> bool:
    # By name: dutiful.context stands above this module, and users may import it for types only.
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return annotation.strip("'\" ").rpartition(".")[2] in _CONTEXTS
    module = str(getattr(annotation, "__module__", ""))
    return getattr(annotation, "__name__", "") in _CONTEXTS and module.partition(".")[0] == "dutiful"


def is_async(fn: Any) -> bool:
    """Tell whether calling `fn` gives a coroutine: also partials and objects with `__call__`."""
    return _is_any_of(fn, inspect.iscoroutinefunction)


def is_generator(fn: Any) -> bool:
    """Tell whether calling `fn` gives a generator, asynchronous or not; likewise."""
    return _is_any_of(fn, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def _is_any_of(fn: Any, *kinds: Callable[[Any], bool]) -> bool:
    while isinstance(fn, functools.partial):
        fn = cast("Any", fn).func
    if any(kind(fn) for kind in kinds):
        return True
    if inspect.isroutine(fn) or inspect.isclass(fn):
        return False
    called = getattr(fn, "__call__", None)  # noqa: B004
    return any(kind(called) for kind in kinds)
