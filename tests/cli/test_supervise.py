"""`run --processes` and `run --reload`."""

import os
import re
import signal

import pytest

from tests.cli.commands import APP, dutiful, notes, running, told, wait_until

STARTED = "worker worker started"


def workers(folder):
    if not (folder / "jobs.db").exists():
        return []
    found = told("status", "jobs.db", cwd=folder)["workers"]
    return sorted(worker["pid"] for worker in found if worker["is_alive"])


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_so_many_processes_run_and_end_together(folder):
    with running(folder, "run", "app:worker", "--processes", "2", "--concurrency", "3") as command:
        command.said(STARTED, times=2)
        command.said("concurrency 3", times=2)
        pids = workers(folder)
        assert len(pids) == 2
        command.signal(signal.SIGTERM)
        assert command.ends() == 0

    assert not any(map(is_there, pids))


def test_one_that_is_killed_is_started_again_and_its_jobs_go_on(folder):
    dutiful("send", "jobs.db", "until", '{"path": "go"}', cwd=folder)

    with running(folder, "run", "app:worker", "--processes", "2") as command:
        command.said(STARTED, times=2)
        wait_until(lambda: notes(folder))
        victim = int(notes(folder)[0].split()[1])
        os.kill(victim, signal.SIGKILL)
        command.said(f"(pid {victim}) was killed by SIGKILL; started again in 0.5 s")
        command.said(STARTED, times=3)
        (folder / "go").touch()
        wait_until(lambda: told("status", "jobs.db", cwd=folder)["jobs"]["completed"] == 1)
        dutiful("send", "jobs.db", "note", "1", cwd=folder)
        wait_until(lambda: told("status", "jobs.db", cwd=folder)["jobs"]["completed"] == 2)
        assert len(workers(folder)) == 2


def test_the_pause_grows_while_it_keeps_dying(folder):
    (folder / "mortal.py").write_text("import os\nos._exit(7)\n")

    with running(folder, "run", "mortal:worker", "--processes", "1") as command:
        command.said("ended with exit code 7; started again in 2.0 s")

    pauses = [found[1] for line in command.lines if (found := re.search(r"again in ([\d.]+) s", line))]
    assert pauses == ["0.5", "1.0", "2.0"]


def test_what_cannot_be_run_is_not_tried_again(folder):
    done = dutiful("run", "app:none", "--processes", "2", cwd=folder)

    assert done.returncode == 2
    assert "app has no 'none'" in done.stderr
    assert "started again" not in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_all_at_once(folder, number, code):
    dutiful("send", "jobs.db", "until", '{"path": "go"}', cwd=folder)

    with running(folder, "run", "app:worker", "--processes", "2") as command:
        command.said(STARTED, times=2)
        wait_until(lambda: notes(folder))
        pids = workers(folder)
        command.signal(number)
        command.said("stopping: running jobs", times=2)
        command.signal(number)
        assert command.ends() == code

    assert not any(map(is_there, pids))


def test_when_the_supervisor_is_killed_its_processes_stop(folder):
    with running(folder, "run", "app:worker", "--processes", "2") as command:
        command.said(STARTED, times=2)
        pids = workers(folder)
        command.kill()
        wait_until(lambda: not any(map(is_there, pids)), "the processes are gone")

    assert len(pids) == 2


def test_a_change_starts_it_again_with_the_new_code(folder):
    pytest.importorskip("watchfiles")

    with running(folder, "run", "app:worker", "--reload") as command:
        command.said(STARTED)
        (folder / "app.py").write_text(APP.replace('note(f"note', 'note(f"new'))
        command.said("app.py changed; starting again")
        command.said(STARTED, times=2)
        dutiful("send", "jobs.db", "note", "1", cwd=folder)
        wait_until(lambda: notes(folder))

    assert notes(folder)[0].startswith("new 1 ")


def test_a_mistake_waits_for_its_mending(folder):
    pytest.importorskip("watchfiles")

    with running(folder, "run", "app:worker", "--reload") as command:
        command.said(STARTED)
        (folder / "app.py").write_text("def (\n")
        command.said("SyntaxError")
        command.said("waiting for a change")
        (folder / "app.py").write_text(APP)
        command.said(STARTED, times=2)
        command.signal(signal.SIGINT)
        assert command.ends() == 0
