"""`status`, `jobs`, `job`."""

import contextlib
import json
import re
import signal
import sqlite3
import subprocess

import pytest

from dutiful import Worker
from tests.cli.commands import COMMAND, dutiful, listed, on_terminal, running, told, wait_until

RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]")


def test_status_counts_the_jobs(store):
    found = told("status", store)

    assert found["jobs"] == {
        "pending": 2,
        "blocked": 0,
        "running": 0,
        "completed": 1,
        "dead": 1,
        "cancelled": 1,
    }
    assert found["due"] == 1
    assert found["oldest_due_s"] >= 0
    assert found["bytes"] > 0
    assert found["workers"] == []


def test_status_reads_well(store):
    done = dutiful("status", store)

    assert re.search(r"pending +2 +1 due now, the oldest for ", done.stdout)
    assert re.search(r"dead +1 +see: dutiful jobs .* --state dead", done.stdout)
    assert "no worker runs on this store" in done.stdout
    assert "1 job due and nobody takes them" in done.stdout


def test_status_shows_the_workers_that_live(store):
    with Worker(store, name="mill", queues=("a", "b"), concurrency=3):
        (found,) = told("status", store)["workers"]
        shown = dutiful("status", store).stdout

    assert (found["name"], found["is_alive"], found["concurrency"]) == ("mill", True, 3)
    assert found["queues"] == ["a", "b"]
    assert re.search(r"mill +alive .* a, b ", shown)


def test_status_tells_the_dead_from_the_living(folder):
    with running(folder, "run", "app:worker") as command:
        command.said("worker worker started")
        command.signal(signal.SIGKILL)
        command.ends()
    (found,) = told("status", "jobs.db", cwd=folder)["workers"]
    shown = dutiful("status", "jobs.db", cwd=folder).stdout

    assert (found["pid"], found["is_alive"]) == (command.pid, False)
    assert re.search(r"worker +dead", shown)
    assert "goes to the next worker that lives or starts" in shown


def test_status_counts_the_jobs_that_no_worker_knows(store):
    with Worker(store, queues=("mail",)):
        wait_until(lambda: told("status", store)["parked"] == 1)
        shown = dutiful("status", store).stdout

    assert re.search(r"pending +2 +1 parked: no worker knew the task", shown)


def test_jobs_come_newest_first(store):
    assert [job["id"] for job in listed("jobs", store)] == [5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    ("filters", "ids"),
    [
        (["--state", "dead"], [3]),
        (["--state", "dead", "--state", "completed"], [3, 2]),
        (["--task", "notify"], [5, 4, 1]),
        (["--queue", "work"], [3, 2]),
        (["--task", "notify", "--state", "pending"], [5, 1]),
        (["--limit", "2"], [5, 4]),
        (["--before", "4", "--limit", "1"], [3]),
        (["--task", "none"], []),
    ],
)
def test_jobs_can_be_filtered(store, filters, ids):
    assert [job["id"] for job in listed("jobs", store, *filters)] == ids


def test_a_table_says_what_comes_next(store):
    done = dutiful("jobs", store, "--limit", "2")

    assert "there are more: --before 4" in done.stdout
    assert dutiful("jobs", store, "--limit", "5").stdout.count("there are more") == 0


def test_a_list_shows_no_payload_and_no_result(store):
    assert "hush" not in dutiful("jobs", store).stdout + dutiful("jobs", store, "--json").stdout


def test_a_job_is_shown_with_payload_and_result(store):
    assert told("job", store, 1)["payload"] == {"user": 7, "secret": "hush"}
    assert told("job", store, 2)["result"] == 3
    shown = dutiful("job", store, 1).stdout
    assert '"secret": "hush"' in shown
    assert re.search(r"priority +5", shown)


def test_a_job_is_shown_with_its_progress(tmp_path):
    path = tmp_path / "progress.db"
    with Worker(path, handlers={"hash": lambda ctx: ctx.progress(1, 4, "a.png \x1b[31m")}) as worker:
        worker.send(None, task="hash").wait(timeout=30)

    shown = dutiful("job", path, 1).stdout
    assert re.search(r"progress +1 of 4 \(25 %\)  a.png", shown)
    assert not RAW.search(shown)
    assert told("job", path, 1)["progress"]["total"] == 4


def test_a_dead_job_is_shown_with_its_errors(store):
    (error,) = told("job", store, 3)["errors"]

    assert (error["attempt"], error["type"]) == (1, "ValueError")
    assert "in fail" in error["traceback"]
    assert "ValueError: \\x1b]0;owned\\x07" in dutiful("job", store, 3).stdout


@pytest.mark.parametrize("args", [["jobs"], ["job"], ["status"]])
@pytest.mark.parametrize("as_json", [False, True])
def test_nothing_that_a_terminal_would_obey_is_printed(store, args, as_json):
    ids = [3] if args == ["job"] else []

    done = dutiful(*args, store, *ids, *(["--json"] if as_json else []))

    assert not RAW.search(done.stdout)
    assert done.returncode == 0


def test_on_a_terminal_only_our_own_colours_are_printed(store):
    _code, seen = on_terminal("job", store, 3, cwd=store.parent)

    own = re.sub(r"\x1b\[[0-9;]*m|\r\n", "", seen)
    assert "\x1b[" in seen
    assert not RAW.search(own)
    assert "\x1b[31mred" not in seen.replace("\\x1b", "")


def test_no_color_is_kept_to(store):
    _code, seen = on_terminal("status", store, cwd=store.parent, env={"NO_COLOR": "1"})

    assert "\x1b" not in seen


@pytest.mark.parametrize(
    "command", [["status"], ["jobs"], ["job", 1], ["retry", 1], ["cancel", 1], ["delete", 1], ["doctor"]]
)
def test_a_store_that_is_not_there_is_not_made(tmp_path, command):
    name, *rest = command

    done = dutiful(name, "none.db", *rest, cwd=tmp_path)

    assert done.returncode == 3
    assert "none.db: there is no such file; nothing was created" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_not_there_is_exit_code_1(store):
    done = dutiful("job", store, 99)

    assert (done.returncode, done.stdout) == (1, "")
    assert "job 99 is not in the store" in done.stderr


def test_a_file_that_is_no_database_is_exit_code_3(folder):
    done = dutiful("status", folder / "app.py")

    assert done.returncode == 3
    assert "not a database" in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["app.py"]


def test_a_database_without_our_tables_stays_as_it_is(tmp_path):
    path = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")
    before = path.read_bytes()

    done = dutiful("status", path)

    assert done.returncode == 3
    assert "holds no jobs of dutiful" in done.stderr
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["theirs.db"]


def test_with_traceback_a_developer_sees_where(store):
    assert "JobNotFound" in dutiful("job", store, 99, "--traceback").stderr


def test_a_store_can_be_given_as_url(store):
    assert told("status", f"sqlite:///{store}")["jobs"]["dead"] == 1
    assert dutiful("status", ":memory:").returncode == 2


def test_whoever_reads_only_the_head_hears_no_complaint(folder):
    with Worker(folder / "jobs.db") as worker:
        worker.send_many(range(20_000), task="later", delay=3600)

    for args in (["--all"], ["--all", "--json"]):
        process = subprocess.Popen(
            [*COMMAND, "jobs", str(folder / "jobs.db"), *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        complaint = process.stderr.read()
        process.stderr.close()

        assert (process.wait(30), complaint) == (141, b"")


def test_help_is_there_at_once_with_examples_and_exit_codes():
    done = dutiful("--help")

    assert "examples:" in done.stdout
    assert "exit codes:" in done.stdout


@pytest.mark.parametrize(
    "command", ["run", "send", "status", "jobs", "job", "retry", "cancel", "delete", "doctor", "demo"]
)
def test_each_command_has_help_with_examples_and_exit_codes(command):
    done = dutiful(command, "--help")

    assert f"dutiful {command}" in done.stdout.split("examples:")[1]
    assert "exit codes:" in done.stdout


def test_json_of_a_list_is_one_document_a_line(store):
    lines = dutiful("jobs", store, "--json").stdout.splitlines()

    assert len(lines) == 5
    assert all(isinstance(json.loads(line)["id"], int) for line in lines)


def test_help_loads_no_engine():
    """What takes time is what is imported: 130 modules, most of them to start Python; and none of these."""
    command = [COMMAND[0], "-P", "-X", "importtime", "-m", "dutiful", "--help"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    ours = {name for name in loaded if name.startswith("dutiful") and not name.startswith("dutiful.cli")}
    assert "dutiful.cli.app" in loaded
    assert ours == {"dutiful"}
    assert not loaded & {"asyncio", "msgspec", "multiprocessing", "rich", "sqlite3", "subprocess"}
    assert len(loaded) < 200
