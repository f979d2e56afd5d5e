"""
Each statement goes by the index that its comment names, and none walks through all jobs.

What the store really executes is looked at: every statement is traced while it does
everything it can, then explained. So a new statement is seen without being listed here.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from dutiful.config import Keep
from dutiful.job import Ack, ErrorInfo, State
from dutiful.store import sqlite_look, sqlite_step, sqlite_upkeep
from dutiful.store.contract import Aged, Draft, Outcome, Query, Special, Take, Unique, Work
from dutiful.store.special import ageing, clockwork, groups
from dutiful.store.special.release import FOLLOWERS_AT_ONCE
from dutiful.store.sqlite import SqliteStore
from tests.store import inside

PK = "PRIMARY KEY"
BOOM = ErrorInfo("E", "m", "t")


@pytest.fixture
def store(tmp_path) -> Iterator[SqliteStore]:
    """A file with jobs in all states, and ANALYZE never run, as with users."""
    store = SqliteStore(str(tmp_path / "jobs.db"))
    store.open()
    owner = store.join("w", ["q"], 1, [])
    _step(store, drafts=[Draft("t", "q", ["1"] * 40, priority=p) for p in range(3)])
    outcome = _step(store, take=Take(owner, ("q",), 60))
    ends = [State.COMPLETED, State.DEAD, State.CANCELLED, State.PENDING]
    acks = [Ack(c.id, 1, ends[c.id % 4], 0, c.id % 2, error=BOOM) for c in outcome.claims[:40]]
    _step(store, acks=acks)
    yield store
    store.close()


def _step(store, **wishes) -> Outcome:
    outcome = Outcome()
    store.exchange(Work(**wishes), outcome)
    return outcome


def _plan(db: sqlite3.Connection, sql: str) -> list[str]:
    # Traced statements have their values in place; the schema's own have "?".
    marks = {int(n) for n in re.findall(r"\?(\d+)", sql)}
    names = re.findall(r"(?<![:\w]):([a-z]\w*)", sql)
    values: object = dict.fromkeys(names, 0) if names else [0] * (max(marks, default=0) or sql.count("?"))
    return [_str(row[3]) for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall()]


def _str(value) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _on_jobs(plan: list[str]) -> list[str]:
    """Return the plan's lines that are about the jobs' table or one of its indexes."""
    return [line for line in plan if re.match(r"(SCAN|SEARCH) (dutiful_job|j|job)\b", line)]


def _indexes(plan: list[str]) -> set[str]:
    found = set()
    for line in _on_jobs(plan):
        match = re.search(r"USING (?:COVERING )?INDEX (\w+)|USING INTEGER (PRIMARY KEY)", line)
        if line == "SEARCH dutiful_job":  # the largest id, at the end of the primary key
            found.add(PK)
        else:
            found.add(next(filter(None, match.groups())) if match else f"none: {line}")
    return found


CLAIM, SUSPECT = "dutiful_job_claim", "dutiful_job_suspect"
RUNNING, FINISHED = "dutiful_job_running", "dutiful_job_finished"
DEAD, PARKED, CANCEL = "dutiful_job_dead", "dutiful_job_parked", "dutiful_job_cancel"
POOL_AGE = "dutiful_job_pool_age"
LANE, POOL, UNIQUE = "dutiful_job_lane", "dutiful_job_pool", "dutiful_job_unique"
EXPIRES, BLOCKED, END = "dutiful_job_expires", "dutiful_job_blocked", "dutiful_job_end"

STATEMENTS = [
    ("take", sqlite_step.select_due(suspects=False, skip=False), {CLAIM}),
    ("take with suspects", sqlite_step.select_due(suspects=True, skip=True), {CLAIM, SUSPECT}),
    ("take old ones", sqlite_step.select_aged(skip=False), {CLAIM}),
    ("take old ones, skipping", sqlite_step.select_aged(skip=True), {CLAIM}),
    ("claim", sqlite_step._CLAIM, {PK}),
    ("ack", sqlite_step._ACK, {PK}),
    ("complete a run", sqlite_step._COMPLETE + sqlite_step._RUN, {PK}),
    ("complete a set", sqlite_step._COMPLETE + sqlite_step._SET, {PK}),
    ("delete a run", sqlite_step._DELETE + sqlite_step._RUN, {PK}),
    ("delete a set", sqlite_step._DELETE + sqlite_step._SET, {PK}),
    ("counts", sqlite_look._COUNTS, {CLAIM, SUSPECT, RUNNING, FINISHED, DEAD, PARKED, BLOCKED}),
    ("next due", sqlite_look._NEXT_DUE.format(crashes="=", skip=""), {CLAIM}),
    ("next suspect", sqlite_look._NEXT_DUE.format(crashes=">", skip=sqlite_look.SKIPPED), {SUSPECT}),
]


@pytest.mark.parametrize(
    ("sql", "indexes"), [row[1:] for row in STATEMENTS], ids=[row[0] for row in STATEMENTS]
)
def test_a_statement_goes_by_its_index(store: SqliteStore, sql: str, indexes: set[str]) -> None:
    assert _indexes(_plan(inside.writer(store), sql)) == indexes


TRACED = [
    ("count_unfinished", lambda s: s.unfinished(), {CLAIM, SUSPECT, RUNNING, BLOCKED}),
    ("get", lambda s: s.get([1, 2]), {PK}),
    ("owns", lambda s: sqlite_look.owns(inside.reader(s), _claim()), {PK}),
    ("parked_tasks", lambda s: sqlite_look.parked_tasks(inside.reader(s)), {PARKED}),
    ("park", lambda s: s.park({"t"}, ["q"], after_s=0, park_s=9), {PK, CLAIM}),
    ("unpark", lambda s: sqlite_upkeep.unpark(inside.writer(s), ["t"]), {PK, PARKED}),
    ("cancelled", lambda s: s.cancelled(1), {CANCEL}),
    ("running_of", lambda s: sqlite_upkeep.running_of(inside.writer(s), 1), {RUNNING}),
    ("give_back", lambda s: sqlite_upkeep.give_back(inside.writer(s), 1, 0), {RUNNING, CANCEL}),
    ("prune", lambda s: s.prune(Keep(count=0), limit=2), {PK, FINISHED}),
    ("retry", lambda s: s.edit([1, 2, 3], "retry"), {PK}),
    ("cancel", lambda s: s.edit([1, 2, 3], "cancel"), {PK}),
    ("delete", lambda s: s.edit([1, 2, 3], "delete"), {PK}),
    ("send with a key", lambda s: _send(s, Special(key="k")), {LANE, PK}),
    ("send with a limit", lambda s: _send(s, Special(pool="p", pool_size=2)), {POOL, POOL_AGE, PK}),
    (
        "send with both",
        lambda s: _send(s, Special(key="k", pool="p", pool_size=2)),
        {LANE, POOL, POOL_AGE, PK},
    ),
    ("send a unique one", lambda s: _send(s, Special(unique=ONCE), twice=True), {UNIQUE, PK}),
    ("send after others", lambda s: _send(s, Special(after=(1, 2))), {PK}),
    ("send a group", lambda s: _group(s), {CLAIM, PK}),  # noqa: PLW0108  # defined below
    ("tend", lambda s: _tend(s), {EXPIRES, BLOCKED, END, LANE, POOL, POOL_AGE, PK}),  # noqa: PLW0108  # defined below
    ("look who has waited long", lambda s: _levels(s), {CLAIM}),  # noqa: PLW0108  # defined below
    ("a whole life", lambda s: _live(s), {CLAIM, LANE, POOL, POOL_AGE, PK}),  # noqa: PLW0108  # defined below
]
ONCE = Unique("u", (State.PENDING, State.BLOCKED, State.RUNNING))


def _send(store, special, *, twice: bool = False) -> None:
    for _ in range(1 + twice):
        _step(store, drafts=[Draft("t", "special", ["1"], special=special)])


def _group(store) -> None:
    """In several steps, and with more members than one step tells of their end."""
    (ids,) = _step(store, drafts=[Draft("t", "group", ["1"], special=Special(gathers=True))]).stored
    owner = store.join("g", ["group"], 9)
    member = Special(member_of=ids[0])
    _step(store, drafts=[Draft("t", "group", ["1"] * (FOLLOWERS_AT_ONCE + 1), special=member)])
    _step(store, drafts=[Draft("t", "group", [], special=Special(closes=ids[0]))])
    claims = _step(store, take=Take(owner, ("group",), FOLLOWERS_AT_ONCE + 1)).claims
    _step(store, acks=[Ack(claim.id, 1, State.COMPLETED, 0, 0) for claim in claims])
    with store.sql_look() as look:
        groups.progress(look, ids[0])
        groups.members(look, ids[0], -1, 9, unfinished=True)


def _tend(store) -> None:
    """All that can be late: a retry that had stepped aside, an expiry, an end in a transaction."""
    both = Special(key="k", key_skips=True, pool="p", pool_size=2, expires_at=1)
    outcome = _step(store, drafts=[Draft("t", "special", ["1"], special=both)])
    db = inside.writer(store)
    (job_id,) = outcome.stored[0]
    db.execute(
        "UPDATE dutiful_job SET state = 'blocked', held = 'key', due_at = due_at + 1 WHERE id = ?", (job_id,)
    )
    db.execute("UPDATE dutiful_job SET held = 'end' WHERE id = 1")
    with store.sql_look() as look:
        found = clockwork.look(look, 0)
    clockwork.tend(store, found, "w")


def _levels(store) -> None:
    with store.sql_look() as look:
        ageing.levels(look, "q")
        ageing.levels(look, "q", {"t"}, below=3)


def _live(store) -> None:
    """Sent, claimed, tried again, completed, and followed."""
    owner = store.join("v", ["special"], 9)
    special = Special(key="k", pool="p", pool_size=2, deadline_s=9.0)
    (ids,) = _step(store, drafts=[Draft("t", "special", ["1", "2"], special=special)]).stored
    _send(store, Special(after=tuple(ids)))
    (claim,) = _step(store, take=Take(owner, ("special",), 9)).claims
    _step(store, acks=[Ack(claim.id, 1, State.PENDING, 1, 0, delay_s=0.0, special=True)])
    (claim,) = _step(store, take=Take(owner, ("special",), 9)).claims
    _step(store, acks=[Ack(claim.id, 2, State.DEAD, 1, 0, special=True)])


def _claim():
    from dutiful.job import Claim

    return Claim(1, 1, 0, 0, "t", "q", None)


def _traced(store: SqliteStore, action) -> list[str]:
    seen: list[str] = []
    for db in (inside.writer(store), inside.reader(store)):
        db.set_trace_callback(seen.append)
    try:
        action(store)
    finally:
        for db in (inside.writer(store), inside.reader(store)):
            db.set_trace_callback(None)
    return [sql for sql in seen if re.match(r"\s*(SELECT|UPDATE|DELETE|INSERT|WITH)", sql)]


@pytest.mark.parametrize(("action", "indexes"), [row[1:] for row in TRACED], ids=[row[0] for row in TRACED])
def test_an_action_goes_by_its_indexes(store: SqliteStore, action, indexes: set[str], monkeypatch) -> None:
    monkeypatch.setattr("dutiful.core.ageing.share", lambda _count, _now: 1)  # not by chance
    found: set[str] = set()
    for sql in _traced(store, action):
        with closing(sqlite3.connect(inside.path_of(store))) as db:
            found |= _indexes(_plan(db, sql))

    assert found == indexes


def test_nothing_that_the_store_does_walks_through_all_jobs(store: SqliteStore) -> None:
    """Not a bare SCAN in a whole life; `find` and the clock's step are the exceptions, which say so."""

    def all_of_it(store: SqliteStore) -> None:
        owner = store.join("v", ["q"], 1)
        outcome = _step(
            store, take=Take(owner, ("q", "r"), 9, suspects=1, known={"t"}, handoff=True), buffer=999
        )
        _step(store, drafts=[Draft("u", "q", ["1", "2"])], buffer=999)
        _step(
            store,
            take=Take(owner, ("q",), 99, known={"t"}),
            acks=[Ack(outcome.claims[0].id, 2, State.DEAD, 0, 0)],
        )
        for keep in (True, False):
            _step(
                store,
                completed=[(c.id, c.attempt) for c in outcome.claims[1 + keep :: 2]],
                keep_completed=keep,
            )
        store.counts()
        store.next_due_s(["q", "r"])
        store.beat(owner)
        store.cancelled(owner)
        store.unpark(None)
        store.prune(Keep(count=3), limit=5)
        store.tidy()
        store.rescue(lambda claim, ran: Ack(claim.id, claim.attempt, State.PENDING, 0, 0))
        store.leave(owner)

    statements = _traced(store, all_of_it)

    # The traced body of a trigger has its own rows in it; test_the_fused_step looks at that.
    statements = [sql for sql in statements if "dutiful_fused" not in sql and "new." not in sql]
    with closing(sqlite3.connect(inside.path_of(store))) as db:
        scans = {sql: line for sql in statements for line in _on_jobs(_plan(db, sql)) if _is_bare(line)}
    assert len(statements) > 20
    assert scans == {}


def _is_bare(line: str) -> bool:
    return line.startswith("SCAN") and "INDEX" not in line


@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_the_fused_step_goes_by_primary_key(store: SqliteStore, keep: bool, is_run: bool) -> None:
    """The triggers' bodies, as they are, with values in place of the inserted row."""
    ends = f"{sqlite_step._FUSED_ENDS[keep]} WHERE {sqlite_step._FUSED_IDS[is_run]};"
    body = ends + sqlite_step._FUSED_INSERT
    body = re.sub(r"new\.(completed_ids|ids|payloads|\w*json\w*)", "'[1,2]'", body)
    statements = [re.sub(r"new\.\w+", "1", part) for part in body.split(";") if part.strip()]
    plans = [line for sql in statements for line in _on_jobs(_plan(inside.writer(store), sql))]

    assert plans
    assert not any(_is_bare(line) for line in plans), plans
    assert all("PRIMARY KEY" in line for line in plans), plans


def test_find_walks_from_the_newest_down_and_sorts_nothing(store: SqliteStore) -> None:
    """By primary key, as its docstring says: no sorter, and below `before` at once."""
    (sql,) = _traced(store, lambda s: s.find(Query(task="t", before=50, states=(State.DEAD,))))
    plan = _plan(inside.writer(store), sql)

    assert not any("ORDER BY" in line for line in plan)
    assert _indexes(plan) == {PK}


@pytest.mark.parametrize("full", [False, True])
def test_the_claim_sorts_nothing(store: SqliteStore, full: bool) -> None:
    """The index has the order; a sorter would read all that is due."""
    for sql in (
        sqlite_step.select_due(suspects=full, skip=full),
        sqlite_step.select_aged(skip=full),
        ageing.statement(skip=full).replace("{job}", "dutiful_job").replace("{names}", "('t')"),
    ):
        assert not any("TEMP B-TREE" in line for line in _plan(inside.writer(store), sql))


def test_each_index_of_the_jobs_serves_a_statement(store: SqliteStore) -> None:
    """An index that nothing uses only costs writes."""
    rows = inside.writer(store).execute(
        "SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '%ON dutiful_job %'"
    )

    used = set().union(*(row[2] for row in STATEMENTS), *(row[2] for row in TRACED))
    assert {_str(name) for (name,) in rows.fetchall()} == used - {PK}


def test_old_jobs_are_found_at_once_among_many(store: SqliteStore) -> None:
    """Behind a hundred thousand urgent ones, and with as many of their own age."""
    owner = store.join("v", ["many"], 1)
    low = _step(store, drafts=[Draft("t", "many", ["1"] * 100_000)]).stored[0]
    high = _step(store, drafts=[Draft("t", "many", ["1"] * 100_000, priority=5)]).stored[0]
    steps: list[int] = []
    db = inside.writer(store)
    db.set_progress_handler(lambda: steps.append(1), 100)  # after each 100 of SQLite's instructions

    claims = _step(store, take=Take(owner, ("many",), 4, aged=Aged((("many", 0),), 2**60, 3))).claims

    db.set_progress_handler(None, 0)
    assert [claim.id for claim in claims] == [*low[:3], high[0]]
    assert len(steps) < 100
