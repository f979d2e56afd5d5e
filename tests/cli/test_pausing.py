"""`pause`, `resume` and `schedules`."""

import pytest

from dutiful import Worker
from tests.cli.commands import dutiful, listed, told


@pytest.fixture
def scheduled(folder):
    """A store with one schedule, whose worker has ended."""
    worker = Worker(folder / "jobs.db")
    worker.cron("0 3 * * *", tz="Europe/Berlin", name="report")(lambda: None)
    with worker:
        pass
    return folder / "jobs.db"


@pytest.mark.parametrize(("option", "name"), [("--queue", "mail"), ("--task", "add")])
def test_what_is_paused_shows_until_it_is_resumed(store, option, name):
    done = dutiful("pause", store, option, name)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1].split()[:2] == [option[2:], name]
    assert [each["name"] for each in told("pause", store)] == [name]

    done = dutiful("resume", store, option, name)

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "nothing is paused\n")
    assert told("pause", store) == []


@pytest.mark.parametrize(("option", "name"), [("--queue", "mail"), ("--task", "notify")])
def test_paused_jobs_are_called_so(store, option, name):
    """Else they would seem to be due, and nobody could see why none is taken."""
    assert "  paused  " not in dutiful("status", store).stdout
    dutiful("pause", store, option, name)

    assert f"paused       {option[2:]} {name}; no worker begins" in dutiful("status", store).stdout
    assert [each["name"] for each in told("status", store)["paused"]] == [name]
    whens = {line.split()[0]: line.split()[5:] for line in dutiful("jobs", store).stdout.splitlines()[1:]}
    assert whens["1"] == ["paused"]
    assert whens["5"][0] == "due"  # in an hour
    assert "paused" in dutiful("job", store, 1).stdout.splitlines()[0]


def test_what_is_not_paused_cannot_be_resumed(store):
    done = dutiful("resume", store, "--queue", "mail")

    assert done.returncode == 1
    assert "mail was not paused; nothing was changed" in done.stderr


def test_a_queue_or_a_task_is_needed_to_resume(store):
    assert dutiful("resume", store).returncode == 2
    assert dutiful("pause", store, "--queue", "a", "--task", "b").returncode == 2
    assert dutiful("pause", store, "--queue", "no name").returncode == 2


def test_schedules_are_listed(scheduled):
    line = dutiful("schedules", scheduled).stdout.splitlines()[1]

    assert line.split()[:8] == ["report", "cron", "0", "3", "*", "*", "*", "Europe/Berlin"]
    (schedule,) = listed("schedules", scheduled)
    assert (schedule["name"], schedule["paused"], schedule["last_job"]) == ("report", False, None)


def test_a_schedule_is_paused_resumed_run_and_forgotten(scheduled):
    assert "paused" in dutiful("schedules", scheduled, "--pause", "report").stdout
    assert listed("schedules", scheduled)[0]["paused"]
    assert "paused" not in dutiful("schedules", scheduled, "--resume", "report").stdout

    job = int(dutiful("schedules", scheduled, "--run", "report").stdout)

    assert [(each["id"], each["task"], each["state"]) for each in listed("jobs", scheduled)] == [
        (job, "report", "pending")
    ]
    assert dutiful("schedules", scheduled, "--forget", "report").stderr == "there are no schedules\n"


@pytest.mark.parametrize("action", ["--pause", "--resume", "--run", "--forget"])
def test_a_schedule_that_is_not_there_is_told(scheduled, action):
    done = dutiful("schedules", scheduled, action, "nightly")

    assert done.returncode == 2
    assert "there is no schedule 'nightly'" in done.stderr
