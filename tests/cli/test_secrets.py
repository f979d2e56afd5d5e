"""Secrets, keys and versions on the command line."""

import os

import pytest

from dutiful import Worker, new_key
from tests.cli.commands import dutiful, listed, told

HUSH = "hush-4111"


def keyed(*keys):
    """Return the environment with these keys."""
    return {**os.environ, "DUTIFUL_KEY": ",".join(keys)}


@pytest.fixture
def new():
    return dutiful("key").stdout.strip()


def test_a_new_key_is_printed(new):
    other = dutiful("key").stdout.strip()

    assert new != other
    Worker(":memory:", encrypt=[new, other]).stop()


def test_what_is_secret_is_masked_and_revealed_on_demand(folder):
    dutiful("send", "jobs.db", "note", f'"{HUSH}"', "--secret", cwd=folder)
    dutiful("send", "jobs.db", "note", f'{{"a": {{"$secret": "{HUSH}"}}, "b": 1}}', cwd=folder)

    for job_id in (1, 2):
        for args in (("job", "jobs.db", job_id), ("job", "jobs.db", job_id, "--json"), ("jobs", "jobs.db")):
            shown = dutiful(*args, cwd=folder).stdout
            assert HUSH not in shown
            assert "***" in shown or args[0] == "jobs"
        assert HUSH in dutiful("job", "jobs.db", job_id, "--reveal", cwd=folder).stdout
    assert told("job", "jobs.db", 2, cwd=folder)["payload"] == {"a": "***", "b": 1}
    assert told("job", "jobs.db", 2, "--reveal", cwd=folder)["payload"] == {"a": HUSH, "b": 1}


def test_a_payload_is_encrypted_and_shown_to_who_has_the_key(folder, new):
    dutiful("send", "jobs.db", "note", f'"{HUSH}"', cwd=folder, env=keyed(new))

    assert HUSH.encode() not in (folder / "jobs.db").read_bytes()
    assert HUSH in dutiful("job", "jobs.db", 1, cwd=folder, env=keyed(new)).stdout
    shown = dutiful("job", "jobs.db", 1, cwd=folder).stdout
    assert "<encrypted, key " in shown
    assert "task        note\n" in shown
    assert listed("jobs", "jobs.db", "--task", "note", cwd=folder)[0]["task"] == "note"


def test_keys_are_changed(folder, new):
    old = new_key()
    for _ in range(3):
        dutiful("send", "jobs.db", "note", f'"{HUSH}"', cwd=folder, env=keyed(old))

    missing = dutiful("rekey", "jobs.db", cwd=folder, env=keyed(new))
    done = dutiful("rekey", "jobs.db", cwd=folder, env=keyed(new, old))
    again = dutiful("rekey", "jobs.db", "--json", cwd=folder, env=keyed(new, old))

    assert (missing.returncode, missing.stdout) == (1, "0 values encrypted with the first key\n")
    assert "3 rows cannot be read with key " in missing.stderr
    assert (done.returncode, done.stdout) == (0, "3 values encrypted with the first key\n")
    assert '"done": 0' in again.stdout
    assert HUSH in dutiful("job", "jobs.db", 2, cwd=folder, env=keyed(new)).stdout


def test_a_wrong_key_is_said_and_not_told(folder):
    done = dutiful("send", "jobs.db", "note", "1", cwd=folder, env=keyed("this-is-no-key"))

    assert done.returncode == 2
    assert "is no key" in done.stderr
    assert "this-is-no-key" not in done.stderr
    assert dutiful("rekey", "jobs.db", cwd=folder, env=keyed()).returncode in (2, 3)


def test_a_version_is_sent_and_shown(folder):
    dutiful("send", "jobs.db", "Order@2", "{}", cwd=folder)

    (found,) = listed("jobs", "jobs.db", "--task", "Order", cwd=folder)
    assert (found["task"], found["version"]) == ("Order", 2)
    assert "Order@2" in dutiful("jobs", "jobs.db", cwd=folder).stdout
    assert "Order@2" in dutiful("job", "jobs.db", 1, cwd=folder).stdout
    assert dutiful("send", "jobs.db", "Order@x", "{}", cwd=folder).returncode == 2
