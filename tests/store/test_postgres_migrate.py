"""The schema in PostgreSQL: made once, by whoever may; with the rights that the docs list, and no more."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

import dutiful
from dutiful import Context, SchemaTooNew, State, StoreError, StoreUnavailable, Worker
from dutiful.store import postgres_access, postgres_schema

DOCS = Path(__file__).parents[2] / "docs/postgres.md"
OPEN_AND_SEND = """
import sys
from dutiful import Worker
sys.stdin.readline()
worker = Worker(sys.argv[1])
worker.send_many([1, 2], task="t")
worker.stop()
"""
PROCESSES = 8


def on(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as db:
        cursor = db.execute(sql)
        return [] if cursor.description is None else cursor.fetchall()


def tables(url: str, schema: str = "dutiful") -> set[str]:
    rows = on(url, f"SELECT table_name FROM information_schema.tables WHERE table_schema = '{schema}'")
    return {str(row[0]) for row in rows}


ALL = {"meta", "job", "error", "worker", "after", "pool", "step", "event", "schedule", "pause"}


# --- made once ---------------------------------------------------------------------------------------


def test_eight_processes_start_at_once_on_an_empty_database(database_url: str) -> None:
    """One makes the schema, nobody fails, and all of their jobs are there."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_SEND, database_url],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(PROCESSES)
    ]
    for process in processes:  # all have started; off they go together
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    errors = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0] * PROCESSES, errors
    assert on(database_url, "SELECT count(*) FROM dutiful.job") == [(2 * PROCESSES,)]


@pytest.mark.parametrize("nth", [1, 4, 12])
def test_a_crash_in_the_middle_of_it_leaves_nothing(database_url: str, nth: int) -> None:
    env = os.environ | {"DUTIFUL_CRASHPOINT": f"migrate.middle:{nth}"}
    command = [sys.executable, "-m", "dutiful", "migrate", database_url]

    assert subprocess.run(command, env=env, timeout=60).returncode == 137
    assert tables(database_url) == set()
    assert dutiful.migrate(database_url).before == 0
    assert tables(database_url) == ALL


def test_it_says_what_was_done(database_url: str) -> None:
    first, second = dutiful.migrate(database_url), dutiful.migrate(database_url)

    assert (first.before, first.after) == (0, postgres_schema.SCHEMA_VERSION)
    assert second.before == second.after == first.after
    assert ":" not in first.store.partition("@")[0].partition("//")[2]  # no password


def test_old_workers_go_on_while_it_is_done(database_url: str) -> None:
    ran: list[int] = []
    with Worker(database_url, handlers={"t": ran.append}) as worker:
        for number in range(20):
            worker.send(number, task="t")
            dutiful.migrate(database_url)
        worker.stop(drain=True)

    assert sorted(ran) == list(range(20))


def test_a_newer_schema_is_used_if_it_says_that_older_programs_may(database_url: str) -> None:
    """So that a migration which only adds can be applied while old workers run, and start."""
    dutiful.migrate(database_url)
    on(database_url, "UPDATE dutiful.meta SET value = '99' WHERE key = 'schema_version'")
    ran: list[int] = []
    with Worker(database_url, handlers={"t": ran.append}) as worker:
        worker.send(1, task="t").wait(timeout=30)
    on(database_url, "UPDATE dutiful.meta SET value = '99' WHERE key = 'schema_min_code'")

    with pytest.raises(SchemaTooNew):
        Worker(database_url).counts()
    assert ran == [1]


def not_for_us_any_more(url: str) -> None:
    on(url, "UPDATE dutiful.meta SET value = '99' WHERE key LIKE 'schema_%'")


def test_who_connects_anew_to_a_schema_that_became_too_new_is_refused(database_url: str) -> None:
    ran: list[int] = []
    with Worker(database_url, handlers={"t": ran.append}) as worker, closing(_Client(database_url)) as client:
        client.worker.send(1, task="t").wait(timeout=30)
        not_for_us_any_more(database_url)
        on(
            database_url,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )

        for who in (worker, client.worker):
            with pytest.raises(SchemaTooNew, match="Upgrade"):
                who.send(2, task="t")
    assert on(database_url, "SELECT count(*) FROM dutiful.job") == [(1,)]


def test_open_connections_are_refused_too_a_little_later(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    with Worker(database_url, handlers={"t": ran.append}) as worker, closing(_Client(database_url)) as client:
        client.worker.send(1, task="t").wait(timeout=30)
        monkeypatch.setattr(postgres_access, "_MIN_CODE_EVERY_S", 0.0)
        not_for_us_any_more(database_url)

        for who in (worker, client.worker):
            with pytest.raises(SchemaTooNew, match="Upgrade"):
                who.send(2, task="t")
            with pytest.raises(SchemaTooNew):
                who.counts()
    assert on(database_url, "SELECT count(*) FROM dutiful.job") == [(1,)]


# --- switched off, and applied by others --------------------------------------------------------------


def test_switched_off_a_start_makes_nothing_and_says_what_to_do(database_url: str) -> None:
    with pytest.raises(StoreUnavailable, match="dutiful migrate"):
        Worker(f"{database_url}?dutiful_migrate=off").start()

    assert tables(database_url) == set()
    assert dutiful.migrate(f"{database_url}?dutiful_migrate=off").before == 0  # asked for by name
    Worker(f"{database_url}?dutiful_migrate=off").counts()


@pytest.mark.parametrize("schema", ["dutiful", "jobs_2"])
def test_the_sql_is_what_a_migration_does(database_url: str, schema: str) -> None:
    url = f"{database_url}?dutiful_schema={schema}"
    script = dutiful.migration_sql(url)
    assert tables(database_url, schema) == set()

    on(database_url, script)

    assert tables(database_url, schema) == ALL
    assert dutiful.migration_sql(url) == ""
    by_script = _described(database_url, schema)
    on(database_url, f"DROP SCHEMA {schema} CASCADE")
    dutiful.migrate(url)
    assert _described(database_url, schema) == by_script


def _described(url: str, schema: str) -> list[tuple[object, ...]]:
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable, column_default"
        f" FROM information_schema.columns WHERE table_schema = '{schema}' ORDER BY 1, 2"
    )
    indexes = f"SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = '{schema}' ORDER BY 1"
    return [*on(url, columns), *on(url, indexes), *on(url, f"SELECT * FROM {schema}.meta ORDER BY key")]


# --- roles -----------------------------------------------------------------------------------------------


@pytest.fixture
def role(database_url: str) -> Iterator[tuple[str, str]]:
    """A role that may log in and nothing else: its name, and its URL."""
    name, password = f"app_{secrets.token_hex(4)}", secrets.token_hex(8)
    on(database_url, f"CREATE ROLE {name} LOGIN PASSWORD '{password}' NOSUPERUSER NOCREATEDB NOCREATEROLE")
    on(database_url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    parts = urlsplit(database_url)
    place = parts.netloc.rpartition("@")[2]
    try:
        yield name, parts._replace(netloc=f"{name}:{password}@{place}").geturl()
    finally:
        on(database_url, f"DROP OWNED BY {name}")
        on(database_url, f"DROP ROLE {name}")


def grants(heading: str, role: str, database: str) -> str:
    """Return the grants that the docs list below a heading, for this role."""
    section = DOCS.read_text().partition(f"\n### {heading}\n")[2].partition("\n#")[0]
    (sql,) = re.findall(r"```sql\n(.*?)```", section, re.DOTALL)
    return sql.replace("app_worker", role).replace("DATABASE app", f"DATABASE {database}")


def test_a_role_with_the_rights_to_use_it_can_do_all_of_a_workers_work(
    database_url: str, role: tuple[str, str], tmp_path: Path
) -> None:
    """A DBA applies the SQL; the role can neither make nor change tables."""
    name, url = role
    on(database_url, dutiful.migration_sql(database_url))
    on(database_url, grants("A role that only uses it", name, urlsplit(database_url).path[1:]))
    on(database_url, f"CREATE TABLE public.orders (n int); GRANT ALL ON orders TO {name}")
    on(database_url, f"GRANT USAGE ON SCHEMA public TO {name}")

    _does_everything(f"{url}?dutiful_migrate=off", url, tmp_path)

    for sql in ("CREATE TABLE dutiful.own ()", "DROP TABLE dutiful.job", "CREATE SCHEMA own"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            on(url, sql)
    with pytest.raises(StoreError, match="Grants"):
        dutiful.move(url, tmp_path / "jobs.db")
    worker = Worker(url)
    assert worker.send(1, task="t").state is State.PENDING  # refused, and nothing changed
    worker.stop()


def test_a_role_that_may_make_a_schema_needs_nobody_else(
    database_url: str, role: tuple[str, str], tmp_path: Path
) -> None:
    name, url = role
    on(database_url, grants("A role that makes it", name, urlsplit(database_url).path[1:]))
    on(database_url, f"CREATE TABLE public.orders (n int); GRANT ALL ON orders TO {name}")
    on(database_url, f"GRANT USAGE ON SCHEMA public TO {name}")

    _does_everything(url, url, tmp_path)

    file = tmp_path / "jobs.db"
    moved = dutiful.move(url, file)
    assert dutiful.move(file, f"{url}?dutiful_schema=other").jobs == moved.jobs > 0


def _does_everything(store: str, url: str, folder: Path) -> None:
    """Send, work, wake, retry, cancel, complete in a transaction, prune, rescue."""
    dead = _killed_in_a_job(store)
    ran: list[int] = []

    def run(number: int, ctx: Context) -> None:
        with ctx.transaction() as db:
            db.execute("INSERT INTO public.orders VALUES (%s)", (number,))
        ran.append(number)

    def fail(number: int) -> None:
        raise ValueError(number)

    options = {"handlers": {"run": run, "fail": fail, "victim": ran.append}, "keep_completed": 1}
    with (
        Worker(store, retry=dutiful.Retry(max_attempts=1), **options) as worker,
        closing(_Client(store)) as client,
    ):
        client.worker.send(1, task="run").wait(timeout=30)
        worker.job(dead).wait(timeout=30)
        failed = client.worker.send(2, task="fail")
        failed.wait(timeout=30)
        assert failed.retry() is None
        failed.wait(timeout=30)
        client.worker.send(3, task="run", delay=3600).cancel()
        with psycopg.connect(url) as db:
            ours = client.worker.send(4, task="run", transaction=db)
        ours.wait(timeout=30)
        assert [one.name for one in client.worker.workers()] == ["worker"]
    assert sorted(ran) == [0, 1, 4]
    assert sorted(on(url, "SELECT n FROM public.orders")) == [(1,), (4,)]


class _Client:
    def __init__(self, store: str) -> None:
        self.worker = Worker(store)
        self.close = self.worker.stop


def _killed_in_a_job(store: str) -> int:
    """Return a job whose worker was killed while it ran."""
    program = """
import os, sys, time
from dutiful import Worker
worker = Worker(sys.argv[1], handlers={"victim": lambda _n: (os.write(1, b"runs\\n"), time.sleep(60))})
worker.start()
os.write(1, b"%d\\n" % worker.send(0, task="victim").id)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program, store], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as victim:
        assert victim.stdout is not None
        assert victim.stderr is not None
        lines = {victim.stdout.readline().strip(), victim.stdout.readline().strip()} - {"runs"}
        victim.kill()
        errors = victim.stderr.read()
    assert len(lines) == 1, errors
    return int(lines.pop())
