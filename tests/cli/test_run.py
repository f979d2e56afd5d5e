"""`run` in one process: what it loads, how it stops."""

import json
import signal

import pytest

from tests.cli.commands import APP, dutiful, notes, running, told, wait_until

STARTED = "worker worker started"


def status(folder):
    return told("status", "jobs.db", cwd=folder)


@pytest.mark.parametrize("target", ["app:worker", "app:House.cellar", "app.py:worker", "./app.py:worker"])
def test_it_runs_what_is_named(folder, target):
    dutiful("send", "jobs.db", "note", "7", cwd=folder)

    with running(folder, "run", target) as command:
        command.said(STARTED)
        wait_until(lambda: notes(folder))
        command.signal(signal.SIGTERM)
        assert command.ends() == 0

    assert notes(folder) == [f"note 7 {command.pid}"]
    assert status(folder)["jobs"]["completed"] == 1


def test_a_file_elsewhere_runs_with_its_neighbours(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "parts.py").write_text("from app import worker as boss\n")
    (folder / "deep" / "whole.py").write_text("from parts import boss\n")

    with running(folder, "run", "deep/whole.py:boss") as command:
        command.said(STARTED)


def test_it_says_what_it_runs(folder):
    with running(folder, "run", "app:worker", "--concurrency", "7", "--queues", "a,b") as command:
        command.said("tasks: boom, doze, note, until")
        command.said("4 tasks, queues a, b, concurrency 7")


@pytest.mark.parametrize("below", [[], ["--processes", "1"]], ids=["alone", "supervised"])
@pytest.mark.parametrize(
    ("options", "firsts"),
    [
        (["--queues", "low,high"], "lllhhh"),  # one line, in the order sent
        (["--queues", "high,low", "--strict"], "hhhlll"),
        (["--queues", "high=2,low=1"], "hlhhll"),
    ],
    ids=["one line", "strict", "weights"],
)
def test_queues_are_taken_in_line_strictly_or_by_weight(folder, below, options, firsts):
    for queue, number in (("low", 0), ("low", 1), ("low", 2), ("high", 10), ("high", 11), ("high", 12)):
        assert dutiful("send", "jobs.db", "note", number, "--queue", queue, cwd=folder).returncode == 0

    with running(folder, "run", "app:worker", "--concurrency", "1", *options, *below) as command:
        wait_until(lambda: len(notes(folder)) == 6)
        command.signal(signal.SIGTERM)
        assert command.ends() == 0

    order = ["h" if int(line.split()[1]) >= 10 else "l" for line in notes(folder)]
    assert "".join(order) == firsts


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--queues", "a=1,b"], "'b' has no weight, and others have"),
        (["--queues", "a=x,b=1"], "'a=x' has no weight"),
        (["--queues", ","], "',' names no queue"),
        (["--queues", "a=0,b=1"], "the weight of queue 'a' is 0"),
        (["--queues", "a b"], "'a b' cannot name a queue"),
        (["--queues", "a=1,b=2", "--strict"], "--strict goes with --queues A,B, without weights"),
        (["--strict"], "--strict goes with --queues A,B"),
    ],
)
def test_queues_that_make_no_sense_are_refused(folder, options, complaint):
    done = dutiful("run", "app:worker", *options, cwd=folder)

    assert done.returncode == 2
    assert complaint in done.stderr


@pytest.mark.parametrize(
    ("target", "complaint"),
    [
        ("app", "names no worker; write module:worker"),
        ("app:", "names no worker"),
        ("app:wrker", "app has no 'wrker'; it has: app:worker."),
        ("app:note", "app:note is no Worker but a function"),
        ("app:House", "is no Worker but the class app.House"),
        ("none:worker", "there is no module 'none'"),
        ("none.py:worker", "there is no file none.py"),
        ("logging.py:worker", "has the name of another module, 'logging'"),
        ("broken:worker", "broken cannot be imported: ZeroDivisionError: division by zero ("),
        ("torn:worker", "torn cannot be imported: SyntaxError"),
        ("lacking:worker", "lacking cannot be imported: ModuleNotFoundError: No module named 'not_there'"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(folder, target, complaint):
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "torn.py").write_text("def (\n")
    (folder / "lacking.py").write_text("import not_there\n")
    (folder / "logging.py").write_text(APP)

    done = dutiful("run", target, cwd=folder)

    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_running_jobs_finish(folder, number):
    dutiful("send", "jobs.db", "until", '{"path": "go"}', cwd=folder)

    with running(folder, "run", "app:worker") as command:
        wait_until(lambda: notes(folder))
        dutiful("send", "jobs.db", "note", "1", "--delay", "1h", cwd=folder)
        command.signal(number)
        command.said("stopping")
        (folder / "go").touch()
        assert command.ends() == 0

    assert notes(folder)[-1] == "ended"
    assert status(folder)["jobs"]["completed"] == 1
    assert status(folder)["jobs"]["pending"] == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once_and_the_job_is_kept(folder, number, code):
    dutiful("send", "jobs.db", "until", '{"path": "go"}', cwd=folder)

    with running(folder, "run", "app:worker") as command:
        wait_until(lambda: notes(folder))
        command.signal(number)
        command.said("stopping")
        command.signal(number)
        assert command.ends() == code
    (folder / "go").touch()
    with running(folder, "run", "app:worker"):
        wait_until(lambda: status(folder)["jobs"]["completed"] == 1)

    assert [line.split()[0] for line in notes(folder)] == ["began", "began", "ended"]
    assert told("job", "jobs.db", 1, cwd=folder)["crashes"] == 0


def test_a_second_signal_ends_async_handlers_and_gives_their_jobs_back(folder):
    dutiful("send", "jobs.db", "doze", "600", cwd=folder)

    with running(folder, "run", "app:worker") as command:
        wait_until(lambda: notes(folder))
        command.signal(signal.SIGTERM)
        command.said("stopping")
        command.signal(signal.SIGTERM)
        assert command.ends() == 143

    job = told("job", "jobs.db", 1, cwd=folder)
    assert (job["state"], job["failures"], job["crashes"]) == ("pending", 0, 0)
    assert status(folder)["workers"] == []


def test_an_evil_error_reaches_the_log_in_one_harmless_line(folder):
    dutiful("send", "jobs.db", "boom", json.dumps({"message": "\x1b[31mred\nINFO all is well"}), cwd=folder)

    with running(folder, "run", "app:worker") as command:
        command.said("job 1 (boom) failed in attempt 1")

    (line,) = (line for line in command.lines if "(boom)" in line and "attempt 1," in line)
    assert "ValueError: \\x1b[31mred\\nINFO all is well" in line


def test_log_lines_can_be_json(folder):
    with running(folder, "run", "app:worker", "--log-json") as command:
        command.said(STARTED)

    first = json.loads(command.lines[0])
    assert first["level"] == "info"
    assert first["pid"] == command.pid


def test_the_log_level_can_be_set(folder):
    with running(folder, "run", "app:worker", "--log-level", "warning") as command:
        wait_until(lambda: (folder / "jobs.db").exists() and status(folder)["workers"])

    assert not any(STARTED in line for line in command.lines)


def test_a_store_that_cannot_be_used_is_exit_code_3(folder):
    (folder / "jobs.db").write_text("this is no database, and long enough to be looked at " * 50)

    done = dutiful("run", "app:worker", cwd=folder)

    assert done.returncode == 3
    assert "not a database" in done.stderr


def test_a_module_that_starts_its_worker_is_told_so(folder):
    (folder / "eager.py").write_text("from app import worker\nworker.start()\n")

    done = dutiful("run", "eager:worker", cwd=folder)

    assert done.returncode == 2
    assert "eager:worker has started the worker itself" in done.stderr
    assert '__name__ == "__main__"' in done.stderr


@pytest.mark.parametrize("more", [[], ["--processes", "1"]])
def test_queues_without_a_name_are_refused(folder, more):
    """They are not taken for all of the worker's."""
    done = dutiful("run", "app:worker", "--queues", ",", *more, cwd=folder)

    assert done.returncode == 2
    assert "names no queue" in done.stderr
