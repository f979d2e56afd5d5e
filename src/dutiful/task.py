"""
A function whose arguments are the payload: what `@worker.task` makes of it.

The arguments of a `send` are stored as one object, by name, and spread over the
parameters again when the job runs. Defaults are not stored: they are the function's
own, and may change with a deploy.
"""

import functools
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, ParamSpec, Protocol, TypeVar

from dutiful.errors import ConfigError
from dutiful.link import Link
from dutiful.signature import asks_of, signature_of

P = ParamSpec("P")
R = TypeVar("R")
J = TypeVar("J")
J_co = TypeVar("J_co", covariant=True)


class Sender(Protocol[J_co]):
    """What a task needs of its worker; `J_co` is what `send` returns, a Job."""

    @property
    def send(self) -> Callable[..., J_co]: ...

    @property
    def asend(self) -> Callable[..., Coroutine[Any, Any, J_co]]: ...


class Task(Generic[P, R, J]):
    """
    A function that can also be sent to run in the background.

    Calling it runs the function here and now. `send` stores a job that will.

    Args:
        fn: Its parameters can all be given by name.
        name: The task name that is stored.
        sender: The worker.
        options: Send options for every job: queue, delay, priority, ….

    Raises:
        ConfigError: `fn` has positional-only parameters or `*args`.
    """

    __wrapped__: Callable[P, R]

    def __init__(
        self,
        fn: Callable[P, R],
        *,
        name: str,
        sender: Sender[J],
        options: Mapping[str, Any] | None = None,
    ) -> None:
        asks = asks_of(fn)
        if asks.takes_any or any(each.position_only for each in asks.parameters):
            raise ConfigError(
                f"{asks.label}() cannot be a task: its arguments are stored by name, so it can have "
                'neither positional-only parameters nor *args. Name them, or use @worker.handler("…").'
            )
        functools.update_wrapper(self, fn)
        self.task = name
        self._sender = sender
        self._options = dict(options or {})
        signature = signature_of(fn)
        kept = [each for name, each in signature.parameters.items() if name != asks.ctx_name]
        self._signature = signature.replace(parameters=kept)
        self._by_position = [each.name for each in kept if each.kind is each.POSITIONAL_OR_KEYWORD]
        self._is_simple = all(each.kind is each.POSITIONAL_OR_KEYWORD for each in kept)
        self._extra = next((each.name for each in kept if each.kind is each.VAR_KEYWORD), None)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.__wrapped__(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<task {self.task!r}>"

    def send(self, *args: P.args, **kwargs: P.kwargs) -> J:
        """
        Store a job that calls the function with these arguments, and return it.

        The promise and the errors are those of the worker's `send`.

        Raises:
            TypeError: The arguments do not fit the function. Nothing was stored.
        """
        return self._sender.send(self._payload(args, kwargs), task=self.task, **self._options)

    async def asend(self, *args: P.args, **kwargs: P.kwargs) -> J:
        """`send`, without blocking the event loop; same promise, same errors."""
        payload = self._payload(args, kwargs)
        return await self._sender.asend(payload, task=self.task, **self._options)

    def link(self, *args: P.args, **kwargs: P.kwargs) -> Link:
        """
        Return what `send` would store, for a `Chain` or a `Group`.

        Raises:
            TypeError: The arguments do not fit the function.
        """
        return Link(self._payload(args, kwargs), task=self.task, **self._options)

    def using(self, **options: Any) -> "Task[P, R, J]":
        """
        Return this task with send options for its jobs: `add.using(delay=60).send(1, 2)`.

        Raises:
            ConfigError: `task` is among them.
        """
        if "task" in options:
            raise ConfigError(f"using(task=…): this is {self!r}; only its send options can be set.")
        return Task(
            self.__wrapped__,
            name=self.task,
            sender=self._sender,
            options={**self._options, **options},
        )

    def _payload(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        # Nine calls of ten look like this, and bind() takes 3 µs.
        if self._is_simple and not kwargs and len(args) == len(self._by_position):
            return dict(zip(self._by_position, args, strict=True))
        try:
            payload = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{self.task}{self._signature}: {error}; nothing was stored") from error
        if self._extra is not None:
            payload.update(payload.pop(self._extra, {}))
        return payload
