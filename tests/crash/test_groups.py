"""
Groups, while their senders and workers are killed: a callback runs with all members, or never.

What handlers do is written to a ledger, a line at a time.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest

from dutiful import Group, Link, State, Worker
from tests.crash.harness import CRASHED, crashing
from tests.worker.tools import result, script, until

KILLS = int(os.environ.get("DUTIFUL_TEST_KILLS", "60")) // 6
MEMBERS = 3500  # the callback, four chunks and the closing: six commits
COMMITS = 6

SENDER = """
    from dutiful import Group, Link
    worker = Worker(sys.argv[1])
    Group(range(int(sys.argv[2])), task="member", then=Link("then", task="then")).send(worker)
    say("sent")
"""
WORKER = """
    ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
    worker = Worker(sys.argv[1], concurrency=6, max_crashes=1000, keep_completed=Keep(count=50))

    def note(*words):
        os.write(ledger, (" ".join(map(str, words)) + "\\n").encode())

    @worker.handler("member")
    def member(payload):
        note("member", *payload)
        time.sleep(float(sys.argv[3]))
        return payload[1]

    @worker.handler("then")
    def then(group, ctx):
        results = list(ctx.after)
        assert results == list(range(len(results))), results
        note("then", group, len(results))

    worker.start()
    say("started")
    time.sleep(600)
"""


@pytest.fixture(params=["file", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "jobs.db")
    return str(request.getfixturevalue("database_url"))


@pytest.mark.parametrize("nth", range(1, COMMITS + 1))
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_sender_that_dies_leaves_a_whole_group_or_a_callback_that_never_runs(
    store: str, tmp_path: Path, moment: str, nth: int
) -> None:
    with script(tmp_path, SENDER, store, MEMBERS, env=crashing(f"send.{moment}_commit", nth)) as sender:
        status = sender.wait(60)
    # Chunks that wait may share a commit: then there are not so many.
    assert status == CRASHED or (status == 0 and nth > COMMITS - 2), sender.errors
    ran: list[object] = []
    worker = Worker(
        store, handlers={"member": lambda n: n, "then": lambda payload, ctx: ran.append(list(ctx.after))}
    )
    callbacks = worker.jobs(state="blocked")
    assert len(callbacks) == (0 if (moment, nth) == ("before", 1) else 1)
    is_whole = any(callback.held == "after" for callback in callbacks)
    members = worker.counts().by_state[State.PENDING]
    assert members == MEMBERS if is_whole else status == CRASHED
    with worker:
        until(lambda: worker.counts().by_state[State.COMPLETED] >= members)
        if is_whole:
            until(lambda: ran)
        elif callbacks:
            group = worker.group(callbacks[0].id)
            until(lambda: group.progress.done == members)
            assert (group.progress.total, group.refresh().held) == (None, "group")
            with worker.opened().sql() as sql:  # an hour goes by
                sql.change("UPDATE {job} SET expires_at = 1 WHERE held = 'group'")
            until(lambda: group.state is State.DEAD)
            assert group.errors[0].type == "NeverSent"

    assert ran == ([list(range(MEMBERS))] if is_whole else [])


@pytest.mark.parametrize(("size", "nth"), [(3, 1), (3, 2), (3, 3), (3, 4), (1500, 2)])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_that_dies_as_members_end_forgets_no_callback(
    store: str, tmp_path: Path, moment: str, nth: int, size: int
) -> None:
    """Three are worked off so slowly that each has a commit of its own, the last one and the callback too."""
    job_s = 0.02 if size == 3 else 0
    client = Worker(store)
    group = Group(([0, n] for n in range(size)), task="member", then=Link(0, task="then")).send(client)
    ledger = tmp_path / "ledger"
    ledger.touch()
    source = WORKER.replace("concurrency=6", "concurrency=1")
    env = crashing(f"ack.{moment}_commit", nth)
    with script(tmp_path, source, store, ledger, job_s, env=env) as dying:
        status = dying.wait(60)
    assert status == CRASHED, dying.errors
    with script(tmp_path, source, store, ledger, job_s):
        result(group)
    client.stop()

    lines = [line.split() for line in ledger.read_text().splitlines()]
    ran = [line for line in lines if line[0] == "then"]
    assert {tuple(line) for line in ran} == {("then", "0", str(size))}
    assert len(ran) <= 2  # again, if the worker died before its end was written
    first = lines.index(ran[0])
    assert {line[2] for line in lines[:first]} == set(map(str, range(size)))


def test_groups_of_several_senders_come_to_their_ends_whoever_is_killed(store: str, tmp_path: Path) -> None:
    """Workers and senders die at random moments; senders that lived have their callbacks run, once each."""
    ledger = tmp_path / "ledger"
    ledger.touch()
    client = Worker(store)
    groups = 30
    sizes = [1 + (7 * n) % 60 for n in range(groups - 2)] + [1200, 2300]
    chance = random.Random(11)
    with ExitStack() as programs:

        def begin():
            made = programs.enter_context(script(tmp_path, WORKER, store, ledger, 0))
            made.wait_for("started")
            return made

        alive = [begin(), begin()]
        for group, size in enumerate(sizes):
            Group(([group, n] for n in range(size)), task="member", then=Link(group, task="then")).send(
                client
            )
            if group * KILLS // groups != (group + 1) * KILLS // groups:
                time.sleep(chance.uniform(0, 0.2))  # no fact to wait for: any moment will do
                alive.pop(chance.randrange(2)).kill()
                alive.append(begin())
        alive[0].wait_until(lambda: not _unfinished(client), 60)
    dead = client.counts().by_state[State.DEAD]
    client.stop()

    done: dict[str, set[str]] = defaultdict(set)
    ended: dict[str, int] = defaultdict(int)
    for what, group, *rest in (line.split() for line in ledger.read_text().splitlines()):
        if what == "member":
            done[group].add(rest[0])
        else:
            assert len(done[group]) == int(rest[0]) == sizes[int(group)]
            ended[group] += 1
    assert dead == 0
    assert sorted(map(int, ended)) == list(range(groups))
    assert sum(ended.values()) - groups <= KILLS  # one that was killed in it may run again


def _unfinished(worker: Worker) -> int:
    by_state = worker.counts().by_state
    return by_state[State.PENDING] + by_state[State.BLOCKED] + by_state[State.RUNNING]
