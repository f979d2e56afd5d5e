"""What was sent, as tests ask for it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dutiful import ConfigError, State
from dutiful.testing import assert_sent, inline, override, sent
from tests.testing.conftest import App, Order, Receipt


@dataclass
class Unheard:
    of: str


@pytest.fixture
def app(app: App):
    with override(app.worker):
        yield app


def message(*args, **options) -> str:
    with pytest.raises(AssertionError) as told:
        assert_sent(*args, **options)
    return str(told.value)


def test_the_payloads_come_as_they_were_sent_oldest_first(app: App) -> None:
    app.worker.send(Order(2))
    app.worker.send_many([Order(1), Order(3)])
    app.worker.send(4, task="double")

    assert sent(app.worker, Order) == [Order(2), Order(1), Order(3)]
    assert sent(app.worker) == [Order(2), Order(1), Order(3), 4]
    assert sent(app.worker, Receipt) == []


def test_more_than_a_page(app: App) -> None:
    app.worker.send_many(range(2500), task="double")

    assert sent(app.worker, "double") == list(range(2500))


def test_it_counts_what_has_run_and_what_handlers_send(app: App) -> None:
    with inline(app.worker):
        app.worker.send(Order(1))

    assert sent(app.worker) == [Order(1), Receipt(1)]
    assert [record.state for record in sent(app.worker).records] == [State.COMPLETED] * 2


def test_completed_jobs_are_there_whatever_the_worker_keeps(tmp_path) -> None:
    from dutiful import Worker

    forgetful = Worker(tmp_path / "jobs.db", handlers={"note": lambda: None}, keep_completed=False)
    with inline(forgetful):
        job = forgetful.send(None, task="note")

        assert sent(forgetful, "note") == [None]
        assert job.wait().state is State.COMPLETED


def test_only_those_with_these_fields_or_of_this_queue(app: App) -> None:
    app.worker.send(Order(1, ("a",)))
    app.worker.send(Order(2, ("a",)), queue="bulk")
    app.worker.send({"to": "x", "id": 1}, task="mail")

    assert sent(app.worker, Order, lines=("a",), id=2) == [Order(2, ("a",))]
    assert sent(app.worker, Order, queue="bulk") == [Order(2, ("a",))]
    assert sent(app.worker, "mail", to="x") == [{"to": "x", "id": 1}]
    assert sent(app.worker, Order, price=5) == []
    assert sent(app.worker, id=1) == [Order(1, ("a",)), {"to": "x", "id": 1}]


def test_a_task_and_a_handler_name_what_they_handle(app: App) -> None:
    @app.worker.task
    def add(x: int, y: int = 2) -> int:
        return x + y

    @app.worker.every("1h")
    def sweep() -> None: ...

    add.send(1, y=5)
    app.worker.drain()  # which declares the schedule
    job = app.worker.schedules.run("sweep")

    assert sent(app.worker, add) == [{"x": 1, "y": 5}]
    assert [record.id for record in sent(app.worker, sweep).records] == [job.id]
    with pytest.raises(ConfigError, match="no handler"):
        sent(app.worker, print)


def test_the_only_one(app: App) -> None:
    app.worker.send(Order(1))
    assert sent(app.worker, Order).one() == Order(1)

    app.worker.send(Order(2))
    with pytest.raises(AssertionError, match=r"2 jobs, not one: Order\(id=1"):
        sent(app.worker, Order).one()


def test_an_assertion_returns_what_was_sent(app: App) -> None:
    app.worker.send_many([Order(1), Order(2)])

    assert assert_sent(app.worker, Order, id=2) == [Order(2)]
    assert assert_sent(app.worker, Order, times=2) == [Order(1), Order(2)]
    assert assert_sent(app.worker, Receipt, times=0) == []


def test_a_failure_says_what_was_sent_instead(app: App) -> None:
    assert message(app.worker, Order) == (
        "Order was sent 0 times, and should have been once or more.\nNothing was sent at all."
    )
    app.worker.send(Order(1))
    app.worker.send(2, task="double", queue="bulk")
    app.worker.send(3, task="double")

    assert message(app.worker, Order, id=7) == (
        "Order was sent 0 times with id=7, and should have been once or more.\n"
        "Sent of it: Order(id=1, lines=()) (job 1, pending, queue default)\n"
        "Others: double (2)"
    )
    assert message(app.worker, "double", times=0, queue="bulk") == (
        "double was sent 1 times with queue='bulk', and should have been never.\n"
        "Sent of it: 2 (job 2, pending, queue bulk), 3 (job 3, pending, queue default)\n"
        "Others: Order (1)"
    )
    assert "and should have been 2 times" in message(app.worker, Order, times=2)
    assert "was sent 0 times" in message(app.worker, Unheard)


def test_a_failure_shows_some_of_many(app: App) -> None:
    app.worker.send_many(range(12), task="double")

    assert message(app.worker, "double", times=1).endswith("9 (job 10, pending, queue default), and 2 more")
