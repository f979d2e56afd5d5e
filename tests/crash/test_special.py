"""
Keys, limits and followers, while their workers are killed at random.

What a handler does is written to a ledger, a line at a time; a limit is watched by locks on
files, which the system lets go of when a process dies.
"""

from __future__ import annotations

import os
import random
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest

from dutiful import Handler, Limit, State, Worker
from tests.worker.tools import script

KILLS = int(os.environ.get("DUTIFUL_TEST_KILLS", "60")) // 6
LIMIT = 2
SOURCE = """
    import fcntl
    ledger = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND)
    worker = Worker(sys.argv[1], concurrency=6, max_crashes=1000)

    def note(*words):
        os.write(ledger, (" ".join(map(str, words)) + "\\n").encode())

    @worker.handler("key")
    def keyed(payload):
        note("key", *payload)
        time.sleep(0.002)

    @worker.handler("limit", limit=Limit(concurrency=2))
    def limited(n):
        for at in range(2):
            slot = os.open(f"{sys.argv[2]}.{at}", os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                os.close(slot)
        else:
            note("over", n)
            return
        time.sleep(0.002)
        os.close(slot)

    @worker.handler("first")
    def first(payload):
        note("first", *payload)

    @worker.handler("then")
    def then(group):
        note("then", group)

    worker.start()
    say("started")
    time.sleep(600)
"""


@pytest.mark.parametrize("kind", ["file", "postgres"])
def test_order_limits_and_followers_hold_whoever_is_killed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = str(tmp_path / "jobs.db") if kind == "file" else request.getfixturevalue("database_url")
    ledger = tmp_path / "ledger"
    ledger.touch()
    client = Worker(store, handlers={"limit": Handler(print, limit=Limit(concurrency=LIMIT))})
    client.send_many([[f"k{n % 7}", n] for n in range(700)], task="key", key=lambda payload: payload[0])
    client.send_many(range(200), task="limit")
    for group in range(60):
        parents = client.send_many([[group, n] for n in range(4)], task="first")
        client.send(group, task="then", after=parents)
    total = 700 + 200 + 60 * 5

    chance = random.Random(8)
    with ExitStack() as programs:

        def begin():
            made = programs.enter_context(script(tmp_path, SOURCE, store, ledger))
            made.wait_for("started")
            return made

        alive = [begin(), begin()]
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.01, 0.3))  # no fact to wait for: any moment will do
            alive.pop(chance.randrange(2)).kill()
            alive.append(begin())
        alive[0].wait_until(lambda: client.counts().by_state[State.COMPLETED] == total, 60)
    client.stop()

    lines = [line.split() for line in ledger.read_text().splitlines()]
    assert [line for line in lines if line[0] == "over"] == []
    ran: dict[str, list[int]] = defaultdict(list)
    done: dict[str, set[str]] = defaultdict(set)
    for what, *words in lines:
        if what == "key":
            ran[words[0]].append(int(words[1]))
        elif what == "first":
            done[words[0]].add(words[1])
        else:
            assert len(done[words[0]]) == 4, f"group {words[0]} went on with {done[words[0]]}"
    for key, numbers in ran.items():
        assert numbers == sorted(numbers), key  # one may run again after a kill, but none before its turn
        assert sorted(set(numbers)) == list(range(int(key[1:]), 700, 7))
    assert sum(line[0] == "then" for line in lines) >= 60
