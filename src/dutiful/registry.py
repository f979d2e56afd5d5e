"""
Task -> handler and its options, and what a handler's signature asks for.

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

The rules of types: the handler of a payload's exact type wins, then that of its nearest
base class, then `process`. What is stored is the name of the payload's own type, so that
a restart decodes into the subclass and not into the base.

No state outside of a `Registry`. Readers take no lock: every change makes a new `_Table`
with empty caches and puts it in place with one assignment.
"""

import difflib
import functools
import inspect
import math
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import KW_ONLY, dataclass, field
from enum import StrEnum
from typing import Annotated, Any, NamedTuple, TypeAlias, Union, cast, get_args, get_origin

import msgspec

from dutiful.core.retry import Retry
from dutiful.errors import ConfigError, NotDecodable, NotEncodable, UnknownTask
from dutiful.payload import check_name, decode_plain, decoder, is_payload_type, reader, task_name

Function: TypeAlias = Callable[..., Any]
Key: TypeAlias = type | str
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_EMPTY = inspect.Parameter.empty
_PLAIN: Mapping[str, type] = types.MappingProxyType(
    {kind.__name__: kind for kind in (dict, list, tuple, str, int, float, bool, bytes)}
)
_FRAMES_MAX = 20  # callers whose local names are looked at for a forward reference


class Kind(StrEnum):
    """Where a handler runs."""

    THREAD = "thread"
    ASYNC = "async"
    PROCESS = "process"


# What a signature asks for.


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
    return Asks(label, tuple(wanted), ctx_name, any_args, inspect.Parameter.VAR_KEYWORD in kinds)


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
        return annotation.strip("'\" ").rpartition(".")[2] == "Context"
    module = str(getattr(annotation, "__module__", ""))
    return getattr(annotation, "__name__", "") == "Context" and module.partition(".")[0] == "dutiful"


def is_async(fn: Any) -> bool:
    """Tell whether calling `fn` gives a coroutine: also partials and objects with `__call__`."""
    while isinstance(fn, functools.partial):
        fn = cast("Any", fn).func
    return inspect.iscoroutinefunction(fn) or (
        not inspect.isroutine(fn)
        and not inspect.isclass(fn)
        and inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    )


# A handler, and an entry: a handler for one task.


@dataclass(frozen=True)
class Handler:
    """
    A function that handles jobs, with its options.

    Args:
        fn: Sync (runs in a thread), or async (on the worker's event loop).
        task: The name stored with the job; default the payload type's own. Set it, and
            renaming the class changes nothing.
        aliases: Earlier names, whose stored jobs this handler runs too.
        retry: When to try again; default the worker's.
        timeout: Seconds one attempt may take, > 0; default no limit.
        process: Run in a child process, which a timeout or cancel can kill. Sync only.
        queue: Where its jobs are sent to; default the worker's first queue.
        spread: For a named task: the payload is always an object of arguments by name,
            even if there is only one parameter. So does `@worker.task`.

    Raises:
        ConfigError: An option is wrong, or the signature cannot be served.
    """

    fn: Function
    _: KW_ONLY
    task: str | None = None
    aliases: Sequence[str] = ()
    retry: Retry | None = None
    timeout: float | None = None
    process: bool = False
    queue: str | None = None
    spread: bool = False
    asks: Asks = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(cast("object", self.fn)):
            raise ConfigError(f"a handler is a function or other callable, not {self.fn!r}.")
        if isinstance(self.aliases, str):
            raise ConfigError(f"aliases is {self.aliases!r}; it must be a list of names.")
        object.__setattr__(self, "aliases", tuple(self.aliases))
        for name in (*self.aliases, *([] if self.task is None else [self.task])):
            check_name(name, "task")
        if self.queue is not None:
            check_name(self.queue, "queue")
        if self.timeout is not None and not (0 < self.timeout < math.inf):
            raise ConfigError(f"timeout is {self.timeout!r}; it must be seconds > 0, or None.")
        # Here and not when a job comes: the caller's local names can be seen only now.
        object.__setattr__(self, "asks", asks_of(self.fn))
        if self.process and is_async(self.fn):
            raise ConfigError(
                f"{self.asks.label}() is async and cannot run in a child process: drop "
                "process=True, or make it a plain function."
            )

    @property
    def kind(self) -> Kind:
        if is_async(self.fn):
            return Kind.ASYNC
        return Kind.PROCESS if self.process else Kind.THREAD


class Entry:
    """
    One handler, made ready for one task.

    Attributes:
        arguments: From a stored payload's text to the `(args, kwargs)` to call `fn` with,
            to which the runner adds the Context as `ctx_name`. Raises `NotDecodable`.
        retry, timeout_s, queue: None means the worker's default.
        payload_type: What the payload is decoded into; Any for plain or spread values.
        plain: For the simplest handlers, which take one payload in a thread and nothing else:
            from the text to that argument, raising whatever goes wrong. None for all others.
        given_type, spread: What this entry was made with, to make it again in a child process.
    """

    __slots__ = (
        "arguments",
        "ctx_name",
        "fn",
        "given_type",
        "kind",
        "payload_type",
        "plain",
        "queue",
        "retry",
        "spread",
        "takes_whole",
        "task",
        "timeout_s",
    )

    def __init__(self, task: str, handler: Handler, payload_type: Any = None) -> None:
        """Decode into `payload_type`, or, if it is None, as the signature asks (rules 3 to 5)."""
        asks = handler.asks
        self.task = task
        self.fn = handler.fn
        self.kind = handler.kind
        self.retry = handler.retry
        self.timeout_s = handler.timeout
        self.queue = handler.queue
        self.ctx_name = asks.ctx_name
        self.given_type = payload_type
        self.spread = handler.spread
        self.payload_type: Any = Any
        self.arguments: Callable[[str], Arguments]
        self.plain: Callable[[str], Any] | None = None
        self.takes_whole = True
        if payload_type is not None:
            self.payload_type = payload_type
            self.arguments = _whole(asks, payload_type, task)
        elif not handler.spread and (asks.takes_any or _asks_for_whole(asks)):
            self.payload_type = Any if asks.takes_any else asks.parameters[0].annotation
            self.arguments = _whole(asks, self.payload_type, task)
        elif asks.parameters or asks.takes_extra:
            self.takes_whole = False
            self.arguments = _spread(asks, task)
        else:
            self.arguments = _nothing(task)
            return
        self.plain = self._plain(asks)

    def _plain(self, asks: Asks) -> Callable[[str], Any] | None:
        by_position = asks.takes_any or (bool(asks.parameters) and asks.parameters[0].by_position)
        if (
            self.spread
            or self.kind is not Kind.THREAD
            or self.ctx_name is not None
            or self.timeout_s is not None
            or not by_position
            or not self.takes_whole
        ):
            return None
        return reader(self.payload_type)


def _asks_for_whole(asks: Asks) -> bool:
    return (
        len(asks.parameters) == 1
        and not asks.takes_extra
        and any(map(_is_whole, _members(asks.parameters[0].annotation)))
    )


def _members(annotation: Any) -> Iterator[Any]:
    """Yield the types an annotation stands for: of unions each, without None and wrappings."""
    if get_origin(annotation) is Annotated:
        yield from _members(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, types.UnionType):
        for each in get_args(annotation):
            yield from _members(each)
    elif isinstance(annotation, typing.NewType):
        yield from _members(annotation.__supertype__)
    elif hasattr(annotation, "__value__"):  # `type X = …`, Python 3.12
        yield from _members(annotation.__value__)
    elif annotation is not type(None):
        yield annotation


def _is_whole(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    if kind is Any or kind is object or is_payload_type(kind):
        return True
    if not inspect.isclass(kind) or issubclass(kind, (str, bytes, bytearray)):
        return False
    return issubclass(kind, (Mapping, Sequence, AbstractSet))


def _whole(asks: Asks, payload_type: Any, task: str) -> Callable[[str], Arguments]:
    decode = decoder(payload_type, task)
    if asks.takes_any:
        return lambda text: ((decode(text),), {})
    if not asks.parameters or any(each.required for each in asks.parameters[1:]):
        raise ConfigError(
            f"{asks.label}() handles the payloads of {task!r}, so it must take exactly one "
            "argument, the payload (and, if it likes, ctx: Context)."
        )
    name = asks.parameters[0].name
    if asks.parameters[0].by_position:
        return lambda text: ((decode(text),), {})
    return lambda text: ((), {name: decode(text)})


def _spread(asks: Asks, task: str) -> Callable[[str], Arguments]:
    decode = decoder(_struct_of(asks), task)
    optional = any(not each.required for each in asks.parameters)
    in_order = [each.name for each in asks.parameters if each.position_only]
    names = frozenset(each.name for each in asks.parameters)
    as_dict = msgspec.structs.asdict
    unset = msgspec.UNSET

    def arguments(text: str) -> Arguments:
        given = as_dict(decode(text))
        if optional:
            given = {name: value for name, value in given.items() if value is not unset}
        if asks.takes_extra:
            given.update((k, v) for k, v in decode_plain(text).items() if k not in names)
        if in_order:
            return tuple(given.pop(name) for name in in_order if name in given), given
        return (), given

    if len(names) != 1 or asks.takes_extra:
        return arguments
    bare = _bare(asks.parameters[0], task)
    return lambda text: arguments(text) if text.lstrip().startswith("{") else bare(text)


def _bare(parameter: Parameter, task: str) -> Callable[[str], Arguments]:
    decode = decoder(parameter.annotation, task)
    if parameter.by_position:
        return lambda text: ((decode(text),), {})
    return lambda text: ((), {parameter.name: decode(text)})


def _struct_of(asks: Asks) -> type[msgspec.Struct]:
    fields: list[Any] = [
        (each.name, each.annotation)
        if each.required
        # Unset, not the default: that is the function's own, and may change with a deploy.
        else (each.name, Union[each.annotation, msgspec.UnsetType], msgspec.UNSET)  # noqa: UP007
        for each in asks.parameters
    ]
    name = "".join(letter if letter.isalnum() else "_" for letter in asks.label)
    try:
        return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=not asks.takes_extra)
    except Exception as error:
        raise ConfigError(f"{asks.label}(): its parameters cannot be a payload: {error}.") from error


def _nothing(task: str) -> Callable[[str], Arguments]:
    def arguments(text: str) -> Arguments:
        if text.strip() not in ("null", "{}"):
            raise NotDecodable(task, "its handler takes no arguments, so it must be null or {}")
        return (), {}

    return arguments


# The registry.


class _Table:
    """All handlers at one moment, and what was found out about them since."""

    __slots__ = ("_names", "entries", "fallback", "fallback_entries", "handlers", "sent")

    def __init__(self, handlers: Mapping[Key, Handler], fallback: Handler | None) -> None:
        self.handlers = handlers
        self.fallback = fallback
        self.sent: dict[type, str] = {}
        self.entries: dict[str, Entry] = {}
        self.fallback_entries: dict[tuple[str, type | None], Entry] = {}
        self._names: dict[str, Key] = {}
        for key, handler in handlers.items():
            for name in (_name_of(key, handler), *handler.aliases):
                self._claim(name, key)

    def _claim(self, name: str, key: Key) -> None:
        owner = self._names.setdefault(name, key)
        if owner != key:
            raise ConfigError(
                f"two handlers have the task name {name!r}: that of {owner!r} and that of "
                f'{key!r}. Give one its own: Handler(function, task="another-name"), or mend aliases.'
            )

    @property
    def names(self) -> Mapping[str, Key]:
        return self._names

    def owner_of(self, payload_type: type) -> type | None:
        """Return the type whose handler takes this one: itself, or its nearest base."""
        if payload_type in self.handlers:
            return payload_type
        for base in payload_type.__mro__[1:]:
            # A builtin is for exactly that: bool must not go where int is handled.
            if base in self.handlers and base.__module__ != "builtins":
                return base
        return None

    def subclasses_named(self, name: str) -> list[type]:
        """Return the subclasses of registered types with this task name, newest last."""
        found: dict[tuple[str, str], type] = {}
        for key in self.handlers:
            if isinstance(key, type) and key.__module__ != "builtins":
                for each in _descendants(key):
                    if each.__qualname__.rpartition("<locals>.")[2] == name:
                        # @dataclass(slots=True) leaves a first draft of the class behind.
                        found[each.__module__, each.__qualname__] = each
        return list(found.values())


def _descendants(base: type) -> Iterator[type]:
    # Through `type`: the method of a metaclass would want an argument.
    children: list[type] = type.__subclasses__(base)
    for child in children:
        yield child
        yield from _descendants(child)


def _name_of(key: Key, handler: Handler) -> str:
    if isinstance(key, str):
        if handler.task not in (None, key):
            raise ConfigError(
                f"handlers[{key!r}] has task={handler.task!r}; drop task=, or use aliases= for old names."
            )
        return check_name(key, "task")
    if handler.spread:
        raise ConfigError(f"spread=True is for named tasks, not for the payload type {key!r}.")
    return handler.task if handler.task is not None else task_name(key)


class Registry(MutableMapping[Key, Handler]):
    """
    The mapping behind `worker.handlers`: payload type or task name -> Handler.

    Functions may be put in as they are. A change holds from the next job on, in all
    threads; one that raises ConfigError has changed nothing.
    """

    def __init__(self, handlers: Mapping[Any, Handler | Function] | None = None) -> None:
        self._changing = threading.Lock()
        self._seen: dict[str, type] = {}  # the types sent from here, by task name
        self._table = _Table({}, None)
        self._set({key: _handler(value) for key, value in (handlers or {}).items()})

    def __getitem__(self, key: Key) -> Handler:
        return self._table.handlers[key]

    def __setitem__(self, key: Key, value: Handler | Function) -> None:
        self._set({key: _handler(value)})

    def __delitem__(self, key: Key) -> None:
        with self._changing:
            rest = dict(self._table.handlers)
            del rest[key]
            self._table = _Table(rest, self._table.fallback)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._table.handlers)

    def __len__(self) -> int:
        return len(self._table.handlers)

    @property
    def fallback(self) -> Handler | None:
        """The handler set by `process`."""
        return self._table.fallback

    def add(
        self,
        fn: Function,
        *,
        task: str | None = None,
        types: Iterable[type] | None = None,
        **options: Any,
    ) -> Handler:
        """
        Register `fn`: for `types`, else under the name `task`, else for the type (or each type
        of the union) that its first parameter is annotated with.

        `task` together with `types` is the task name of the one type; `options` are those
        of `Handler`.

        Raises:
            ConfigError: It is not said for what, or not possible.
        """
        handler = _made(fn, task=task, **options)
        keys: list[Key] = list(types or ())
        if not keys and task is not None:
            keys = [task]
        if not keys:
            keys = [*_annotated_types(handler.asks)]
        if not keys:
            name = handler.asks.label.rpartition(".")[2]
            raise ConfigError(
                f"{name}() does not say what it handles. Annotate its parameter with a payload type "
                f'(def {name}(job: MyDataclass): …), or name the task: @worker.handler("{name}").'
            )
        self._set(dict.fromkeys(keys, handler))
        return handler

    def process(self, callback: Function, **options: Any) -> Handler:
        """
        Make `callback` the handler of every payload that has none of its own.

        Raises:
            ConfigError: It does not take one payload, or an option is wrong.
        """
        if options.keys() & {"task", "aliases", "spread"}:
            raise ConfigError("process() handles tasks of any name: drop task=, aliases= and spread=.")
        handler = _made(callback, **options)
        _whole(handler.asks, Any, "process")
        with self._changing:
            self._table = _Table(self._table.handlers, handler)
        return handler

    def tasks(self) -> frozenset[str]:
        """Return all names and aliases that are registered here."""
        return frozenset(self._table.names)

    def task_of(self, payload: object) -> str:
        """
        Return the task name to store with `payload`.

        Raises:
            UnknownTask: Nothing handles its type.
            NotEncodable: It could not be decoded again.
        """
        table = self._table
        task = table.sent.get(type(payload))
        return task if task is not None else self._first_of(table, type(payload))

    def resolve_task(self, task: Key) -> str:
        """Return the name that `send(task=…)` means; a type stands for its task name."""
        table = self._table
        if isinstance(task, str):
            return task if task in table.names else check_name(task, "task")
        handler = table.handlers.get(task)
        return _name_of(task, handler) if handler is not None else task_name(task)

    def entry(self, task: str) -> Entry | None:
        """Return what runs `task` here, or None: by name, alias, subclass, or `process`."""
        table = self._table
        found = table.entries.get(task)
        if found is None:
            found = self._named(table, task) or self._inherited(table, task)
            if found is None:
                # Not cached with the others: an import may yet bring the class, and its base's handler.
                return self._fallen_back(table, task)
            table.entries[task] = found
        return found

    def _set(self, changes: Mapping[Any, Handler]) -> None:
        flat = {key: handler for keys, handler in changes.items() for key in _keys(keys)}
        with self._changing:
            table = _Table({**self._table.handlers, **flat}, self._table.fallback)
            for key, handler in flat.items():  # so that a handler that can't be served is refused now
                name = _name_of(key, handler)
                table.entries[name] = _entry(name, key, handler)
            self._table = table

    def _first_of(self, table: _Table, kind: type) -> str:
        owner = table.owner_of(kind)
        if owner is kind:
            name = _name_of(kind, table.handlers[kind])
        elif owner is not None or table.fallback is not None:
            name = task_name(kind)
            self._check_own_name(table, name, kind)
        else:
            name = kind.__qualname__.rpartition("<locals>.")[2]
            raise UnknownTask(name, difflib.get_close_matches(name, table.names))
        self._seen[name] = kind
        table.sent[kind] = name
        return name

    def _check_own_name(self, table: _Table, name: str, kind: type) -> None:
        others = [each for each in table.subclasses_named(name) if not _same(each, kind)]
        seen = self._seen.get(name, kind)
        if name in table.names:
            others.append(cast("type", table.names[name]))
        elif not _same(seen, kind):
            others.append(seen)
        if others:
            raise ConfigError(
                f"{kind!r} has the same task name, {name!r}, as {others[0]!r}. Register it under "
                'its own: handlers={…: Handler(function, task="another-name")}.'
            )
        if name not in _PLAIN:
            try:
                decoder(kind, name)
            except ConfigError as error:
                raise NotEncodable(name, f"it could not be decoded again: {error}") from error

    def _named(self, table: _Table, task: str) -> Entry | None:
        key = table.names.get(task)
        return None if key is None else _entry(task, key, table.handlers[key])

    def _inherited(self, table: _Table, task: str) -> Entry | None:
        found = table.subclasses_named(task)
        if not found:
            return None
        owner = table.owner_of(found[-1])
        return None if owner is None else Entry(task, table.handlers[owner], found[-1])

    def _fallen_back(self, table: _Table, task: str) -> Entry | None:
        if table.fallback is None:
            return None
        seen = _PLAIN.get(task) or self._seen.get(task)
        entry = table.fallback_entries.get((task, seen))
        if entry is None:
            wanted = _fallback_type(table.fallback.asks, task, seen)
            entry = table.fallback_entries[task, seen] = Entry(task, table.fallback, wanted)
        return entry


def _fallback_type(asks: Asks, task: str, seen: type | None) -> Any:
    """Return what `process` decodes a task into: within its annotation, or what was sent here."""
    annotation = asks.parameters[0].annotation if asks.parameters else Any
    members = list(_members(annotation))
    for each in _annotated_types(asks):
        for kind in (each, *_descendants(each)):
            if kind is seen or kind.__qualname__.rpartition("<locals>.")[2] == task:
                return kind
    if len(members) == 1 and annotation is not object:
        return seen if annotation is Any and seen is not None else annotation
    return seen if seen is not None else Any


def _keys(key: Any) -> list[Key]:
    """Return the keys that one key stands for: a union registers each of its types."""
    keys = list(_members(key))
    for each in keys:
        if each is object:
            raise ConfigError("object cannot have a handler; for all other payloads use process().")
        if not isinstance(each, (type, str)):
            raise ConfigError(f"handlers[{key!r}]: a key is a payload type or a task name.")
    return keys


def _entry(name: str, key: Key, handler: Handler) -> Entry:
    return Entry(name, handler, None if isinstance(key, str) else key)


def _handler(value: Handler | Function) -> Handler:
    return value if isinstance(value, Handler) else Handler(value)


def _made(fn: Function, **options: Any) -> Handler:
    known = [name for name in inspect.signature(Handler).parameters if name != "fn"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            raise ConfigError(f"unknown option {name!r}; did you mean {' or '.join(near)}?")
    return Handler(fn, **options)


def _annotated_types(asks: Asks) -> Iterator[type]:
    if asks.parameters:
        for each in _members(asks.parameters[0].annotation):
            if isinstance(each, type) and is_payload_type(each):
                yield each


def _same(one: type, other: type) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
