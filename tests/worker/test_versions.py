"""Payloads whose form changes: old jobs with new code, new jobs with old code, on every store."""

from dataclasses import dataclass

import pytest

from dutiful import Context, Limit, State, Unique, version
from tests.worker.tools import WAIT_S, finished, ran, result, script, until


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@version(2)
@dataclass
class Order:
    first: str
    last: str
    gift: bool = False


def split_name(old):
    first, last = old["name"].split(" ")
    return {"first": first, "last": last}


def test_an_older_job_runs_through_its_upgrade(started, store):
    worker = started(store)

    @worker.handler
    def ship(order: Order, ctx: Context):
        return [order.first, order.last, ctx.task]

    worker.upgrade(Order, from_version=1)(split_name)

    assert result(worker.send({"name": "Ada Lovelace"}, task="Order@1")) == ["Ada", "Lovelace", "Order"]
    assert result(worker.send(Order("Alan", "Turing"))) == ["Alan", "Turing", "Order"]
    assert result(worker.send({"first": "A", "last": "B"}, task="Order")) == ["A", "B", "Order"]


def test_added_fields_with_defaults_need_no_upgrade(started, store):
    worker = started(store, handlers={Order: lambda order: order.gift})

    assert result(worker.send({"first": "A", "last": "B"}, task="Order@1")) is False


async def ahead(order: Order):
    return order.last


def in_child(order: Order) -> str:
    return order.last


@pytest.mark.parametrize("kind", ["async", "process"])
def test_async_and_process_handlers_get_upgraded_payloads_too(started, path, kind):
    worker = started(path)
    worker.handler(process=kind == "process")(ahead if kind == "async" else in_child)
    worker.upgrade(Order, from_version=1)(split_name)

    assert result(worker.send({"name": "Ada Lovelace"}, task="Order@1")) == "Lovelace"


def test_a_task_of_arguments_has_versions(started, store):
    worker = started(store)

    @worker.task(version=2)
    def pay(amount: int, currency: str):
        return f"{amount} {currency}"

    @worker.upgrade("pay", from_version=1)
    def with_currency(old):
        return {**old, "currency": "EUR"}

    assert result(pay.send(5, "USD")) == "5 USD"
    assert result(worker.send({"amount": 7}, task="pay@1")) == "7 EUR"


def test_an_upgrade_that_raises_makes_the_job_dead_at_once_and_it_is_kept(started, store):
    worker = started(store, handlers={Order: lambda order: order.first})
    worker.upgrade(Order, from_version=1)(split_name)

    job = worker.send({"name": "Plato"}, task="Order@1")

    record = finished(job)
    assert (record.state, record.attempt, record.payload) == (State.DEAD, 1, '{"name":"Plato"}')
    assert "its upgrade from version 1, split_name(), raised ValueError" in record.errors[0].message


def test_a_missing_upgrade_is_named_in_the_error(started, store):
    worker = started(store, handlers={Order: lambda order: order.first})

    record = finished(worker.send({"name": "Ada Lovelace"}, task="Order@1"))

    assert record.state is State.DEAD
    assert "there is no upgrade from version 1" in record.errors[0].message
    assert "worker.upgrade(…, from_version=1)" in record.errors[0].message


def test_a_dead_job_runs_once_the_upgrade_is_there(started, store):
    worker = started(store, handlers={Order: lambda order: order.last})
    job = worker.send({"name": "Ada Lovelace"}, task="Order@1")
    finished(job)

    worker.upgrade(Order, from_version=1)(split_name)
    worker.handlers[Order] = lambda order: order.last
    job.retry()

    assert result(job) == "Lovelace"


def parked(job):
    """Whether it was put back, untouched."""
    record = job.refresh()
    assert (record.state, record.attempt, record.failures) == (State.PENDING, 0, 0)
    return record.due_at - record.created_at > 30_000


def test_a_newer_version_is_put_back_untouched_by_process_too(started, store):
    worker = started(store)
    worker.process(lambda payload: payload)

    job = worker.send({"n": 1}, task="thing@2")
    known = worker.send({"n": 1}, task="thing")

    assert result(known) == {"n": 1}
    record = job.refresh()
    assert (record.state, record.attempt) == (State.PENDING, 0)


def test_a_job_of_a_newer_version_waits_for_a_newer_worker(started, path):
    job = started(path, name="old", handlers={"t": lambda payload: "old"}).send(1, task="t@2")
    assert until(lambda: parked(job))

    new = started(path, name="new")
    new.handler("t", version=2)(lambda payload: "new")

    assert result(job) == "new"


def test_jobs_are_found_by_their_task_in_all_versions(make, store):
    worker = make(store)
    ids = [worker.send(n, task=task).id for n, task in enumerate(["a", "a@2", "a@17", "ab", "a-2", "b@2"])]

    found = worker.jobs(task="a")

    assert [(record.id, record.task, record.version) for record in found] == [
        (ids[2], "a", 17),
        (ids[1], "a", 2),
        (ids[0], "a", 1),
    ]
    assert [record.id for record in worker.jobs(task="a@2")] == [ids[1]]
    assert worker.job(ids[1]).task == "a"


def test_a_paused_task_is_paused_in_all_versions(started, store, seen):
    worker = started(store)
    worker.handler("t", version=2)(seen.add)
    worker.handlers["fine"] = lambda n: n
    worker.pause(task="t")

    jobs = [worker.send(1, task="t@1"), worker.send(2, task="t")]

    assert result(worker.send(7, task="fine")) == 7
    assert [job.state for job in jobs] == [State.PENDING] * 2
    worker.resume(task="t")
    assert sorted(seen.wait(2)) == [1, 2]


def test_a_limit_and_what_is_unique_hold_over_all_versions(make, store):
    worker = make(store)
    worker.handler("t", version=2, limit=Limit(concurrency=1))(lambda payload: None)
    by = Unique(by=lambda payload: payload["id"])

    new = worker.send({"id": 1}, task="t", unique=by)
    old = worker.send({"id": 1, "old": True}, task="t@1", unique=by)

    assert old.id == new.id
    with worker.opened().sql_look() as look:
        assert look.rows("SELECT DISTINCT pool FROM {job}") == [("t",)]


def test_a_job_that_is_replaced_has_the_version_of_what_replaces_it(make, started, store):
    """Else its new payload would be upgraded, or read as what it is not."""
    by = Unique(by=lambda payload: 1, on_conflict="replace")
    worker = started(store, queues=("other",), handlers={Order: lambda order: order.last})
    worker.upgrade(Order, from_version=1)(split_name)

    old = worker.send({"name": "Ada Lovelace"}, task="Order@1", queue="default", unique=by)
    new = worker.send(Order("Alan", "Turing"), queue="default", unique=by)

    assert new.id == old.id
    assert old.refresh().version == 2
    by = Unique(by=lambda payload: 1, on_conflict="reschedule")
    worker.send({"name": "Ada Lovelace"}, task="Order@1", queue="default", unique=by)
    assert old.refresh().version == 1


CRASHING = """
worker = Worker(sys.argv[1], max_crashes=2, handlers={"fine": lambda n: n})
worker.handler("t", version=2)(lambda payload: payload)
worker.upgrade("t", from_version=1)(lambda old: os._exit(9))

with worker:
    worker.job(1).wait(20)
"""


def test_an_upgrade_that_kills_its_process_is_no_poison(tmp_path, make, shared):
    look = make(shared)
    job = look.send(1, task="t@1")
    for _ in range(2):
        with script(tmp_path, CRASHING, shared) as dead:
            assert dead.wait() == 9

    ran(tmp_path, CRASHING, shared)

    record = job.refresh()
    assert (record.state, record.attempt) == (State.DEAD, 2)
    assert record.errors[-1].type == "WorkerDied"


# --- a rolling deployment --------------------------------------------------------------------------

OLD = """
from dataclasses import dataclass

worker = Worker(sys.argv[1], name="old", concurrency=2)

@dataclass
class Order:
    name: str

@worker.handler
def ship(order: Order) -> str:
    say("old ran", order.name)
    return f"old {order.name}"

with worker:
    say("started")
    threading.Event().wait()
"""
NEW = """
from dataclasses import dataclass

worker = Worker(sys.argv[1], name="new", concurrency=2)

@version(2)
@dataclass
class Order:
    first: str
    last: str

@worker.handler
def ship(order: Order) -> str:
    say("new ran", order.first)
    return f"new {order.first} {order.last}"

@worker.upgrade(Order, from_version=1)
def split_name(old: dict) -> dict:
    first, last = old["name"].split(" ")
    return {"first": first, "last": last}
"""
NEW_WORKER = f"""{NEW}
with worker:
    say("started")
    threading.Event().wait()
"""
NEW_CLIENT = f"""{NEW}
for n in range(20):
    say("sent", worker.send(Order("new", str(n))).id)
worker.stop()
"""
OLD_CLIENT = (
    OLD.partition("with worker")[0]
    + """
for n in range(20):
    say("sent", worker.send(Order(f"old {n}")).id)
worker.stop()
"""
)


def test_a_rolling_deployment_loses_nothing_and_fails_nothing(tmp_path, make, shared):
    """Old and new code send and work on one store; the old worker is killed in the end."""
    look = make(shared)
    with script(tmp_path, OLD, shared) as old:
        old.wait_for("started")
        ran(tmp_path, NEW_CLIENT, shared)  # the web servers are deployed first
        assert len(look.jobs(task="Order@2", state="pending")) == 20
        assert all(record.attempt == 0 for record in look.jobs(task="Order@2"))

        with script(tmp_path, NEW_WORKER, shared) as new:
            new.wait_for("started")
            ran(tmp_path, OLD_CLIENT, shared)  # one that was not deployed yet
            until(lambda: look.counts().by_state[State.COMPLETED] == 40)
            old.kill()
            ran(tmp_path, OLD_CLIENT, shared)
            until(lambda: look.counts().by_state[State.COMPLETED] == 60)

    results = {record.id: look.job(record.id).result(WAIT_S) for record in look.jobs(task="Order")}
    newer = {record.id for record in look.jobs(task="Order@2")}
    assert sorted(results[each] for each in newer) == sorted(f"new new {n}" for n in range(20))
    assert sum(each.startswith("new old") for each in results.values()) >= 20  # upgraded
    assert [record for record in look.jobs() if record.state is not State.COMPLETED] == []
    assert {record.failures for record in look.jobs()} == {0}
    assert not [line for line in old.lines if line.startswith("old ran new")]


def test_a_worker_that_is_rolled_back_leaves_the_newer_jobs_for_later(tmp_path, make, shared):
    look = make(shared)
    ran(tmp_path, NEW_CLIENT, shared)
    with script(tmp_path, OLD, shared) as old:
        old.wait_for("started")
        ran(tmp_path, OLD_CLIENT, shared)
        until(lambda: look.counts().by_state[State.COMPLETED] == 20)
        until(lambda: look.counts().parked == 20)  # out of the way, and a kill does not touch them
        old.kill()

    with script(tmp_path, NEW_WORKER, shared) as new:
        new.wait_for("started")
        until(lambda: look.counts().by_state[State.COMPLETED] == 40)

    assert {record.attempt for record in look.jobs(task="Order@2")} == {1}
