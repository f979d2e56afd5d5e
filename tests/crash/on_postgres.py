"""
The books of programs on PostgreSQL (programs/postgres_app.py), and how these are started.

To the sentences of `harness.Books` they add what only a server's outage can break, and what the user's own
tables tell:

- refused: a job that is stored though its `send` raised (and did not say that nobody knows);
- twice: a completion that was recorded a second time: triggers on the table of the jobs count them;
- apart: a job's completion and what its handler wrote in `ctx.transaction()` do not agree.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg

from dutiful import Worker
from tests.crash.harness import WAIT_S, Books, Program, Row, program
from tests.crash.hosts import Host

APP = Path(__file__).parent / "programs" / "postgres_app.py"
ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("DUTIFUL_TEST_KILLS", "60"))
NUMBERS_EACH = 1_000_000  # payload numbers set aside for each process
FINISH_S = WAIT_S + KILLS / 4  # an outage of a second leaves some hundreds of jobs

TABLES: tuple[LiteralString, ...] = (
    "CREATE TABLE done (n bigint, job bigint, attempt int)",
    "CREATE TABLE completion (job bigint, attempt int)",
    """
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO public.completion VALUES (NEW.id, NEW.attempt);
        RETURN NULL;
    END $$
    """,
    """
    CREATE TRIGGER note_insert AFTER INSERT ON dutiful.job
    FOR EACH ROW WHEN (NEW.state = 'completed') EXECUTE FUNCTION note()
    """,
    # Not each change of one that is completed: a crash that was none is taken back afterwards.
    """
    CREATE TRIGGER note_update AFTER UPDATE ON dutiful.job
    FOR EACH ROW WHEN (NEW.state = 'completed' AND (NEW.state, NEW.owner, NEW.attempt, NEW.finished_at)
                       IS DISTINCT FROM (OLD.state, OLD.owner, OLD.attempt, OLD.finished_at))
    EXECUTE FUNCTION note()
    """,
)


@dataclass(slots=True)
class PostgresBooks(Books):
    """The ledger, the acks and the deaths of one test, and the database at `url`."""

    url: str = ""

    @classmethod
    def new(cls, folder: Path, url: str) -> PostgresBooks:
        """Make the store and the user's tables."""
        with Worker(url) as worker:
            worker.counts()
        with psycopg.connect(url, autocommit=True) as db:
            for statement in TABLES:
                db.execute(statement)
        return cls(folder, url=url)

    def ask(self, query: LiteralString) -> list[tuple[Any, ...]]:
        """Return the rows that the database has, directly."""
        with psycopg.connect(self.url, autocommit=True) as db:
            return db.execute(query).fetchall()

    def rows(self) -> list[Row]:
        found = self.ask("SELECT id, state, payload FROM dutiful.job ORDER BY id")
        return [Row(job_id, state, int(payload)) for job_id, state, payload in found]

    def unfinished(self) -> int:
        return int(self.ask("SELECT count(*) FROM dutiful.job WHERE state IN ('pending', 'running')")[0][0])

    def noted(self, word: str) -> set[int]:
        """Return the numbers of the sends that came to this: ACK, REFUSED or UNKNOWN."""
        lines = self.acks.read_text().splitlines() if self.acks.exists() else []
        return {int(line.split()[2]) for line in lines if line.startswith(word)}

    def damage(self) -> list[str]:
        return [*self._refused(), *self._twice(), *self._apart()]

    def broken(self) -> list[str]:
        """Return every broken promise, but for repeats and overlaps: an outage may be a reason for those."""
        return [each for each in self.problems() if not each.startswith(("repeated", "overlap"))]

    def _refused(self) -> Iterator[str]:
        refused = self.noted("REFUSED")
        yield from (f"refused, and stored: {row}" for row in self.rows() if row.number in refused)

    def _twice(self) -> Iterator[str]:
        again = self.ask("SELECT job, array_agg(attempt) FROM completion GROUP BY job HAVING count(*) > 1")
        yield from (f"twice: job {job} was completed by its attempts {attempts}" for job, attempts in again)

    def _apart(self) -> Iterator[str]:
        done = sorted(number for (number,) in self.ask("SELECT n FROM done"))
        completed = sorted(row.number for row in self.rows() if row.state == "completed" and row.number % 2)
        if done != completed:
            odd = sorted(set(done) ^ set(completed))[:10]
            yield f"apart: {len(done)} written, {len(completed)} completed; {odd} are one without the other"

    def figures(self) -> str:
        """Return in one line what there was."""
        refused, unknown = len(self.noted("REFUSED")), len(self.noted("UNKNOWN"))
        return (
            f"{len(self.acked())} acknowledged, {refused} refused, {unknown} unknown, "
            f"{len(self.rows())} stored, {self.repeats()} runs again, {len(self.deaths)} deaths"
        )


def app(
    books: PostgresBooks, *options: str, first: int = 0, url: str = "", on: Host | None = None
) -> Program:
    """Start a program; `url`: another way to the database. `on`: another host than this."""
    environment = {"PYTHONPATH": str(ROOT), **(on.env if on else {})}
    wrapper = on.wrapper if on else ()
    numbers = ("--first", str(first * NUMBERS_EACH))
    return Program(APP, books.folder, url or books.url, *numbers, *options, env=environment, wrapper=wrapper)


def end(member: Program) -> None:
    """Stop it in good order."""
    member.signal(signal.SIGTERM)
    assert member.wait() == 0, member.errors


def finish(books: PostgresBooks, *options: str) -> None:
    """Let one undisturbed worker run what is left, and stop it properly."""
    with program(APP, books.folder, books.url, *options, env={"PYTHONPATH": str(ROOT)}) as last:
        last.wait_for("ready")
        books.wait_until_finished(FINISH_S)
        end(last)
