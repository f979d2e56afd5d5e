"""The schema: made once, whoever comes first; old or new after a crash; a newer one is left alone."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dutiful.errors import SchemaTooNew
from dutiful.store import sqlite_file
from dutiful.store.contract import Draft, Outcome, Work
from tests.store import inside

OPEN_AND_SEND = """
import sys
from dutiful.store.sqlite import SqliteStore
from dutiful.store.contract import Draft, Outcome, Work
sys.stdin.readline()
store = SqliteStore(sys.argv[1], durability="normal")
store.open()
store.exchange(Work(drafts=[Draft("t", "q", ["1", "2"])]), Outcome())
store.close()
"""
PROCESSES = 8


def _tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE name LIKE 'dutiful_%'")}


def _in_full(tmp_path: Path) -> set[str]:
    other = tmp_path / "full.db"
    inside.opened(other).close()
    return _tables(other)


def test_eight_processes_start_at_once_on_a_new_file(tmp_path: Path) -> None:
    """One makes the schema, nobody fails, and all of their jobs are there."""
    path = tmp_path / "jobs.db"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN_AND_SEND, str(path)],
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
    store = inside.opened(path)
    assert store.unfinished() == 2 * PROCESSES
    store.close()


def test_a_crash_in_the_middle_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    """After each statement of the migration; and the next to open finishes it."""
    in_full = _in_full(tmp_path)
    count = len(sqlite_file.statements(1))
    paths = [tmp_path / f"{n}.db" for n in range(1, count + 1)]
    programs = []
    for n, path in enumerate(paths, 1):
        env = os.environ | {"DUTIFUL_CRASHPOINT": f"migrate.middle:{n}"}
        command = [sys.executable, "-c", OPEN_AND_SEND, str(path)]
        programs.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL))

    assert [program.wait(60) for program in programs] == [137] * count
    for path in paths:
        assert _tables(path) in (set(), in_full)
        inside.opened(path).close()
        assert _tables(path) == in_full
        with closing(sqlite3.connect(path)) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_an_exception_in_the_middle_leaves_the_old(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "jobs.db"

    def fail(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_file, "crashpoint", fail)
        with pytest.raises(KeyboardInterrupt):
            inside.opened(path)

    assert _tables(path) == set()
    inside.opened(path).close()


def test_opening_again_changes_no_schema(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    inside.opened(path).close()
    with closing(sqlite3.connect(path)) as db:
        before = db.execute("PRAGMA schema_version").fetchone()

    inside.opened(path).close()

    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA schema_version").fetchone() == before


def test_a_newer_schema_is_refused_and_the_file_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    inside.opened(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE dutiful_meta SET value = 99 WHERE key LIKE 'schema_%'")
    before = path.read_bytes()

    with pytest.raises(SchemaTooNew, match="99"):
        inside.opened(path)

    assert path.read_bytes() == before


def test_a_newer_schema_that_fits_is_used(tmp_path: Path) -> None:
    """`schema_min_code` says that this code can work with it; its version stays."""
    path = tmp_path / "jobs.db"
    inside.opened(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE dutiful_meta SET value = 99 WHERE key = 'schema_version'")
        db.execute("ALTER TABLE dutiful_job ADD COLUMN later TEXT")

    store = inside.opened(path)
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["1"])]), outcome)
    store.close()

    assert outcome.committed
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT value FROM dutiful_meta WHERE key = 'schema_version'").fetchone() == (99,)


def test_the_users_own_tables_are_untouched(tmp_path: Path) -> None:
    """Rows, schema, user_version and application_id; and all of our names start with dutiful_."""
    path = tmp_path / "users.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 42")
        db.execute("PRAGMA application_id = 4711")
        db.execute("CREATE TABLE meta (key TEXT, value TEXT)")
        db.execute("CREATE TABLE job (id INTEGER PRIMARY KEY, what TEXT)")
        db.execute("CREATE INDEX job_what ON job (what)")
        db.execute("CREATE TRIGGER job_t AFTER DELETE ON job BEGIN SELECT 1; END")
        db.executemany("INSERT INTO job (what) VALUES (?)", [(f"row {n}",) for n in range(500)])

    def users(db: sqlite3.Connection) -> list[object]:
        return [
            db.execute("SELECT * FROM job").fetchall(),
            db.execute(
                "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE '%dutiful%'"
            ).fetchall(),
            db.execute("PRAGMA user_version").fetchone(),
            db.execute("PRAGMA application_id").fetchone(),
        ]

    with closing(sqlite3.connect(path)) as db:
        before = users(db)

    store = inside.opened(path)
    store.exchange(Work(drafts=[Draft("t", "q", ["1"] * 100)]), Outcome())
    store.tidy()
    store.close()

    with closing(sqlite3.connect(path)) as db:
        # sqlite_sequence comes with AUTOINCREMENT; it is SQLite's own.
        after = users(db)
        after[1] = [row for row in after[1] if row[1] != "sqlite_sequence"]
        assert after == before
