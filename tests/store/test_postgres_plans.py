"""
Each statement goes by the index that its comment names, at every size of the table.

Our plans are generic, and kept: so what counts is that the planner has no other way, neither while the
table is new and empty nor when it is large. Both are explained, with the settings of our connections.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from dutiful.store import postgres_look, postgres_step, postgres_upkeep
from dutiful.store.contract import Aged, Draft, Outcome, Take, Work
from dutiful.store.postgres import PostgresStore
from dutiful.store.postgres_access import Connection
from dutiful.store.postgres_sql import _ours
from dutiful.store.special import ageing, gates
from tests.store import inside_postgres as inside

PK = "job_pkey"
CLAIM, SUSPECT, RUNNING, FINISHED = "job_claim", "job_suspect", "job_running", "job_finished"
DEAD, PARKED = "job_dead", "job_parked"
ERROR = "error_pkey"

STATEMENTS = [
    ("complete", postgres_step.COMPLETE[True], {PK}),
    ("complete and delete", postgres_step.COMPLETE[False], {PK}),
    ("forget errors", postgres_step._FORGET_ERRORS, {PK, ERROR}),
    ("ack", postgres_step.ACK, {PK}),
    ("ack with errors", postgres_step._ACK_WITH_ERRORS, {PK}),
    ("take", postgres_step.due(), {CLAIM}),
    ("take, skipping", postgres_step.due(skip=True), {CLAIM}),
    ("take suspects", postgres_step.due(suspects=True), {SUSPECT}),
    ("take old ones", postgres_step.AGED[False], {CLAIM}),
    ("take old ones, skipping", postgres_step.AGED[True], {CLAIM}),
    ("look who has waited long", _ours(ageing.statement(skip=False)), {CLAIM}),
    ("look who has waited long, skipping", _ours(ageing.statement(skip=True)), {CLAIM}),
    ("next of a limit", _ours(gates.FIRST_IN_POOL), {"job_pool"}),
    ("oldest of a limit", _ours(gates.OLDEST_IN_POOL), {"job_pool_age"}),
    ("claim", postgres_step.CLAIM, {PK}),
    ("fused, deleting", postgres_step.FUSED[True, False, True], {PK}),
    ("fused, keeping", postgres_step.FUSED[True, True, True], {PK}),
    ("unfinished", postgres_step.UNFINISHED, {CLAIM, SUSPECT, RUNNING, "job_blocked"}),
    (
        "counts",
        postgres_look.COUNTS,
        {CLAIM, SUSPECT, RUNNING, FINISHED, DEAD, PARKED, "job_blocked"},
    ),
    ("next due", postgres_look.next_due(suspects=False, skip=True), {CLAIM}),
    ("next suspect", postgres_look.next_due(suspects=True, skip=False), {SUSPECT}),
    ("parked tasks", postgres_look._PARKED, {PARKED}),
    ("park", postgres_upkeep.PARK, {CLAIM, PK}),
    ("unpark", postgres_upkeep.UNPARK, {PARKED, PK}),
    ("prune", postgres_upkeep.PRUNE, {FINISHED, PK, ERROR, "step_pkey", "after_job", "after_open"}),
    ("retry", postgres_upkeep.edit_sql("retry"), {PK}),
    ("cancel", postgres_upkeep.edit_sql("cancel"), {PK}),
    ("delete", postgres_upkeep.edit_sql("delete"), {PK}),
    ("ask to stop", postgres_upkeep.ASK_TO_STOP, {PK}),
]


def plan(db: Connection, sql: str) -> list[str]:
    """Return the lines of the generic plan."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        name = match[1] or f"#{len(names)}"
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    text = re.sub(r"%(?:\((\w+)\))?[sb]", number, sql)
    db.run(f"PREPARE explained AS {text}")
    try:
        values = f"({', '.join(['NULL'] * len(names))})" if names else ""
        return [line for (line,) in db.run(f"EXPLAIN EXECUTE explained{values}").fetchall()]
    finally:
        db.run("DEALLOCATE explained")


def indexes(lines: list[str]) -> set[str]:
    """Return the indexes of the jobs and their errors that a plan goes by, and what it reads whole."""
    found = set()
    for line in lines:
        if match := re.search(r"Index (?:Only )?Scan (?:Backward )?(?:using|on) (\w+)", line):
            found.add(match[1])
        elif match := re.search(r"Seq Scan on (job|error)\b", line):
            found.add(f"all of {match[1]}")
    return found


def unbounded(lines: list[str]) -> list[str]:
    """Return the index scans that have no condition on the index: they read all of it."""
    return [
        line
        for line, after in zip(lines, [*lines[1:], ""], strict=True)
        if re.search(r"Index (?:Only )?Scan", line) and "Index Cond" not in after
    ]


@pytest.fixture(scope="module", params=["empty", "large"])
def db(request, postgres_url: str) -> Iterator[Connection]:
    """A connection of ours to a store that is new, or has 100,000 jobs and statistics."""
    from tests.servers import shared

    with shared.fresh_database(postgres_url) as url:
        with closing(inside.opened(url)) as store, store._access.borrowed() as db:
            if request.param == "large":
                fill(db, 100_000)
                db.run("ANALYZE")
            yield db


def fill(db: Connection, count: int) -> None:
    """Store jobs in every state, most of them waiting."""
    db.run(
        "INSERT INTO dutiful.job"
        " (id, due_at, created_at, finished_at, owner, crashes, state, queue, task, parked_at)"
        " SELECT n, n, n, n, n %% 7, (n %% 50 = 0)::int,"
        "        (ARRAY['pending', 'pending', 'pending', 'running', 'completed', 'dead'])[1 + n %% 6],"
        "        'q', 't', CASE WHEN n %% 100 = 0 THEN n END"
        "   FROM generate_series(1, %s) AS n",
        (count,),
    )


@pytest.mark.parametrize(("sql", "by"), [row[1:] for row in STATEMENTS], ids=[row[0] for row in STATEMENTS])
def test_a_statement_goes_by_its_index(db: Connection, sql: str, by: set[str]) -> None:
    assert indexes(plan(db, sql)) == by


WHOLE = {"unfinished", "counts"}  # they count all that a partial index holds


@pytest.mark.parametrize("sql", [row[1] for row in STATEMENTS if row[0] not in WHOLE])
def test_no_statement_reads_a_whole_index(db: Connection, sql: str) -> None:
    """Only where it takes the first one or two of an order, and a limit ends it."""
    lines = plan(db, sql)
    ordered = [line for line in unbounded(lines) if not is_limited(lines, line)]

    assert ordered == []


def is_limited(lines: list[str], line: str) -> bool:
    """Whether the node above has a limit, or a minimum, which is one."""
    above = [other for other in lines[: lines.index(line)] if depth(other) < depth(line)]
    return bool(above) and any("Limit" in other for other in above[-3:])


def depth(line: str) -> int:
    return len(line) - len(line.lstrip())


def test_the_claim_sorts_nothing(db: Connection) -> None:
    """The index has the order; a sort would read all that is due."""
    for suspects in (False, True):
        for skip in (False, True):
            assert not any(
                "Sort" in line for line in plan(db, postgres_step.due(suspects=suspects, skip=skip))
            )
        assert not any("Sort" in line for line in plan(db, postgres_step.AGED[suspects]))
        assert not any("Sort" in line for line in plan(db, _ours(ageing.statement(skip=suspects))))


# --- what lies in the way ------------------------------------------------------------------------


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    store = inside.opened(database_url)
    yield store
    store.close()


def step(store: PostgresStore, **wishes) -> Outcome:
    outcome = Outcome()
    store.exchange(Work(**wishes), outcome)
    return outcome


def touched(store: PostgresStore, sql: str, values: dict[str, object]) -> int:
    """Return how many pages a statement reads."""
    with store._access.borrowed() as db:
        db.run("BEGIN")
        rows = db.run(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", values).fetchall()
        db.run("ROLLBACK")
    (first,) = [line for (line,) in rows if "Buffers:" in line][:1]
    return sum(map(int, re.findall(r"(?:hit|read)=(\d+)", first)))


def test_future_jobs_of_a_high_priority_are_not_in_the_way(store: PostgresStore) -> None:
    """Of a hundred thousand a claim sees a page or two; as many behind it make no difference either."""
    owner = store.join("w", ["q"], 1)
    step(store, drafts=[Draft("t", "q", ["1"] * 20)])
    values = {"queue": "q", "limit": 10}
    alone = touched(store, postgres_step.due(), values)
    with store._access.borrowed() as db:
        db.run(
            "INSERT INTO dutiful.job (id, due_at, created_at, priority, state, queue, task)"
            " SELECT n, 9e15, 1, 5, 'pending', 'q', 't' FROM generate_series(1000001, 1100000) AS n"
        )

    crowded = touched(store, postgres_step.due(), values)
    claims = step(store, take=Take(owner, ("q",), 10)).claims

    assert len(claims) == 10
    assert crowded <= alone + 20


def test_old_jobs_are_found_at_once_among_many(store: PostgresStore) -> None:
    """Behind a hundred thousand urgent ones, and with as many of their own age."""
    owner = store.join("w", ["q"], 1)
    for at, priority in ((1_000_001, 5), (2_000_001, 0)):
        with store._access.borrowed() as db:
            db.run(
                "INSERT INTO dutiful.job (id, due_at, created_at, priority, state, queue, task)"
                " SELECT n, n, 1, %s, 'pending', 'q', 't' FROM generate_series(%s, %s) AS n",
                (priority, at, at + 99_999),
            )
    values = {"queue": "q", "limit": 3, "priority": 0, "till": 9_000_000}

    pages = touched(store, postgres_step.AGED[False], values)
    with store.sql_look() as look:
        seen, _ = ageing.levels(look, "q")
    claims = step(store, take=Take(owner, ("q",), 9, aged=Aged((("q", 0),), 9_000_000, 3))).claims

    assert [(level.priority, level.due_at) for level in seen] == [(5, 1_000_001), (0, 2_000_001)]
    assert [claim.id for claim in claims[:4]] == [2_000_001, 2_000_002, 2_000_003, 1_000_001]
    assert pages < 20


def test_a_plan_made_on_an_empty_table_holds_when_it_is_large(store: PostgresStore) -> None:
    """As a worker has it that was started before the first job: a completion looks at its own row alone."""
    owner = store.join("w", ["q"], 1)
    step(store, drafts=[Draft("t", "q", ["1", "2"])])
    first, second = step(store, take=Take(owner, ("q",), 2)).claims
    step(store, completed=[(first.id, first.attempt)])  # from here on the statement has its plan
    with store._access.borrowed() as db:
        fill_after(db, second.id)
        before = scanned(db)

    step(store, completed=[(second.id, second.attempt)])

    with store._access.borrowed() as db:
        assert scanned(db) - before < 100


def fill_after(db: Connection, job_id: int) -> None:
    db.run(
        "INSERT INTO dutiful.job (id, due_at, created_at, owner, attempt, state, queue, task)"
        " SELECT %s + n, 1, 1, 1, 1, 'running', 'q', 't' FROM generate_series(1, 20000) AS n",
        (job_id,),
    )


def scanned(db: Connection) -> int:
    """Return how many index entries of the jobs this connection has read so far."""
    (count,) = db.one(
        "SELECT sum(pg_stat_get_xact_tuples_returned(indexrelid)"
        "         + pg_stat_get_tuples_returned(indexrelid))::bigint"
        "  FROM pg_index WHERE indrelid = 'dutiful.job'::regclass"
    )
    return int(count)
