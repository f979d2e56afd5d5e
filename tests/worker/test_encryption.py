"""Encryption at rest, as users meet it: nothing legible is stored, and who has the keys notices nothing."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import pytest

from dutiful import Context, JobFailed, KeyMissing, Retry, State, Unique
from tests.worker.sealed import (
    COLUMNS,
    NEEDLE,
    NEW,
    NOW,
    OLD,
    OTHER,
    rows_of_every_kind,
    stored_bytes,
    with_handlers,
)
from tests.worker.tools import WAIT_S, finished, result, script, until


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


@pytest.mark.parametrize("key", [OLD, False], ids=["encrypted", "in clear"])
def test_nothing_legible_is_stored_and_readers_notice_nothing(started, shared, path, key):
    """With no key the same program leaves the needle in every place: so that it is looked for rightly."""
    worker = with_handlers(started(shared, encrypt=key, retry=NOW))

    seen = rows_of_every_kind(worker)

    assert seen == dict.fromkeys(seen, NEEDLE)
    found = stored_bytes(shared, path)
    for needle in (NEEDLE.encode(), b"needle-7391", b"needle-7391-\\u00e4"):
        assert (needle in found) == (key is False and needle != b"needle-7391-\\u00e4"), needle
    assert b"sealed:1:" in found or key is False
    with worker.opened().sql_look() as look:
        for table, column in COLUMNS:
            texts = [row[0] for row in look.rows(f"SELECT {column} FROM {{{table}}}") if row[0] is not None]
            assert any("needle" in text for text in texts) == (key is False), (table, column)
            assert texts, (table, column)
    worker.stop()
    assert (NEEDLE.encode() in stored_bytes(shared, path)) == (key is False)


def test_jobs_of_the_users_transaction_are_encrypted_too(started, path):
    worker = started(path, encrypt=OLD, handlers={"t": lambda text: text})
    worker.counts()
    with sqlite3.connect(path) as db:
        job = worker.send(NEEDLE, task="t", transaction=db)
    db.close()

    assert result(job) == NEEDLE
    assert NEEDLE.encode() not in stored_bytes(str(path), path)


def test_asend_is_encrypted_too(started, path):
    worker = started(path, encrypt=OLD, handlers={"t": lambda text: text})

    async def send():
        return await (await worker.asend(NEEDLE, task="t"))

    assert asyncio.run(send()) == NEEDLE
    assert NEEDLE.encode() not in stored_bytes(str(path), path)


# --- keys -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [False, OTHER], ids=["no key", "another key"])
def test_a_worker_without_the_key_leaves_jobs_untouched_and_says_so(started, shared, caplog, key):
    client = started(shared, encrypt=OLD, name="client", handlers={"none": print})
    key_id = client._config.keyring.key_id
    with caplog.at_level(logging.WARNING, "dutiful"):
        blind = started(shared, encrypt=key, name="blind", handlers={"t": lambda text: text})
        blind.process(lambda payload: payload) if key else None
        jobs = client.send_many([NEEDLE] * 200, task="t", priority=9)
        for n in range(20):
            assert result(blind.send(n, task="t")) == n
        if not key:  # one that takes any task counts as one that may take them
            until(lambda: client.counts().parked == 200)

    assert {(each.attempt, each.failures) for each in (jobs[0].refresh(), jobs[199].refresh())} == {(0, 0)}
    lines = [line for line in caplog.messages if f"no handler here for t with key {key_id}" in line]
    assert len(lines) == (0 if key else 1)
    assert OLD not in caplog.text
    started(shared, encrypt=[OLD, OTHER], name="seeing", handlers={"t": lambda text: text})
    assert {job.result(timeout=WAIT_S) for job in jobs} == {NEEDLE}


def stored_tasks(worker):
    with worker.opened().sql_look() as look:
        return [task for (task,) in look.rows("SELECT task FROM {job}")]


def test_a_key_that_a_job_comes_to_need_in_the_middle_is_waited_for(started, shared):
    """A step is under a new key, the payload under an old one that the next worker has."""

    def give_handler(worker):
        @worker.handler("t")
        def handle(text: str, ctx: Context):
            return [ctx.step("first", str, text), ctx.wait_event("go")]

    both = started(shared, encrypt=[NEW, OLD], name="both")
    give_handler(both)
    blind = started(shared, encrypt=OLD, name="blind", retry=Retry(max_attempts=1))
    job = blind.send(NEEDLE, task="t")
    until(lambda: job.refresh().attempt == 1 and job.state is State.PENDING)
    both.stop()

    give_handler(blind)
    blind.send_event("go", "went")
    until(lambda: stored_tasks(blind) == [f"t#{both._config.keyring.key_id}"])
    assert until(lambda: job.refresh().state is State.PENDING)
    assert (job.refresh().failures, job.errors) == (0, ())
    both.start()
    assert both.job(job.id).result(timeout=WAIT_S) == [NEEDLE, "went"]


def test_a_job_whose_name_does_not_say_its_key_is_put_back_too(started, shared):
    """It was renamed by hand, or replaced by a sender with another key."""
    client = started(shared, encrypt=OLD, name="client", queues=("none",))
    job = client.send(NEEDLE, task="t", queue="default", delay=3600)
    with client.opened().sql() as sql:
        sql.change("UPDATE {job} SET task = 't', due_at = 0 WHERE id = ?", job.id)

    blind = started(shared, encrypt=False, name="blind", handlers={"t": lambda text: text})
    until(lambda: job.refresh().attempt == 1 and job.state is State.PENDING)
    assert result(blind.send(1, task="t")) == 1

    assert (job.refresh().attempt, job.refresh().failures) == (1, 0)
    started(shared, encrypt=OLD, name="seeing", handlers={"t": lambda text: text})
    assert job.result(timeout=WAIT_S) == NEEDLE


BLIND = """
worker = Worker(sys.argv[1], encrypt=False, handlers={"t": lambda text: text})
with worker:
    threading.Event().wait(20)
"""


@pytest.mark.parametrize("point", ["ack.before_commit", "ack.after_commit"])
def test_a_worker_that_dies_while_it_puts_a_job_back_harms_it_not(tmp_path, started, shared, point):
    client = started(shared, encrypt=OLD, name="client", queues=("none",))
    job = client.send(NEEDLE, task="t", queue="default")
    with client.opened().sql() as sql:
        sql.change("UPDATE {job} SET task = 't' WHERE id = ?", job.id)

    with script(tmp_path, BLIND, shared, env={"DUTIFUL_CRASHPOINT": point}) as dead:
        assert dead.wait() == 137

    assert stored_tasks(client) == [f"t#{client._config.keyring.key_id}"]
    started(shared, encrypt=OLD, name="seeing", handlers={"t": lambda text: text})
    assert job.result(timeout=WAIT_S) == NEEDLE
    assert (job.refresh().failures, job.refresh().crashes) == (0, 0)


def test_a_job_that_is_replaced_needs_the_key_of_what_replaces_it(make, store):
    by = Unique(by=lambda payload: 1, on_conflict="replace")
    worker = make(store, encrypt=[OLD, NEW])
    job = worker.send("old", task="t", unique=by)
    worker._config = worker._drafting._config = make(":memory:", encrypt=[NEW, OLD])._config

    assert worker.send("new", task="t", unique=by).id == job.id
    assert stored_tasks(worker) == [f"t#{worker._config.keyring.key_id}"]
    assert worker.job(job.id).refresh().payload == '"new"'


def test_jobs_from_before_encryption_run_and_show_as_they_are(started, shared):
    before = started(shared, encrypt=False, queues=("none",)).send("plain", task="t", queue="default")

    worker = started(shared, encrypt=OLD, handlers={"t": lambda text: text})

    assert before.wait(WAIT_S).state is State.COMPLETED
    assert worker.job(before.id).result(WAIT_S) == "plain"
    with pytest.raises(KeyMissing):
        before.result(WAIT_S)
    assert before.refresh().result == f'"<encrypted, key {worker._config.keyring.key_id}>"'


def test_a_reader_without_the_key_sees_what_is_not_private(started, make, shared):
    worker = with_handlers(started(shared, encrypt=OLD, retry=NOW))
    rows_of_every_kind(worker)
    key_id = worker._config.keyring.key_id

    blind = make(shared, encrypt=False, name="blind")

    records = [blind.job(record.id).refresh() for record in blind.jobs()]
    assert NEEDLE not in repr(records)
    assert f"<encrypted, key {key_id}>" in repr(records)
    (failed,) = (record for record in records if record.errors)
    assert (failed.errors[0].type, failed.errors[0].traceback) == ("ValueError", "")
    (steps,) = blind.jobs(task="steps")
    assert blind.job(steps.id).progress.share == 0.5
    with pytest.raises(JobFailed, match="<encrypted, key"):
        blind.job(failed.id).result(0)


def test_what_is_unique_stays_so_and_its_hash_tells_nothing(make, store):
    worker, by = make(store, encrypt=OLD), Unique(by=lambda payload: payload["user"])
    one = worker.send({"user": 7}, task="t", unique=True)
    assert worker.send({"user": 7}, task="t", unique=True).id == one.id
    assert worker.send({"user": 8}, task="t", unique=True).id != one.id
    other = worker.send({"user": 7, "n": 1}, task="u", unique=by)
    assert worker.send({"user": 7, "n": 2}, task="u", unique=by).id == other.id

    with worker.opened().sql_look() as look:
        hashes = {row[0] for row in look.rows("SELECT unique_key FROM {job} WHERE unique_key IS NOT NULL")}
    plain = make(":memory:", encrypt=False)
    plain.send({"user": 7}, task="t", unique=True)
    with plain.opened().sql_look() as look:
        assert look.rows("SELECT unique_key FROM {job}")[0][0] not in hashes


def test_a_value_that_was_moved_or_changed_makes_the_job_dead_and_is_told(started, store):
    worker = started(store, encrypt=OLD, handlers={"t": lambda text: text, "u": lambda text: text})
    moved, changed = (worker.send(NEEDLE, task=task, delay=3600) for task in ("t", "u"))
    with worker.opened().sql() as sql:
        ((text,),) = sql.rows("SELECT payload FROM {job} WHERE id = ?", changed.id)
        sql.change("UPDATE {job} SET payload = ?, due_at = 0 WHERE id = ?", text, moved.id)
        sql.change(
            "UPDATE {job} SET payload = ?, due_at = 0 WHERE id = ?", text[:-8] + "AAAAAAA=", changed.id
        )
    worker.nudge()

    for job in (moved, changed):
        record = finished(job)
        assert (record.state, record.attempt) == (State.DEAD, 1)
        assert record.errors[0].type == "NotDecryptable"
        assert record.payload == '"<cannot be decrypted>"'
