"""Batches: many jobs of one task in one call, each with its own end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from dutiful import (
    Backoff,
    BatchContext,
    Cancel,
    ConfigError,
    Discard,
    Handler,
    JobFailed,
    Retry,
    State,
)
from tests.worker import handlers as child
from tests.worker.tools import WAIT_S, finished, is_dead, result, until

LONG_S = 60.0  # never over in a test: a batch is full, or is not run
AT_ONCE = Retry(max_attempts=3, backoff=Backoff(first_s=0))


@dataclass
class Order:
    number: int


@dataclass
class Receipt:
    number: int


def sizes(seen):
    return [len(batch) for batch in seen.all]


@pytest.mark.parametrize("concurrency", [1, 8])
def test_a_backlog_runs_in_full_batches(make, shared, seen, concurrency):
    worker = make(shared, handlers={"t": Handler(seen.add, batch=100, wait=LONG_S)}, concurrency=concurrency)
    worker.send_many(range(1000), task="t")

    worker.start()
    seen.wait(10)

    assert sizes(seen) == [100] * 10
    assert sorted(n for batch in seen.all for n in batch) == list(range(1000))


def test_a_batch_is_filled_by_few_claims(make, path, seen, monkeypatch):
    """Each claim is a commit; with one handler at a time they are not to bring one job each."""
    worker = make(path, handlers={"t": Handler(seen.add, batch=100, wait=LONG_S)}, concurrency=1)
    worker.send_many(range(1000), task="t")
    claims: list[int] = []
    exchange = worker._store.exchange

    def counted(work, outcome):
        exchange(work, outcome)
        if outcome.claims:
            claims.append(len(outcome.claims))

    monkeypatch.setattr(worker._store, "exchange", counted)

    worker.start()
    seen.wait(10)

    assert sum(claims) == 1000
    assert len(claims) <= 40


def test_what_is_due_already_is_run_together_however_short_the_wait(make, shared, seen):
    worker = make(shared, handlers={"t": Handler(seen.add, batch=100, wait=0)}, concurrency=1)
    worker.send_many(range(250), task="t")

    worker.start()
    seen.wait(3)

    assert sizes(seen) == [100, 100, 50]


def test_so_do_jobs_that_are_sent_one_by_one(started, shared, seen):
    worker = started(shared, handlers={"t": Handler(seen.add, batch=10, wait=LONG_S)})

    for n in range(30):
        worker.send(n, task="t")

    assert seen.wait(3) == [[*range(10)], [*range(10, 20)], [*range(20, 30)]]


@pytest.mark.parametrize("wait", [0, 0.01])
def test_what_does_not_fill_a_batch_is_run_when_it_has_waited(started, store, seen, wait):
    worker = started(store, handlers={"t": Handler(seen.add, batch=100, wait=wait)})

    jobs = worker.send_many(range(3), task="t")

    assert seen.wait(1) == [[0, 1, 2]]
    assert [finished(job).state for job in jobs] == [State.COMPLETED] * 3


def test_with_one_handler_at_a_time_the_order_is_kept(make, shared, seen):
    worker = make(shared, handlers={"t": Handler(seen.add, batch=7, wait=0.005)}, concurrency=1)
    worker.send_many(range(100), task="t")

    worker.start()
    until(lambda: sum(sizes(seen)) == 100)

    assert [n for batch in seen.all for n in batch] == list(range(100))


# --- what a handler takes, and answers ------------------------------------------------------------


def test_the_annotation_says_which_payloads(started, store, seen):
    worker = started(store)

    @worker.handler(batch=10)
    def by_type(orders: list[Order]) -> list[Receipt | Exception]:
        return [Receipt(order.number) for order in orders]

    @worker.handler("named", batch=10)
    async def by_name(ctx: BatchContext, orders: Sequence[Order]) -> None:
        seen.add((ctx.task, orders))

    worker.handlers["number"] = Handler(lambda numbers: [n + 1 for n in numbers], batch=10)

    assert result(worker.send(Order(1))) == Receipt(1)
    worker.send({"number": 2}, task="named")
    assert seen.wait(1) == [("named", [Order(2)])]
    assert [result(job) for job in worker.send_many([1, 2, 3], task="number")] == [2, 3, 4]


def test_a_batch_has_one_task(started, seen):
    worker = started()

    @worker.handler(batch=4, wait=LONG_S)
    def handle(things: list[Order | Receipt]) -> None:
        seen.add({type(thing) for thing in things})

    worker.send_many(thing for n in range(4) for thing in (Order(n), Receipt(n)))

    assert sorted(map(str, seen.wait(2))) == sorted(map(str, [{Order}, {Receipt}]))


@pytest.mark.parametrize("kind", ["sync", "async", "process"])
def test_each_job_has_its_own_outcome(started, shared, kind, tmp_path):
    tries = []

    def handle(names: list, ctx: BatchContext) -> list:
        tries.append(names)
        return child.outcomes(names, ctx)

    async def ahandle(names: list, ctx: BatchContext) -> list:
        return handle(names, ctx)

    fn = {"sync": handle, "async": ahandle, "process": child.outcomes}[kind]
    handler = Handler(fn, batch=7, wait=0.02, retry=AT_ONCE, process=kind == "process")
    worker = started(shared, handlers={"t": handler})
    names = ["ok", "none", "fails", "dies", "later", "drop", "stop"]

    jobs = dict(zip(names, worker.send_many(names, task="t"), strict=True))

    records = {name: finished(job) for name, job in jobs.items()}
    assert tries[:1] == ([] if kind == "process" else [names])
    assert result(jobs["ok"]) == {"n": 1}
    assert result(jobs["none"]) is None
    assert result(jobs["fails"]) == "now"
    assert result(jobs["later"]) == "then"
    assert [records[name].failures for name in names] == [0, 0, 1, 3, 0, 0, 0]
    assert [records[name].state for name in ("dies", "drop", "stop")] == ["dead", "dead", "cancelled"]
    assert [error.message for error in records["dies"].errors] == ["never"] * 3


@pytest.mark.parametrize("steering", [Discard("all"), Cancel("all")])
def test_one_answer_can_be_for_all(started, steering):
    worker = started(handlers={"t": Handler(lambda numbers: steering, batch=3, wait=LONG_S)})

    jobs = worker.send_many(range(3), task="t")

    state = State.DEAD if isinstance(steering, Discard) else State.CANCELLED
    assert [finished(job).state for job in jobs] == [state] * 3


def test_what_is_raised_fails_all_each_by_its_own_attempts(started, shared, seen):
    def handle(numbers: list) -> None:
        seen.add(numbers)
        if 3 in numbers:
            raise ValueError("three")

    handler = Handler(handle, batch=8, wait=0.02, retry=Retry(max_attempts=5, backoff=Backoff(first_s=0)))
    worker = started(shared, handlers={"t": handler})

    jobs = worker.send_many(range(8), task="t")

    states = [finished(job).state for job in jobs]
    assert states == [State.DEAD if n == 3 else State.COMPLETED for n in range(8)]
    # Half the size each time: whoever is at fault is alone in the end, and the others are done before.
    assert max(len(batch) for batch in seen.all if 3 in batch and seen.all.index(batch) > 0) <= 4
    assert seen.all[-1] == [3]


@pytest.mark.parametrize("answer", [[1], [1, 2, 3, 4], "abc", 5, {"a": 1}])
def test_an_answer_that_says_nothing_of_each_fails_all(started, answer):
    handler = Handler(lambda numbers: answer, batch=3, wait=LONG_S, retry=Retry(max_attempts=1))
    worker = started(handlers={"t": handler})

    jobs = worker.send_many(range(3), task="t")

    for job in jobs:
        with pytest.raises(JobFailed, match="one outcome for each payload"):
            result(job)


def test_a_payload_that_cannot_be_read_makes_its_job_dead_alone(started, shared, seen):
    worker = started(shared, queues=("q",))

    @worker.handler("t", batch=3, wait=LONG_S)
    def handle(numbers: list[int]) -> None:
        seen.add(numbers)

    jobs = worker.send_many([1, "x", 3], task="t")

    assert seen.wait(1) == [[1, 3]]
    assert [finished(job).state for job in jobs] == [State.COMPLETED, State.DEAD, State.COMPLETED]
    assert finished(jobs[1]).errors[0].type == "NotDecodable"


def test_results_that_cannot_be_kept_fail_nothing(started):
    handler = Handler(lambda numbers: [object(), 1], batch=2, wait=LONG_S)
    worker = started(handlers={"t": handler})

    jobs = worker.send_many(range(2), task="t")

    assert [result(job) for job in jobs] == [None, 1]


def wants_one(order: Order) -> None: ...
def wants_two(orders: list[Order], other: int) -> None: ...
def wants_none() -> None: ...
def wants_list(orders: list[Order]) -> None: ...


@pytest.mark.parametrize(
    ("fn", "options", "words"),
    [
        (wants_one, {"batch": 5}, "a list of payloads"),
        (wants_two, {"batch": 5}, "exactly one argument"),
        (wants_none, {"batch": 5}, "exactly one argument"),
        (wants_list, {"batch": 0}, "from 1 to"),
        (wants_list, {"batch": True}, "from 1 to"),
        (wants_list, {"batch": 5, "wait": -1}, "seconds from 0"),
        (wants_list, {"batch": 5, "wait": float("nan")}, "seconds from 0"),
        (wants_list, {"wait": 1}, "there is no batch"),
        (wants_list, {"batch": 5, "spread": True}, "does not go with"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(fn, options, words):
    with pytest.raises(ConfigError, match=words):
        Handler(fn, **options)


# --- the context ----------------------------------------------------------------------------------


def test_the_context_knows_each_job(started, store, seen):
    worker = started(store, handlers={"next": seen.add})

    @worker.handler("t", batch=2, wait=LONG_S)
    def handle(numbers: list, ctx) -> list:
        for number, job in zip(numbers, ctx.jobs, strict=True):
            job.progress(number)
            job.send(number, task="next")
            job.step("once", str, number)
        return [[job.id, job.attempt, job.failures, dict(job.headers)] for job in ctx.jobs]

    one = worker.send(1, task="t", headers={"trace": "a"})
    two = worker.send(2, task="t")

    assert result(one) == [one.id, 1, 0, {"trace": "a"}]
    assert result(two) == [two.id, 1, 0, {}]
    assert (one.progress.done, two.progress.done) == (1, 2)
    assert sorted(seen.wait(2)) == [1, 2]


def test_what_a_failed_job_of_a_batch_sends_is_not_stored(started, shared):
    worker = started(shared, handlers={"next": print}, queues=("default",))

    @worker.handler("t", batch=2, wait=LONG_S, retry=Retry(max_attempts=1))
    def handle(numbers: list, ctx) -> list:
        for number, job in zip(numbers, ctx.jobs, strict=True):
            job.send(number, task="next", delay=3600)
        return [None, ValueError("no")]

    jobs = worker.send_many([1, 2], task="t")

    assert [finished(job).state for job in jobs] == [State.COMPLETED, State.DEAD]
    assert [record.payload for record in worker.jobs(task="next")] == ["1"]


def test_what_only_a_job_has_is_not_asked_of_the_batch(started):
    worker = started(retry=Retry(max_attempts=1))

    @worker.handler("t", batch=2)
    def handle(numbers: list, ctx) -> None:
        ctx.send(1, task="t")

    with pytest.raises(JobFailed, match=r"ctx\.jobs\[n\]\.send"):
        result(worker.send(1, task="t"))


@pytest.mark.parametrize(
    "leave",
    [
        lambda job: job.sleep("nap", 1),
        lambda job: job.wait_event("paid"),
        lambda job: job.transaction(),
    ],
)
def test_a_job_of_a_batch_cannot_leave_it(started, leave):
    worker = started(retry=Retry(max_attempts=1))

    @worker.handler("t", batch=2)
    def handle(numbers: list, ctx) -> None:
        leave(ctx.jobs[0])

    with pytest.raises(JobFailed, match="not available in a batch"):
        result(worker.send(1, task="t"))


@pytest.mark.parametrize("fails", [False, True])
def test_a_transaction_completes_all_of_a_batch_or_none(started, shared, fails):
    worker = started(shared, retry=Retry(max_attempts=1))

    @worker.handler("t", batch=3, wait=LONG_S)
    def handle(numbers: list, ctx: BatchContext) -> None:
        with ctx.transaction() as db:
            db.execute("CREATE TABLE seen (n integer)")
            for number in numbers:
                db.execute(f"INSERT INTO seen VALUES ({int(number)})")
            if fails:
                raise ValueError("in the middle")

    jobs = worker.send_many(range(3), task="t")

    wanted = State.DEAD if fails else State.COMPLETED
    assert [finished(job).state for job in jobs] == [wanted] * 3
    if fails:
        with pytest.raises(Exception, match="seen"):
            worker._store.sql_look().__enter__().rows("SELECT n FROM seen")
    else:
        with worker._store.sql_look() as look:
            assert sorted(look.rows("SELECT n FROM seen")) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("misuse", ["awaited", "nested"])
def test_a_transaction_of_a_batch_that_is_misused_says_how(started, shared, misuse):
    worker = started(shared, retry=Retry(max_attempts=1))

    @worker.handler("t", batch=2, wait=LONG_S)
    async def handle(numbers: list, ctx: BatchContext) -> None:
        if misuse == "awaited":
            async with ctx.transaction():
                pass
        with ctx.transaction():
            ctx.transaction()

    job, _other = worker.send_many(range(2), task="t")

    assert finished(job).state is State.DEAD
    assert job.errors[0].type == "ConfigError"
    assert ("Use `with`" if misuse == "awaited" else "the inner one was not opened") in job.errors[0].message


# --- being stopped --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_batch_that_takes_too_long_fails_as_one(started, kind):
    worker = started(retry=Retry(max_attempts=1))
    if kind == "sync":

        @worker.handler("t", batch=2, wait=LONG_S, timeout=0.05)
        def handle(numbers: list, ctx) -> None:
            ctx.wait(WAIT_S)
            ctx.jobs[1].check()
    else:

        @worker.handler("t", batch=2, wait=LONG_S, timeout=0.05)
        async def ahandle(numbers: list) -> None:
            await asyncio.sleep(WAIT_S)

    jobs = worker.send_many(range(2), task="t")

    for job in jobs:
        assert finished(job).errors[0].type == "TimeoutError"


def test_a_batch_in_a_child_process_can_be_killed(started, tmp_path):
    told = tmp_path / "told"
    handler = Handler(child.sleep_together, batch=2, wait=LONG_S, process=True, timeout=LONG_S)
    worker = started(handlers={"t": handler})

    jobs = worker.send_many([str(told)] * 2, task="t")
    pid = int(until(lambda: told.exists() and told.read_text()))
    worker.cancel(jobs.ids)

    assert [finished(job).state for job in jobs] == [State.CANCELLED] * 2
    until(lambda: is_dead(pid))


def test_a_child_that_dies_makes_suspects_of_its_batch(started, seen):
    handler = Handler(child.die_of_three, batch=4, wait=0.2, process=True)
    worker = started(handlers={"t": handler})

    jobs = worker.send_many(range(4), task="t")

    records = [finished(job) for job in jobs]
    assert [each.state for each in records] == [State.COMPLETED] * 3 + [State.DEAD]
    assert "worker died" in records[3].errors[-1].message


def test_a_cancelled_job_does_not_stop_its_batch(started, shared):
    entered, told = threading.Event(), threading.Event()
    worker = started(shared)

    @worker.handler("t", batch=3, wait=LONG_S, retry=AT_ONCE)
    def handle(numbers: list, ctx) -> list:
        entered.set()
        assert ctx.jobs[1].wait(WAIT_S)
        told.set()
        assert not ctx.cancelled
        return [job.cancelled and ValueError("stopped") for job in ctx.jobs]

    jobs = worker.send_many(range(3), task="t")
    assert entered.wait(WAIT_S)
    jobs[1].cancel()

    assert told.wait(WAIT_S)
    assert [finished(job).state for job in jobs] == [State.COMPLETED, State.CANCELLED, State.COMPLETED]
    assert [result(jobs[0]), result(jobs[2])] == [False, False]


def test_a_cancelled_jobs_step_ends_the_call_and_no_other_job(started, shared):
    """Its context says that it should stop; the others are run again without it, and have not failed."""
    worker = started(shared, retry=Retry(max_attempts=1))
    begun, go_on = threading.Event(), threading.Event()

    @worker.handler("save", batch=3, wait=5)
    def save(numbers: list[int], ctx: BatchContext):
        begun.set()
        assert go_on.wait(20)
        for job in ctx.jobs:
            job.step("once", int)

    jobs = worker.send_many(range(3), task="save")
    assert begun.wait(20)
    jobs[1].cancel()
    (running,) = worker._runner._attempts.running.values()
    until(lambda: running.called_off)
    go_on.set()

    assert [finished(job).state for job in jobs] == ["completed", "cancelled", "completed"]
    assert [job.refresh().failures for job in jobs] == [0, 0, 0]


def test_when_all_are_cancelled_the_handler_is(started, shared):
    entered = threading.Event()
    worker = started(shared)

    @worker.handler("t", batch=2, wait=LONG_S)
    async def handle(numbers: list) -> None:
        entered.set()
        await asyncio.sleep(WAIT_S)

    jobs = worker.send_many(range(2), task="t")
    assert entered.wait(WAIT_S)
    worker.cancel(jobs.ids)

    assert [finished(job).state for job in jobs] == [State.CANCELLED] * 2


@pytest.mark.parametrize("kind", ["sync", "async", "process"])
def test_a_stop_gives_back_a_running_batch_uncounted(started, make, shared, kind, tmp_path):
    entered = threading.Event()
    told = tmp_path / "told"

    def handle(paths: list, ctx) -> None:
        entered.set()
        ctx.wait(WAIT_S)
        ctx.check()

    async def ahandle(paths: list) -> None:
        entered.set()
        await asyncio.sleep(WAIT_S)

    fn = {"sync": handle, "async": ahandle, "process": child.sleep_together}[kind]
    worker = started(shared, handlers={"t": Handler(fn, batch=2, wait=LONG_S, process=kind == "process")})
    jobs = worker.send_many([str(told)] * 2, task="t")
    until(lambda: told.exists() if kind == "process" else entered.is_set())

    worker.stop(0.05)

    client = make(shared)
    records = [client.job(job.id).refresh() for job in jobs]
    assert [(each.state, each.failures, each.crashes) for each in records] == [(State.PENDING, 0, 0)] * 2


def gathered(worker, count):
    """Wait until the worker holds so many jobs in batches."""
    until(lambda: worker._runner._batches.held == count)


def test_a_stop_gives_back_what_is_being_gathered(started, make, shared, seen):
    worker = started(shared, handlers={"t": Handler(seen.add, batch=10, wait=LONG_S)})
    jobs = worker.send_many(range(3), task="t")
    gathered(worker, 3)

    worker.stop()

    client = make(shared)
    records = [client.job(job.id).refresh() for job in jobs]
    assert [(each.state, each.failures, each.crashes) for each in records] == [(State.PENDING, 0, 0)] * 3
    assert seen.all == []
    started(shared, handlers={"t": Handler(seen.add, batch=3, wait=LONG_S)})
    assert seen.wait(1) == [[0, 1, 2]]


def test_a_drain_does_not_wait_for_more(make, store, seen):
    worker = make(store, handlers={"t": Handler(seen.add, batch=10, wait=LONG_S)})
    worker.start()
    worker.send_many(range(13), task="t")

    worker.stop(drain=True)

    assert sorted(sizes(seen)) == [3, 10]


def test_what_is_being_gathered_can_be_cancelled_and_paused(started, shared, seen):
    worker = started(shared, handlers={"t": Handler(seen.add, batch=10, wait=LONG_S)})
    jobs = worker.send_many(range(3), task="t")
    gathered(worker, 3)

    jobs[0].cancel()
    assert finished(jobs[0]).state is State.CANCELLED
    gathered(worker, 2)
    worker.pause(task="t")
    gathered(worker, 0)

    until(lambda: [job.state for job in jobs[1:]] == [State.PENDING] * 2)
    assert seen.all == []


def test_a_batch_that_is_being_gathered_keeps_no_other_job_waiting(started, seen):
    handlers = {"t": Handler(print, batch=10, wait=LONG_S), "one": Handler(seen.add)}
    worker = started(handlers=handlers, concurrency=1)
    worker.send(0, task="t")
    gathered(worker, 1)

    worker.send_many(range(5), task="one")

    assert seen.wait(5) == [0, 1, 2, 3, 4]


def test_jobs_of_one_key_are_in_no_batch_together(started, shared, seen):
    worker = started(shared, handlers={"t": Handler(seen.add, batch=10, wait=0.01)})

    worker.send_many(range(3), task="t", key="k")

    assert seen.wait(3) == [[0], [1], [2]]


def test_a_job_with_a_deadline_cuts_nobody_elses_time(started, seen):
    worker = started(handlers={"t": Handler(seen.add, batch=10, wait=0.05)})

    worker.send_many(range(2), task="t", deadline=LONG_S)

    assert sorted(seen.wait(2)) == [[0], [1]]


def test_a_batch_that_waits_behind_a_long_one_goes_to_another_worker(make, shared, gate, seen):
    one = make(shared, handlers={"t": Handler(gate.hold, batch=10, wait=0.01)}, concurrency=1)
    one.send_many(range(30), task="t")
    one.start()
    gate.entered.wait(1)

    other = make(shared, handlers={"t": Handler(seen.add, batch=10, wait=0.01)})
    other.start()

    until(lambda: sum(sizes(seen)) >= 20)
    assert len(gate.entered.all) == 1
    gate.open()


def test_two_workers_share_the_batches(started, shared, seen):
    workers = [started(shared, handlers={"t": Handler(seen.add, batch=10)}) for _ in range(2)]

    jobs = workers[0].send_many(range(500), task="t")

    assert {finished(job).state for job in jobs} == {State.COMPLETED}
    assert sorted(n for batch in seen.all for n in batch) == list(range(500))
    assert max(sizes(seen)) == 10


def test_a_bound_makes_batches_smaller(started, store, seen):
    worker = started(store, handlers={"t": Handler(seen.add, batch=10, wait=0.01)}, buffer=3)

    for n in range(9):
        worker.send(n, task="t", timeout=WAIT_S)

    until(lambda: sum(sizes(seen)) == 9)
    assert max(sizes(seen)) <= 3


def test_a_handler_that_is_replaced_by_one_that_takes_less_gets_no_more(started, gate, seen):
    handlers = {"t": Handler(print, batch=10, wait=0.01), "hold": gate.hold}
    worker = started(handlers=handlers, concurrency=1)
    worker.send(0, task="hold")
    gate.entered.wait(1)

    worker.send_many(range(10), task="t")
    worker.handlers["t"] = Handler(seen.add, batch=4)
    gate.open()

    until(lambda: sum(sizes(seen)) == 10)
    assert max(sizes(seen)) <= 4


def test_a_handler_that_is_replaced_by_one_for_single_jobs_gets_them(started, seen):
    worker = started(handlers={"t": Handler(print, batch=10, wait=0.05)}, concurrency=1)
    entered, go = threading.Event(), threading.Event()

    @worker.handler("block")
    def block(n: int) -> None:
        entered.set()
        assert go.wait(WAIT_S)

    worker.send(0, task="block")
    assert entered.wait(WAIT_S)
    worker.send_many(range(2), task="t")
    worker.handlers["t"] = seen.add
    go.set()

    assert seen.wait(2) == [0, 1]
