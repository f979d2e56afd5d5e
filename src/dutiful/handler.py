"""
A handler with its options, and an entry: a handler made ready for one task.

The rules of `signature` say what an entry calls the function with. What cannot be served is
refused when it is made, not when a job comes.
"""

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, TypeAlias, Union, cast

import msgspec

from dutiful import batching
from dutiful.core.retry import Retry
from dutiful.core.values import span_s
from dutiful.errors import ConfigError, NotDecodable
from dutiful.payload import check_name, decode_plain, decoder, reader
from dutiful.returned import decoder_of
from dutiful.signature import Asks, Function, Parameter, asks_of, is_async, is_generator
from dutiful.versions import Upgrade
from dutiful.versions import checked as checked_version

_HINT = "It was not registered."
Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class Kind(StrEnum):
    """Where a handler runs."""

    THREAD = "thread"
    ASYNC = "async"
    PROCESS = "process"


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
        timeout: Seconds (or a timedelta) one attempt may take, > 0; default no limit.
        process: Run in a child process, which a timeout or cancel can kill. Sync only, and a
            function at the top level of a module: the child imports it by name.
        queue: Where its jobs are sent to; default the worker's first queue.
        limit: A Limit on how many run at once or begin in a time, over all workers.
        version: For a named task: the version of its payload, from 1 (default) on. A payload type
            states its own, with `@dutiful.version(2)`.
        secret: Payload, result and error texts of its jobs are masked wherever they are shown.
        batch: It takes a list of up to so many payloads, 1 to 10,000, and answers for each.
        wait: With `batch`: seconds to wait for more, from the first on; 0 to 3600, default 0.05.
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
    timeout: float | timedelta | None = None
    process: bool = False
    queue: str | None = None
    limit: Any = None
    version: int | None = None
    secret: bool = False
    spread: bool = False
    batch: int | None = None
    wait: float | None = None
    asks: Asks = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(cast("object", self.fn)):
            raise ConfigError(f"a handler is a function or other callable, not {self.fn!r}.")
        if isinstance(self.aliases, str) or not isinstance(cast("object", self.aliases), Iterable):
            raise ConfigError(f"aliases is {self.aliases!r}; it must be a list of names.")
        object.__setattr__(self, "aliases", tuple(self.aliases))
        for name in (*self.aliases, *([] if self.task is None else [self.task])):
            check_name(name, "task")
        if self.queue is not None:
            check_name(self.queue, "queue")
        if self.limit is not None and (not hasattr(self.limit, "pool") or isinstance(self.limit, type)):
            raise ConfigError(f"limit is {self.limit!r}; it must be a Limit.")
        if self.retry is not None and not isinstance(cast("object", self.retry), Retry):
            raise ConfigError(f"retry is {self.retry!r}; it must be a Retry: retry=Retry(max_attempts=3).")
        if self.version is not None:
            checked_version(self.version)
        if self.timeout is not None:
            object.__setattr__(self, "timeout", span_s("timeout", self.timeout, unchanged=_HINT))
        # Here and not when a job comes: the caller's local names can be seen only now.
        asks = asks_of(self.fn)
        if self.batch is not None:
            batching.check(self.batch, self.wait, spread=self.spread)
            asks = batching.of_one(asks)
        elif self.wait is not None:
            raise ConfigError(f"wait is {self.wait!r}, but there is no batch=; give both, or none.")
        object.__setattr__(self, "asks", asks)
        if is_generator(self.fn):
            raise ConfigError(
                f"{self.asks.label}() is a generator (it has a yield), so that calling it runs nothing of "
                "it; it was not registered. Return a value instead."
            )
        if self.process and is_async(self.fn):
            raise ConfigError(
                f"{self.asks.label}() is async and cannot run in a child process: drop "
                "process=True, or make it a plain function."
            )
        if self.process:
            _check_importable(self.fn)

    @property
    def kind(self) -> Kind:
        if is_async(self.fn):
            return Kind.ASYNC
        return Kind.PROCESS if self.process else Kind.THREAD


def made_of(fn: Function, **options: Any) -> Handler:
    """Return `Handler(fn, **options)`. Raises `ConfigError` that names the near option if one is unknown."""
    known = [name for name in inspect.signature(Handler).parameters if name != "fn"]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1) or known
            raise ConfigError(f"unknown option {name!r}; did you mean {' or '.join(near)}?")
    return Handler(fn, **options)


def _check_importable(fn: Callable[..., Any]) -> None:
    """Raise `ConfigError`, saying what to do, if a child process could not find `fn` by name."""
    module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    main = sys.modules["__main__"]
    if module == "__main__" and not (getattr(main, "__file__", None) or main.__spec__):
        problem = "was typed in or piped into Python. Put it into a file"
    elif not module or not qualname or inspect.ismethod(fn):
        problem = "is a bound method, partial or object. Make it a function"
    elif "<" in qualname:
        problem = "is a lambda or is defined inside a function. Define it with `def`"
    else:
        return
    raise ConfigError(
        f"process=True: a child process has to import its handler by name, but {fn!r} {problem} "
        "at the top level of a module, or leave process=True out."
    )


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
        upgrade: For jobs of an older version: what their payload goes through first.
        secret: Whether what its jobs carry is masked.
        given_type, spread: What this entry was made with, to make it again in a child process.
        returns: What the function is annotated to return.
        read_result: From the text of a stored result to that; None: not asked for yet.
        batch: How many jobs it takes at once, at most; None: it takes one.
        wait_s: How long to wait for that many.
    """

    __slots__ = (
        "arguments",
        "batch",
        "ctx_name",
        "fn",
        "given_type",
        "kind",
        "limit",
        "payload_type",
        "plain",
        "queue",
        "read_result",
        "retry",
        "returns",
        "secret",
        "spread",
        "task",
        "timeout_s",
        "upgrade",
        "wait_s",
    )

    def __init__(
        self, task: str, handler: Handler, payload_type: Any = None, upgrade: Upgrade | None = None
    ) -> None:
        """Decode into `payload_type`, or, if it is None, as the signature asks (rules 3 to 5)."""
        asks = handler.asks
        self.task = task
        self.fn = handler.fn
        self.kind = handler.kind
        self.retry = handler.retry
        self.timeout_s: float | None = None
        if handler.timeout is not None:
            self.timeout_s = span_s("timeout", handler.timeout, unchanged=_HINT)
        self.queue = handler.queue
        self.limit = handler.limit
        self.ctx_name = asks.ctx_name
        self.given_type = payload_type
        self.spread = handler.spread
        self.secret = handler.secret
        self.upgrade = upgrade
        self.returns = asks.returns
        self.batch = handler.batch
        self.wait_s = batching.WAIT_S if handler.wait is None else handler.wait
        self.read_result: Callable[[str], Any] | None = None
        self.payload_type: Any = Any
        self.arguments: Callable[[str], Arguments]
        self.plain: Callable[[str], Any] | None = None
        if payload_type is None and not handler.spread:
            is_list = self.batch is not None and asks.parameters
            payload_type = asks.parameters[0].annotation if is_list else asks.whole
        if payload_type is not None:
            self.payload_type = payload_type
            self.arguments = _whole(asks, payload_type, task)
            if self._is_plain(asks):
                self.plain = reader(payload_type)
        elif asks.parameters or asks.takes_extra:
            self.arguments = _spread(asks, task)
        else:
            self.arguments = _nothing(task)

    def result(self, text: str) -> Any:
        """Return a stored result as its function is annotated; what does not fit that, as plain values."""
        if self.read_result is None:  # made for those who ask
            self.read_result = decoder_of(self.returns)
        return self.read_result(text)

    def together(self, each: Sequence[Arguments]) -> Arguments:
        """Return the arguments of one call for a batch, from those of each of its jobs."""
        if each[0][0]:
            return ([args[0] for args, _kwargs in each],), {}
        (name,) = each[0][1]
        return (), {name: [kwargs[name] for _args, kwargs in each]}

    def _is_plain(self, asks: Asks) -> bool:
        return (
            self.kind is Kind.THREAD
            and self.upgrade is None
            and not self.secret
            and self.batch is None
            and self.ctx_name is None
            and self.timeout_s is None
            and (asks.takes_any or asks.parameters[0].by_position)
        )


def _whole(asks: Asks, payload_type: Any, task: str) -> Callable[[str], Arguments]:
    decode = decoder(payload_type, task)
    if asks.takes_any:
        return lambda text: ((decode(text),), {})
    if not asks.parameters or any(each.required for each in asks.parameters[1:]):
        raise ConfigError(
            f"{asks.label}() handles the payloads of {task!r}, so it must take exactly one "
            "argument, the payload (and, if it likes, ctx: Context)."
        )
    return _bare(asks.parameters[0], decode)


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
    bare = _bare(asks.parameters[0], decoder(asks.parameters[0].annotation, task))
    return lambda text: arguments(text) if text.lstrip().startswith("{") else bare(text)


def _bare(parameter: Parameter, decode: Callable[[str], Any]) -> Callable[[str], Arguments]:
    """Give the decoded payload to `parameter`, just as it is."""
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
