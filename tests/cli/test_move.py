"""`dutiful move` and `migrate`, and the other commands on a PostgreSQL store."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dutiful import Worker
from tests.cli.commands import APP, dutiful, listed, on_terminal, running, told, wait_until


@pytest.fixture
def password(database_url: str) -> str:
    return urlsplit(database_url).password or ""


# --- move and migrate -------------------------------------------------------------------------------


def test_a_file_is_moved_and_says_where_to(store: Path, database_url: str, password: str) -> None:
    before = listed("jobs", store)

    done = dutiful("move", store, database_url)
    refused = dutiful("status", store)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"5 jobs moved from {store} to postgresql://")
    assert listed("jobs", database_url) == before
    assert refused.returncode == 3
    assert "its jobs were moved to postgresql://" in refused.stderr
    assert password not in done.stdout + refused.stderr
    assert "nothing to do" in dutiful("move", store, database_url).stdout


def test_json_says_what_was_moved(store: Path, tmp_path: Path) -> None:
    first, second = (told("move", store, tmp_path / "other.db") for _ in range(2))

    assert first["jobs"] == {
        "pending": 2,
        "blocked": 0,
        "running": 0,
        "completed": 1,
        "dead": 1,
        "cancelled": 1,
    }
    assert (first["errors"], first["damaged"], first["was_done"]) == (1, 0, False)
    assert first["target"] == str(tmp_path / "other.db")
    assert second["was_done"]


def test_on_a_terminal_there_is_a_bar(store: Path) -> None:
    code, seen = on_terminal("move", store, "other.db", cwd=store.parent)

    assert code == 0
    assert "moving" in seen
    assert "100%" in seen
    assert "5 of 5 jobs" in seen


@pytest.mark.parametrize(
    "words", [[], ["other.db", "--give-up"]], ids=["neither a target nor --give-up", "both"]
)
def test_it_must_be_clear_what_is_meant(store: Path, words: list[str]) -> None:
    done = dutiful("move", store, *words, cwd=store.parent)

    assert done.returncode == 2
    assert told("status", store)["jobs"]["pending"] == 2


def test_with_a_worker_it_is_refused_and_the_target_is_not_made(folder: Path) -> None:
    with running(folder, "run", "app:worker") as worker:
        worker.said("started on")
        done = dutiful("move", "jobs.db", "other.db", cwd=folder)

    assert done.returncode == 3
    assert "workers run on it: worker (pid " in done.stderr
    assert not (folder / "other.db").exists()


def test_an_unfinished_one_is_finished_or_given_up(store: Path) -> None:
    env = {"DUTIFUL_CRASHPOINT": "move.copied"}
    code, _ = on_terminal("move", store, "other.db", cwd=store.parent, env=env)
    refused = dutiful("send", store, "t", "1")

    assert code == 137
    assert refused.returncode == 3
    assert "are being moved to" in refused.stderr
    assert told("move", store, "--give-up")["given_up"]
    assert "no unfinished move" in dutiful("move", store, "--give-up").stdout
    assert dutiful("send", store, "t", "1").returncode == 0
    assert told("move", store, store.parent / "other.db")["jobs"]["pending"] == 3
    assert dutiful("move", store, "--give-up").returncode == 3


def test_migrate_says_what_was_done(database_url: str, password: str) -> None:
    sql = dutiful("migrate", database_url, "--sql")
    documents = [told("migrate", database_url) for _ in range(2)]
    again = dutiful("migrate", database_url)

    assert 'CREATE TABLE "dutiful".job' in sql.stdout
    assert [one["before"] for one in documents] == [0, documents[0]["after"]]
    assert again.stdout.endswith("up to date; nothing to do\n")
    assert password not in again.stdout
    assert dutiful("migrate", database_url, "--sql").stdout == ""


def test_migrate_of_a_file(tmp_path: Path) -> None:
    sql = dutiful("migrate", tmp_path / "jobs.db", "--sql")
    assert "CREATE TABLE dutiful_job" in sql.stdout
    assert not (tmp_path / "jobs.db").exists()
    assert "made, schema version" in dutiful("migrate", tmp_path / "jobs.db").stdout
    assert told("status", tmp_path / "jobs.db")["jobs"]["pending"] == 0


def test_the_sql_for_a_file_is_what_a_migration_does(tmp_path: Path) -> None:
    import sqlite3
    from contextlib import closing

    path = tmp_path / "jobs.db"
    script = dutiful("migrate", path, "--sql").stdout
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)

    assert dutiful("migrate", path, "--sql").stdout == ""
    assert dutiful("send", path, "t", "1").stdout == "1\n"


# --- the other commands on PostgreSQL -------------------------------------------------------------------


def test_a_store_that_is_not_there_is_not_made(database_url: str) -> None:
    done = dutiful("status", database_url)

    assert done.returncode == 3
    assert "dutiful migrate" in done.stderr
    assert told("migrate", database_url)["before"] == 0


def test_jobs_are_sent_run_looked_at_and_changed(folder: Path, database_url: str, password: str) -> None:
    (folder / "app.py").write_text(APP.replace('"jobs.db"', repr(database_url)))
    assert dutiful("send", database_url, "note", "7").stdout == "1\n"
    lines = "".join(f"{number}\n" for number in range(2000))
    assert dutiful("send", database_url, "note", stdin=lines).stdout.splitlines()[-1:] != []
    assert dutiful("send", database_url, "boom", '"no"', "--delay", "1h").returncode == 0

    with running(folder, "run", "app:worker", "--processes", "2") as worker:
        worker.said("started on", 2)
        wait_until(lambda: told("status", database_url)["jobs"]["completed"] == 2001)
        status = dutiful("status", database_url)
        assert told("status", database_url)["workers"][0]["is_alive"]
    said = "\n".join(worker.lines)

    (delayed,) = listed("jobs", database_url, "--state", "pending")
    assert told("job", database_url, 1)["payload"] == 7
    assert dutiful("cancel", database_url, delayed["id"]).stdout.startswith("1 job ")
    assert dutiful("retry", database_url, delayed["id"]).stdout == "1 job back in line\n"
    assert dutiful("delete", database_url, "--state", "completed", "--yes").stdout == "2,001 jobs deleted\n"
    doctor = dutiful("doctor", database_url)
    assert doctor.returncode == 1
    assert "nobody takes them" in doctor.stdout
    for text in (status.stdout, said, doctor.stdout, dutiful("doctor", database_url, "--json").stdout):
        assert "postgresql://" in text or text is doctor.stdout
        assert password not in text


def test_a_server_that_is_not_there_is_told_without_the_password() -> None:
    done = dutiful("status", "postgresql://me:hush@127.0.0.1:1/none")

    assert done.returncode == 3
    assert "postgresql://me@127.0.0.1:1/none" in done.stderr
    assert "hush" not in done.stderr


def test_the_store_of_a_document_has_no_password(database_url: str, password: str) -> None:
    Worker(database_url).counts()

    document = json.dumps(told("status", database_url))

    assert "postgresql://" in document
    assert password not in document
