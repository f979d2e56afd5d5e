"""`doctor`: each thing to look at is found, and nothing else."""

import pytest

from dutiful import Worker
from dutiful.cli import doctor
from tests.cli.commands import dutiful, told


@pytest.fixture
def healthy(tmp_path):
    tmp_path.chmod(0o755)
    with Worker(tmp_path / "jobs.db") as worker:
        worker.send(1, task="later", delay=3600)
    return tmp_path / "jobs.db"


def ailing(store):
    """Return what is to be looked at."""
    done = dutiful("doctor", store)
    assert done.returncode == (1 if "  look  " in done.stdout else 0)
    return {line.split()[1] for line in done.stdout.splitlines() if line.startswith("  look")}


def test_all_is_well(healthy):
    found = told("doctor", healthy)

    assert found["is_well"]
    whats = [finding["what"] for finding in found["findings"]]
    assert whats == ["workers", "due", "paused", "parked", "dead", "file", "folder", "disk"]
    assert ailing(healthy) == set()


def test_jobs_that_are_dead_or_wait_for_nobody_are_found(store):
    assert ailing(store) == {"due", "dead"}


def test_what_is_paused_is_found(healthy):
    dutiful("pause", healthy, "--queue", "mail")
    dutiful("pause", healthy, "--task", "later")

    assert ailing(healthy) == {"paused"}
    assert "queue mail, task later; dutiful resume" in dutiful("doctor", healthy).stdout


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_found(healthy, mode):
    healthy.chmod(mode)

    assert ailing(healthy) == {"file"}


def test_a_folder_that_everybody_can_write_is_found(healthy):
    healthy.parent.chmod(0o777)
    assert ailing(healthy) == {"folder"}

    healthy.parent.chmod(0o1777)
    assert ailing(healthy) == set()


def test_too_little_room_is_found(healthy, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "FREE_BYTES_MIN", 1 << 62)
    from dutiful.cli import main

    assert main(["doctor", str(healthy)]) == 1
    assert "look  disk" in capsys.readouterr().out
