"""An app's workers on a store of the test's own, and how their jobs are run."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from dutiful import (
    ConfigError,
    Context,
    Discard,
    JobFailed,
    JobTimeout,
    NotDecodable,
    State,
    Worker,
    WorkerStopped,
)
from dutiful.testing import Clock, inline, override, sent
from tests.testing.conftest import App, Order, Receipt
from tests.worker.tools import Gate, background, within


def top_level(number: int, ctx: Context) -> tuple[int, int, int]:
    return number, os.getpid(), ctx.attempt


# --- the store ------------------------------------------------------------------------------------


def test_the_apps_own_store_is_never_touched(app: App) -> None:
    with override(app.worker):
        app.worker.send(Order(1))
        assert app.worker.drain() == 2

    assert app.is_untouched()
    assert app.worker.label == str(app.path)


def test_each_block_begins_empty_and_leaves_the_store_as_it_was(app: App) -> None:
    before = app.worker.send(Order(1))
    with override(app.worker):
        assert app.worker.jobs() == []
        app.worker.send(Order(2))
        app.worker.send(Order(3))
    with override(app.worker):
        assert app.worker.jobs() == []

    assert [job.id for job in app.worker.jobs()] == [before.id]
    assert app.worker.send(Order(4)).id == before.id + 1
    app.worker.stop()


def test_blocks_may_be_nested_each_with_a_store_of_its_own(app: App) -> None:
    with override(app.worker):
        app.worker.send(Order(1))
        with override(app.worker):
            app.worker.send(Order(2))
            assert sent(app.worker, Order) == [Order(2)]
        assert sent(app.worker, Order) == [Order(1)]


def test_a_started_worker_is_refused_and_goes_on(app: App) -> None:
    with app.worker:
        with pytest.raises(ConfigError, match="nothing was replaced"), override(app.worker):
            pass

        assert app.worker.send(Order(1)).result(20) == 1


def test_if_one_of_several_is_refused_none_is_replaced(app: App, tmp_path) -> None:
    with Worker(tmp_path / "other.db") as other:
        with pytest.raises(ConfigError), override(app.worker, other):
            pass

    assert app.worker.stand_in is None
    assert app.worker.label == str(app.path)


@pytest.mark.parametrize("options", [{"mode": "eager"}, {"errors": "ignore"}])
def test_a_wrong_option_is_refused(app: App, options) -> None:
    with pytest.raises(ConfigError, match="must be one of"), override(app.worker, **options):
        pass


def test_an_override_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="no worker"), override():
        pass


def test_several_workers_share_the_store(app: App) -> None:
    web = Worker("web.db")
    with override(web, app.worker) as clock:
        web.send({"id": 1}, task="Order")
        assert web.drain() == 0  # it does not know the task
        assert clock.advance(0) == 2

        assert sent(web, Order) == sent(app.worker, Order) == [Order(1)]


def test_inline_a_job_is_run_by_whichever_worker_knows_it(app: App) -> None:
    web = Worker("web.db")
    with inline(web, app.worker):
        job = web.send({"id": 1}, task="Order")

        assert job.state is State.COMPLETED


def test_the_jobs_may_be_in_a_file_with_the_apps_own_tables(app: App, tmp_path) -> None:
    path = tmp_path / "test.db"
    with override(app.worker, store=path) as clock:
        app.worker.send(Order(1), delay=3600)
        assert clock.advance("1h") == 2

    with Worker(path) as real:  # an ordinary store, which a real worker reads
        assert [job.state for job in real.jobs()] == [State.COMPLETED, State.COMPLETED]


def test_a_file_that_has_jobs_already_keeps_their_delays(app: App, tmp_path) -> None:
    """Whatever the clock says: those that were sent with a delay wait for the rest of it."""
    path = tmp_path / "test.db"
    client = Worker(path)
    client.send({"id": 1}, task="Order", delay=3600)
    client.stop()
    with override(app.worker, store=path, clock=Clock("2040-01-01T00:00Z")) as clock:
        assert clock.advance("59m") == 0
        assert clock.advance("1m 1s") == 2


def test_the_jobs_may_be_in_postgres_but_its_time_is_its_own(app: App, database_url: str) -> None:
    with override(app.worker, store=database_url) as clock:
        with app.worker:
            job = app.worker.send(Order(1))
            assert app.worker.drain() == 2
            assert job.result(1) == 1
        with pytest.raises(ConfigError, match="keeps its own time"):
            clock.advance("1h")
    with override(app.worker, store=database_url, mode="inline"):
        assert app.worker.send(2, task="double").result(1) == 4


def test_in_memory_a_send_in_a_transaction_of_the_apps_says_what_to_do(app: App) -> None:
    with override(app.worker), closing(sqlite3.connect(":memory:")) as own:
        own.execute("BEGIN")
        with pytest.raises(ConfigError, match=r"nothing was stored.*store=…"):
            app.worker.send(Order(1), transaction=own)
        with pytest.raises(ConfigError, match="store=…"):
            app.worker.send_many([Order(1)], transaction=own)

        assert app.worker.jobs() == []


def test_in_memory_a_handlers_own_transaction_takes_sends(app: App) -> None:
    @app.worker.handler("pay")
    def pay(ctx: Context) -> None:
        with ctx.transaction() as db:
            app.worker.send(3, task="double", transaction=db)

    with inline(app.worker):
        app.worker.send(None, task="pay")

    assert app.done == [3]


def test_in_the_apps_database_a_send_is_in_its_transaction(app: App, tmp_path) -> None:
    path = tmp_path / "test.db"
    with override(app.worker, store=path, mode="inline"), closing(sqlite3.connect(path)) as own:
        app.worker.counts()  # which makes the tables
        own.execute("BEGIN")
        app.worker.send(Order(1), transaction=own)
        own.rollback()
        own.execute("BEGIN")
        app.worker.send(Order(2), transaction=own)
        assert app.done == []
        own.commit()

        assert app.worker.drain() == 2
        assert app.done[0] == Order(2)


# --- start and stop ---------------------------------------------------------------------------------


def test_the_app_may_start_and_stop_its_worker_and_no_thread_is_started(app: App) -> None:
    before = set(threading.enumerate())
    with override(app.worker):
        with app.worker:
            assert set(threading.enumerate()) == before
            app.worker.send(Order(1))

        assert app.done == []
        with pytest.raises(WorkerStopped):
            app.worker.send(Order(2))
        assert app.worker.drain() == 2
        assert app.done == [Order(1), Receipt(1)]


def test_a_worker_that_is_left_started_is_stopped_in_the_end(app: App) -> None:
    with override(app.worker):
        app.worker.start()

    with app.worker:
        assert app.worker.send(Order(1)).result(20) == 1


def test_an_async_app_may_start_it_too(app: App) -> None:
    async def serve() -> int:
        async with app.worker:
            return (await app.worker.asend(Order(1))).id

    with inline(app.worker):
        job_id = asyncio.run(serve())

        assert app.worker.job(job_id).result() == 1


def test_with_threads_all_is_as_in_real_life_but_for_the_store(app: App) -> None:
    with override(app.worker, mode="threads") as clock:
        with app.worker:
            assert app.worker.send(Order(1)).result(20) == 1
            with pytest.raises(ConfigError, match="real time"):
                clock.advance(1)
        assert len(sent(app.worker)) == 2

    assert app.is_untouched()


# --- running ----------------------------------------------------------------------------------------


def test_nothing_runs_before_it_is_told_to(app: App) -> None:
    with override(app.worker):
        job = app.worker.send(Order(1))
        assert job.state is State.PENDING

        assert app.worker.drain() == 2
        assert job.result() == 1


def test_a_payload_takes_the_way_through_json(app: App) -> None:
    """What would not come back the same is found in a test, and handlers get a copy."""
    order = Order(1, ("a", "b"))
    with inline(app.worker):
        app.worker.send(order)

    assert app.done[0] == order
    assert app.done[0] is not order


def test_inline_a_send_returns_when_its_job_has_run_and_what_that_sent(app: App) -> None:
    with inline(app.worker):
        job = app.worker.send(Order(1))

        assert app.done == [Order(1), Receipt(1)]
        assert job.result() == 1


def test_inline_send_many_runs_them_all_in_order(app: App) -> None:
    with inline(app.worker):
        jobs = app.worker.send_many(Order(number) for number in range(3))

        assert [job.result() for job in jobs] == [0, 1, 2]
    assert [each for each in app.done if isinstance(each, Order)] == [Order(0), Order(1), Order(2)]


def test_inline_coroutines_wait_for_what_they_send(app: App) -> None:
    async def serve() -> list[int]:
        jobs = await asyncio.gather(*(app.worker.asend(number, task="double") for number in range(5)))
        many = await app.worker.asend_many([7], task="double")
        return [await job for job in [*jobs, *many]]

    with inline(app.worker):
        assert asyncio.run(serve()) == [0, 2, 4, 6, 8, 14]


def test_a_sync_handler_has_no_event_loop_whoever_sends(app: App) -> None:
    @app.worker.handler("own-loop")
    def own_loop() -> str:
        return asyncio.run(asyncio.sleep(0, "mine"))

    async def serve() -> list[str]:
        first = app.worker.send(None, task="own-loop")  # a send that blocks the loop
        second = await app.worker.asend(None, task="own-loop")
        return [first.result(), await second]

    with inline(app.worker):
        assert asyncio.run(serve()) == ["mine", "mine"]


def test_a_handler_does_not_see_the_senders_context_variables(app: App) -> None:
    """In real life it does not: what needs the request's context fails there, and so it does here."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    app.worker.handlers["look"] = lambda: request.get("none")
    request.set("mine")
    with inline(app.worker):
        assert app.worker.send(None, task="look").result() == "none"


def test_a_handler_runs_in_the_thread_of_its_sender(app: App) -> None:
    app.worker.handlers["where"] = lambda: threading.get_ident()  # noqa: PLW0108  # which takes no payload
    with inline(app.worker):
        assert app.worker.send(None, task="where").result() == threading.get_ident()


def test_a_handler_for_a_child_process_runs_in_the_tests(app: App) -> None:
    app.worker.handler("apart", process=True)(top_level)
    with inline(app.worker):
        assert app.worker.send(5, task="apart").result() == (5, os.getpid(), 1)


def test_what_a_handler_sends_runs_after_it_and_is_not_nested(app: App) -> None:
    @app.worker.handler("first")
    def first() -> None:
        app.worker.send(2, task="double")
        app.done.append("first")

    with inline(app.worker):
        app.worker.send(None, task="first")

    assert app.done == ["first", 2]


def test_a_handler_may_wait_for_another_job(app: App) -> None:
    app.worker.handlers["boss"] = lambda: app.worker.send(3, task="double").result()
    with inline(app.worker):
        assert app.worker.send(None, task="boss").result() == 6


def test_threads_that_send_at_once_each_wait_for_their_own(app: App) -> None:
    with inline(app.worker):
        sending = [background(app.worker.send, number, task="double") for number in range(20)]

        assert sorted(each.result(20).result() for each in sending) == list(range(0, 40, 2))


def test_an_async_handler_may_await_another_one(app: App) -> None:
    @app.worker.handler("boss")
    async def boss() -> int:
        return await (await app.worker.asend(3, task="double"))

    with override(app.worker):
        job = app.worker.send(None, task="boss")

        assert within(20, app.worker.drain) == 2
        assert job.result() == 6


def test_a_handler_that_stops_the_worker_is_the_last(app: App) -> None:
    @app.worker.handler("last")
    def last(ctx: Context) -> bool:
        app.worker.stop()
        return ctx.wait(20)  # it is asked to stop, as ever

    with override(app.worker):
        job, other = app.worker.send(None, task="last"), app.worker.send(1, task="double")
        with pytest.raises(WorkerStopped):
            app.worker.drain()

        assert (job.state, other.state) == (State.COMPLETED, State.PENDING)
        assert app.worker.drain() == 1


def test_priorities_keys_and_limits_hold(app: App) -> None:
    with override(app.worker):
        app.worker.send(1, task="double", key="k")
        app.worker.send(2, task="double", key="k")
        app.worker.send(3, task="double", priority=5)
        assert app.worker.drain() == 3

    assert app.done == [3, 1, 2]


def test_a_handler_of_batches_gets_what_is_there(app: App) -> None:
    @app.worker.handler("many", batch=3)
    def many(numbers: list[int]) -> list[int]:
        app.done.append(list(numbers))
        if 13 in numbers:
            raise ValueError("unlucky")
        return [2 * number for number in numbers]

    with override(app.worker):
        jobs = app.worker.send_many([1, 2, 3, 4], task="many")
        assert [job.result() for job in jobs] == [2, 4, 6, 8]
        assert app.done == [[1, 2, 3], [4]]
        app.worker.send_many([12, 13], task="many")
        with pytest.raises(ValueError, match="unlucky"):
            app.worker.drain()


def test_middleware_is_around_the_handler(app: App) -> None:
    @app.worker.middleware
    def around(call):
        app.done.append("before")
        yield
        app.done.append("after")

    app.worker.handlers["plain"] = lambda: app.done.append("handled")
    with inline(app.worker):
        app.worker.send(None, task="plain")
        app.worker.send(1, task="double")

    assert app.done == ["before", "handled", "after", "before", 1, "after"]


def test_a_paused_task_is_not_run(app: App) -> None:
    with override(app.worker):
        app.worker.pause(task="double")
        job = app.worker.send(1, task="double")
        assert app.worker.drain() == 0

        app.worker.resume(task="double")
        assert job.result() == 2


def test_a_bound_on_unfinished_jobs_does_not_hold(tmp_path) -> None:
    """Nobody makes room while a test sends."""
    bounded = Worker(tmp_path / "jobs.db", handlers={"note": print}, buffer=2)
    with override(bounded):
        for number in range(5):
            bounded.send(number, task="note")
        assert len(sent(bounded, "note")) == 5


def test_inline_within_an_override_is_for_its_block(app: App) -> None:
    with override(app.worker) as clock:
        with inline(app.worker) as same:
            assert same is clock
            assert app.worker.send(1, task="double").state is State.COMPLETED
        assert app.worker.send(1, task="double").state is State.PENDING


def test_jobs_without_end_are_an_error(app: App, monkeypatch) -> None:
    monkeypatch.setattr("dutiful.testing.hand.ATTEMPTS_MAX", 50)
    app.worker.handlers["again"] = lambda: app.worker.send(None, task="again") and None
    with inline(app.worker):
        with pytest.raises(ConfigError, match="without end"):
            app.worker.send(None, task="again")


# --- waiting ------------------------------------------------------------------------------------------


def test_waiting_for_a_job_runs_what_is_ready(app: App) -> None:
    with override(app.worker):
        assert app.worker.send(Order(1)).result(timeout=10) == 1


def test_waiting_for_a_job_that_nobody_will_run_is_an_error_at_once(app: App) -> None:
    with override(app.worker):
        job = app.worker.send(Order(1), delay=60)
        with pytest.raises(JobTimeout) as told:
            within(20, job.wait)

        assert "clock.advance" in told.value.__notes__[0]


def test_a_coroutine_that_waits_runs_what_is_ready(app: App) -> None:
    async def serve() -> int:
        return await (await app.worker.asend(Order(1)))

    with override(app.worker):
        assert asyncio.run(serve()) == 1


def test_waiting_for_a_job_that_another_thread_runs_is_waiting_for_its_end(app: App) -> None:
    gate = Gate()
    app.worker.handlers["hold"] = gate.hold
    with override(app.worker):
        job = app.worker.send(1, task="hold")
        draining = background(app.worker.drain)
        gate.entered.wait()
        waiting = background(job.result)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        gate.open()

        assert waiting.result(20) == 1
        assert draining.result(20) == 1


# --- failures -----------------------------------------------------------------------------------------


def test_what_a_handler_raises_comes_out_of_the_send_and_is_recorded(app: App) -> None:
    app.fails = 1
    with inline(app.worker):
        with pytest.raises(ConnectionError, match="order 1") as told:
            app.worker.send(Order(1))

        (job,) = app.worker.jobs()
        assert (job.state, job.failures) == (State.PENDING, 1)
        assert "job 1 (Order)" in told.value.__notes__[0]
        assert told.traceback[-1].name == "ship"


def test_what_an_async_handler_raises_comes_out_too(app: App) -> None:
    @app.worker.handler("bad")
    async def bad() -> None:
        raise KeyError("bad")

    async def serve() -> None:
        await app.worker.asend(None, task="bad")

    with inline(app.worker):
        with pytest.raises(KeyError):
            app.worker.send(None, task="bad")
        with pytest.raises(KeyError):
            asyncio.run(serve())


def test_after_one_that_raised_the_rest_is_ready_still(app: App) -> None:
    app.fails = 1
    with override(app.worker):
        app.worker.send_many([Order(1), Order(2)])
        app.worker.send(3, task="double")
        for _ in range(2):
            with pytest.raises(ConnectionError):
                app.worker.drain()
        assert app.worker.drain() == 1


def test_errors_may_be_kept_as_failures(app: App) -> None:
    app.fails = 1
    with inline(app.worker, errors="keep") as clock:
        job = app.worker.send(Order(1))
        assert [error.type for error in job.errors] == ["ConnectionError"]

        clock.advance(1)
        assert job.state is State.COMPLETED


def test_a_job_that_is_dead_is_a_failure_for_who_waits(app: App) -> None:
    app.worker.handlers["bad"] = lambda: Discard("of no use")
    with inline(app.worker):  # returned, so it is no error
        job = app.worker.send(None, task="bad")

        with pytest.raises(JobFailed, match="of no use"):
            job.result()


def test_a_payload_that_does_not_fit_its_handler_is_told(app: App) -> None:
    with override(app.worker):
        app.worker.send({"nmae": 1}, task="Order")
        with pytest.raises(JobFailed, match="NotDecodable") as told:
            app.worker.drain()
        assert told.value.job_id == 1
        with pytest.raises(NotDecodable):
            sent(app.worker, Order)


def test_an_interruption_is_never_kept(app: App) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    app.worker.handlers["stop"] = interrupted
    with inline(app.worker, errors="keep"):
        with pytest.raises(KeyboardInterrupt):
            app.worker.send(None, task="stop")


def test_what_is_raised_after_a_jobs_own_transaction_is_told(app: App) -> None:
    @app.worker.handler("paid")
    def paid(ctx: Context) -> None:
        with ctx.transaction():
            pass
        raise ValueError("too late")

    with inline(app.worker):
        with pytest.raises(ValueError, match="too late"):
            app.worker.send(None, task="paid")
        assert [job.state for job in app.worker.jobs()] == [State.COMPLETED]


def test_an_async_handler_that_runs_out_of_time_is_told(app: App) -> None:
    @app.worker.handler("slow", timeout=0.01)
    async def slow() -> None:
        await asyncio.sleep(60)

    with inline(app.worker):
        with pytest.raises(JobFailed, match="TimeoutError"):
            app.worker.send(None, task="slow")


def test_the_clock_is_the_one_that_was_given(app: App) -> None:
    clock = Clock("2030-01-01T00:00Z")
    with override(app.worker, clock=clock) as same:
        assert same is clock
        app.worker.send(1, task="double")

        assert app.worker.jobs()[0].created_at == 1_893_456_000_000


def test_it_needs_no_pytest() -> None:
    """But for the plugin, and the contract suites."""
    program = """
import sys
sys.modules["pytest"] = None
from dutiful.testing import Clock, Sent, assert_sent, crash_at, crashpoint, inline, override, sent
"""
    subprocess.run([sys.executable, "-c", program], check=True)
