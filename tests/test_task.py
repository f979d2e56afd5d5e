"""A task is called like the function it is, and sent with the same arguments."""

import asyncio
from typing import Any

import pytest

from dutiful.errors import ConfigError
from dutiful.handler import Handler
from dutiful.payload import encode
from dutiful.registry import Registry
from dutiful.task import Task


class Outbox:
    """Stands in for the worker; a "job" is what it was sent with."""

    def send(self, payload: Any, *, task: str, **options: Any) -> Any:
        return payload, task, options

    async def asend(self, payload: Any, *, task: str, **options: Any) -> Any:
        return payload, task, options


def add(x: int, y: int = 2) -> int:
    """Add two numbers."""
    return x + y


def task(fn, **options):
    return Task(fn, name="t", sender=Outbox(), options=options)


def test_it_is_called_as_the_function_itself():
    added = task(add)

    assert added(1, y=5) == 6
    assert (added.__name__, added.__doc__) == ("add", "Add two numbers.")
    assert added.__wrapped__ is add
    assert repr(added) == "<task 't'>"


@pytest.mark.parametrize(
    ("args", "kwargs", "payload"),
    [
        ((1, 2), {}, {"x": 1, "y": 2}),
        ((1,), {}, {"x": 1}),
        ((1,), {"y": 3}, {"x": 1, "y": 3}),
        ((), {"y": 3, "x": 1}, {"x": 1, "y": 3}),
    ],
)
def test_its_arguments_are_stored_by_name_and_defaults_are_not(args, kwargs, payload):
    assert task(add).send(*args, **kwargs) == (payload, "t", {})


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})])
def test_wrong_arguments_are_refused_at_the_call(args, kwargs):
    with pytest.raises(TypeError, match=r"t\(.*nothing was stored"):
        task(add).send(*args, **kwargs)


def test_asend_is_the_same():
    assert asyncio.run(task(add).asend(1)) == ({"x": 1}, "t", {})


def test_using_sets_options_for_its_own_sends_only():
    added = task(add, queue="math")

    assert added.using(delay=60).using(priority=1).send(1)[2] == {
        "queue": "math",
        "delay": 60,
        "priority": 1,
    }
    assert added.send(1)[2] == {"queue": "math"}
    with pytest.raises(ConfigError, match="task"):
        added.using(task="other")


def test_the_context_is_not_sent():
    def work(ctx, x): ...

    assert task(work).send(1)[0] == {"x": 1}


def test_extra_keywords_are_sent_as_they_are():
    def work(x, **more): ...

    assert task(work).send(1, more=2, z=3)[0] == {"x": 1, "more": 2, "z": 3}


@pytest.mark.parametrize("fn", [lambda x, /: x, lambda *args: args, print])
def test_what_cannot_be_given_by_name_cannot_be_a_task(fn):
    with pytest.raises(ConfigError, match="by name"):
        task(fn)


def nothing() -> tuple[()]:
    return ()


def total(numbers: list[int]) -> int:
    return sum(numbers)


def keyed(**more: int) -> dict[str, int]:
    return more


@pytest.mark.parametrize(
    ("fn", "args", "kwargs"),
    [(add, (1,), {}), (nothing, (), {}), (total, ([1, 2],), {}), (keyed, (), {"a": 1, "keyed": 2})],
)
def test_what_is_sent_is_what_the_handler_gets(fn, args, kwargs):
    payload, name, _ = task(fn).send(*args, **kwargs)
    entry = Registry({name: Handler(fn, spread=True)}).entry(name)
    got_args, got_kwargs = entry.arguments(encode(payload, name, 1000))

    assert entry.fn(*got_args, **got_kwargs) == fn(*args, **kwargs)
