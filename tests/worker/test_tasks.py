"""`@worker.task`: functions whose arguments are the payload."""

import asyncio

import pytest

from tests.worker.tools import result


def test_a_task_is_a_function_that_can_be_sent(started, store):
    worker = started(store)

    @worker.task
    def add(x: int, y: int = 10) -> int:
        return x + y

    @worker.task("multiply", timeout=30)
    async def times(x: int, y: int) -> int:
        return x * y

    assert add(1, 2) == 3
    assert result(add.send(1, 2)) == 3
    assert result(add.send(1)) == 11
    assert result(times.send(x=3, y=4)) == 12
    assert times.send(1, 1).task == "multiply"
    assert result(asyncio.run(add.asend(5, y=6))) == 11
    assert add.using(priority=3).send(1, 2).refresh().priority == 3


def test_wrong_arguments_of_a_task_store_nothing(started):
    worker = started()

    @worker.task
    def add(x: int, y: int) -> int:
        return x + y

    for args in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError, match="nothing was stored"):
            add.send(*args)
    assert worker.jobs() == []
