"""Keys that change while there are jobs: nothing is lost, and in the end the old key is not needed."""

from __future__ import annotations

import json

import pytest

from dutiful import ConfigError, State
from dutiful.events import TasksParked
from tests.worker.sealed import (
    COLUMNS,
    NEEDLE,
    NEW,
    NOW,
    OLD,
    Letter,
    echo,
    rows_of_every_kind,
    with_handlers,
)
from tests.worker.tools import WAIT_S, background, ran, result, script


@pytest.fixture(params=["file", "memory", "postgres"])
def store(request, path):
    """A file, memory, and a database on a server."""
    if request.param == "postgres":
        return request.getfixturevalue("database_url")
    return ":memory:" if request.param == "memory" else str(path)


def test_keys_are_rotated_while_workers_run(started, shared):
    """The old one, both with the old one first, both with the new one first, the new one."""
    events, jobs = [], []
    for keys in (OLD, [OLD, NEW], [NEW, OLD]):
        worker = with_handlers(started(shared, encrypt=keys, retry=NOW))
        worker.on(TasksParked, events.append)
        jobs += [worker.send(Letter(NEEDLE), task="thread") for _ in range(5)]
        jobs.append(worker.send(Letter("later"), task="thread", delay=3600))
        assert [result(job).text for job in jobs if job.state is not State.PENDING] != []
        done = worker.rekey()
        assert done.left == {}
        worker.stop()

    last = started(shared, encrypt=NEW, handlers={"thread": echo})
    last.on(TasksParked, events.append)

    assert last.rekey().done == 0
    assert {last.job(job.id).result(WAIT_S).text for job in jobs if job.state is State.COMPLETED} == {NEEDLE}
    assert sorted(json.loads(each.payload)["text"] for each in last.jobs(state="pending")) == ["later"] * 3
    assert events == []


def readable(worker):
    """Return whether every value in the store opens with this worker's keys, and is encrypted."""
    with worker.opened().sql_look() as look:
        for table, column in COLUMNS:
            for (stored,) in look.rows(f"SELECT {column} FROM {{{table}}} WHERE {column} IS NOT NULL"):
                text = json.loads(stored)["message"] if column == "progress" else stored
                if text and not worker._config.keyring.is_current(text):
                    return False
    return NEEDLE in repr([worker.job(each.id).refresh() for each in worker.jobs()])


@pytest.mark.parametrize("before", [OLD, False], ids=["another key", "in clear"])
def test_rekey_encrypts_what_is_stored_with_the_first_key(started, make, store, before):
    worker = with_handlers(started(store, encrypt=before, retry=NOW))
    seen = rows_of_every_kind(worker)
    if store == ":memory:":
        other = worker  # its memory is its own
        other._config = make(":memory:", encrypt=[NEW, OLD])._config
    else:
        other = make(store, encrypt=[NEW, OLD], name="other")

    done = other.rekey()

    assert done.left == {}
    assert done.done >= len(seen)
    assert readable(other)
    assert other.rekey().done == 0


def test_rekey_leaves_what_it_cannot_read(make, store):
    worker = make(store, encrypt=OLD)
    worker.send(NEEDLE, task="t")
    key_id = worker._config.keyring.key_id
    worker._config = make(":memory:", encrypt=NEW)._config

    done = worker.rekey()

    assert (done.done, done.left) == (0, {key_id: 1})


def test_rekey_without_a_key_is_refused(make, path):
    with pytest.raises(ConfigError, match="needs a key"):
        make(path, encrypt=False).rekey()


REKEY = """
worker = Worker(sys.argv[1], encrypt=sys.argv[2].split(","))
print(worker.rekey().left)
worker.stop()
"""


@pytest.mark.parametrize("nth", [1, 3])
def test_a_rekey_that_is_killed_is_repeated(tmp_path, make, shared, nth):
    client = make(shared, encrypt=OLD)
    client.send_many([NEEDLE] * 350, task="t")
    keys = f"{NEW},{OLD}"

    with script(tmp_path, REKEY, shared, keys, env={"DUTIFUL_CRASHPOINT": f"rekey.between:{nth}"}) as killed:
        assert killed.wait() == 137
    both = make(shared, encrypt=[NEW, OLD], name="both")
    assert {json.loads(each.payload) for each in both.jobs(limit=1000)} == {NEEDLE}  # none is lost meanwhile
    ran(tmp_path, REKEY, shared, keys)

    new = make(shared, encrypt=NEW, name="new")
    assert [json.loads(each.payload) for each in new.jobs(limit=1000)] == [NEEDLE] * 350


def test_two_rekeys_at_once_and_workers_beside_them(started, make, shared):
    worker = started(shared, encrypt=[OLD, NEW], handlers={"t": lambda text: text})
    jobs = worker.send_many([NEEDLE] * 500, task="t")
    others = [make(shared, encrypt=[NEW, OLD], name=f"other{n}") for n in range(2)]

    for done in [background(other.rekey) for other in others]:
        assert done.result(WAIT_S).left == {}

    assert {result(job) for job in jobs} == {NEEDLE}
    assert others[0].rekey().left == {}
    new = make(shared, encrypt=NEW, name="new")
    assert {json.loads(each.payload) for each in new.jobs(limit=1000)} == {NEEDLE}
