"""`retry`, `cancel`, `delete`."""

import pytest

from dutiful import Retry, Worker
from tests.cli.commands import dutiful, listed, on_terminal, told


def states(store):
    return {job["id"]: job["state"] for job in listed("jobs", store)}


@pytest.mark.parametrize(
    ("edit", "job", "state"),
    [("retry", 3, "pending"), ("retry", 2, "pending"), ("cancel", 5, "cancelled"), ("delete", 3, None)],
)
def test_a_job_is_changed_by_its_id(store, edit, job, state):
    done = dutiful(edit, store, job)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 job ")
    assert states(store).get(job) == state


def test_those_that_can_be_are_changed_and_the_others_are_told(store):
    done = dutiful("cancel", store, 1, 2, 99, 5)

    assert done.returncode == 1
    assert done.stdout.startswith("2 jobs ")
    assert "job 2 is completed; nothing was changed" in done.stderr
    assert "job 99 is not in the store" in done.stderr
    assert [states(store)[job] for job in (1, 5)] == ["cancelled", "cancelled"]


def test_a_job_that_is_named_twice_is_changed_once(store):
    done = dutiful("retry", store, 3, 3)

    assert (done.returncode, done.stdout) == (0, "1 job back in line\n")


def test_json_says_it_for_each(store):
    done = dutiful("retry", store, 3, 1, "--json")

    first, second = done.stdout.splitlines()
    assert done.returncode == 1
    assert first == '{"id": 3, "done": true}'
    assert '"id": 1, "done": false, "error": "job 1 is pending' in second


def test_all_dead_ones_of_a_task_are_retried(folder):
    def fail(payload: object) -> None:
        raise ValueError

    with Worker(folder / "jobs.db", handlers={"a": fail, "b": fail}, retry=Retry(max_attempts=1)) as worker:
        for job in [*worker.send_many(range(1200), task="a"), worker.send(0, task="b")]:
            job.wait(timeout=30)

    assert dutiful("retry", folder / "jobs.db", "--dead", "--task", "a").stdout == "1,200 jobs back in line\n"
    assert told("status", folder / "jobs.db")["jobs"]["dead"] == 1
    assert dutiful("retry", folder / "jobs.db", "--dead").stdout == "1 job back in line\n"
    assert dutiful("retry", folder / "jobs.db", "--dead").stdout == "0 jobs back in line\n"


@pytest.mark.parametrize(("edit", "left"), [("cancel", "cancelled"), ("delete", None)])
def test_blocked_ones_are_changed_by_their_state(folder, edit, left):
    with Worker(folder / "jobs.db", queues="nobody") as worker:
        first, second = worker.send_many([1, 2], task="t", queue="other", key="k")
        assert second.state == "blocked"

    done = dutiful(edit, folder / "jobs.db", "--state", "blocked", *(["--yes"] if edit == "delete" else []))

    assert (done.returncode, done.stdout[:6]) == (0, "1 job ")
    assert states(folder / "jobs.db").get(second.id) == left
    assert states(folder / "jobs.db")[first.id] == "pending"


def test_a_state_is_deleted_only_with_yes_where_nobody_can_be_asked(store):
    refused = dutiful("delete", store, "--state", "dead")
    agreed = dutiful("delete", store, "--state", "dead", "--yes")

    assert (refused.returncode, agreed.returncode) == (2, 0)
    assert "needs --yes" in refused.stderr
    assert sorted(states(store)) == [1, 2, 4, 5]


@pytest.mark.parametrize(
    ("answer", "code", "left"),
    [("y\n", 0, [1, 2, 4, 5]), ("n\n", 1, [1, 2, 3, 4, 5]), ("\n", 1, [1, 2, 3, 4, 5])],
)
def test_on_a_terminal_it_asks_first(store, answer, code, left):
    ended, seen = on_terminal("delete", store, 3, cwd=store.parent, answer=answer)

    assert ended == code
    assert "Delete job 3, with payload and history? [y/N]" in seen
    assert sorted(states(store)) == left


def test_a_store_that_is_not_there_is_told_before_anything_is_asked(folder):
    code, seen = on_terminal("delete", "none.db", 3, cwd=folder)

    assert code == 3
    assert "no such file" in seen
    assert "[y/N]" not in seen


@pytest.mark.parametrize("edit", ["retry", "cancel", "delete"])
@pytest.mark.parametrize("which", [[], [1, "--state", "dead"], [1, "--task", "notify"], ["--task", "notify"]])
def test_it_must_be_clear_which_jobs_are_meant(store, edit, which):
    done = dutiful(edit, store, *which)

    assert done.returncode == 2
    assert len(states(store)) == 5


def test_a_filter_that_is_no_state_for_this_is_refused(store):
    assert dutiful("retry", store, "--state", "running").returncode == 2
    assert dutiful("cancel", store, "--state", "dead").returncode == 2
