"""`watch`: one job, live, on a terminal and in a pipe."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dutiful import Worker
from tests.cli.commands import COMMAND, WAIT_S, dutiful, running

APP = """\
import os, time
from dutiful import Backoff, Retry, Worker

worker = Worker(os.environ["STORE"], retry=Retry(max_attempts=1))

def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)

@worker.handler("walk")
def walk(path: str, ctx):
    ctx.step("prepare", int, 1)
    ctx.progress(1, 2, "half")
    wait_for(path)
    return {"walked": 2}

@worker.handler("fall")
def fall(path: str, ctx):
    wait_for(path)
    raise ValueError("\\x1b[2J fell")

@worker.handler("again", retry=Retry(max_attempts=2, backoff=Backoff(first_s=0.05)))
def again(path: str, ctx):
    if ctx.failures == 0:
        raise ValueError("at first")

@worker.handler("listen")
def listen(path: str, ctx):
    return ctx.wait_event("go")
"""


class Watching:
    """A command whose output is read as it comes."""

    def __init__(self, *args: object, cwd: Path, on_terminal: bool) -> None:
        if on_terminal:
            self._from, to = pty.openpty()
        else:
            self._from, to = os.pipe()
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, args)],
            cwd=cwd,
            stdout=to,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        os.close(to)
        self.text = ""
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._from, 65536)
            except OSError:  # EIO: the other side of a terminal is closed
                break
            if not data:
                break
            with self._came:
                self.text += data.decode()
                self._came.notify_all()
        os.close(self._from)

    def shows(self, pattern: str) -> None:
        """Wait until this has come."""
        with self._came:
            came = self._came.wait_for(lambda: re.search(pattern, self.text), WAIT_S)
        assert came, f"no {pattern!r} in\n{self.text}"

    def ends(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code


@contextmanager
def watching(*args: object, cwd: Path, on_terminal: bool = False) -> Iterator[Watching]:
    command = Watching("watch", *args, cwd=cwd, on_terminal=on_terminal)
    try:
        yield command
    finally:
        command.process.kill()
        command.ends()
        command.process.stderr.close()


@pytest.fixture(params=["file", "postgres"])
def where(request, tmp_path, monkeypatch):
    """A folder with a worker's module, whose process runs; its store is in $STORE."""
    url = "jobs.db" if request.param == "file" else request.getfixturevalue("database_url")
    monkeypatch.setenv("STORE", url)
    (tmp_path / "app.py").write_text(APP)
    with running(tmp_path, "run", "app:worker") as worker:
        worker.said("started")
        yield tmp_path


@pytest.fixture
def sent(where):
    """Send a job; return the store, and its id."""

    def sent(task):
        store = os.environ["STORE"]
        return store, int(dutiful("send", store, task, json.dumps(str(where / "go")), cwd=where).stdout)

    return sent


def test_a_job_is_followed_to_its_end(where, sent):
    with watching(*sent("walk"), cwd=where) as shown:
        shown.shows(r"(?m)^progress  1 of 2 \(50 %\)  half$")
        shown.shows("(?m)^running   attempt 1, worker worker$")
        (where / "go").touch()

        assert shown.ends() == 0
    lines = shown.text.splitlines()
    assert re.fullmatch(r"job \d+  walk", lines[0])
    assert "step      prepare done" in lines
    assert lines[-4].startswith("completed ")
    assert json.loads("".join(lines[-3:])) == {"walked": 2}


def test_on_a_terminal_a_bar_moves_in_its_line(where, sent):
    with watching(*sent("walk"), cwd=where, on_terminal=True) as shown:
        shown.shows(r"\r\x1b\[2K\[#{15}-{15}\]  1 of 2 \(50 %\)  half")
        (where / "go").touch()

        assert shown.ends() == 0
    # The bar is gone before what stays is printed.
    assert re.search(r"half\r\x1b\[2Kcompleted ", shown.text)
    assert '"walked": 2' in shown.text


def test_a_dead_job_ends_it_with_its_traceback(where, sent):
    with watching(*sent("fall"), cwd=where) as shown:
        shown.shows("(?m)^running ")
        (where / "go").touch()

        assert shown.ends() == 1
    assert re.search(r"(?m)^failed    attempt 1: ValueError: \\x1b\[2J fell$", shown.text)
    assert re.search(r"(?m)^dead ", shown.text)
    assert "Traceback" in shown.text
    assert "\x1b" not in shown.text


def test_a_cancelled_job_ends_it(where, sent):
    store, job = sent("listen")
    with watching(store, job, cwd=where) as shown:
        shown.shows(r"(?m)^step      waits for the event go$")
        assert dutiful("cancel", store, job, cwd=where).returncode == 0

        assert shown.ends() == 1
    assert re.search(r"(?m)^cancelled ", shown.text)


def test_each_attempt_shows(where, sent):
    with watching(*sent("again"), cwd=where) as shown:
        assert shown.ends() == 0
    assert re.search(r"(?m)^failed    attempt 1: ValueError: at first$", shown.text)


def test_for_programs_there_is_a_line_for_each_change(where, sent):
    with watching(*sent("walk"), "--json", cwd=where) as shown:
        shown.shows('"progress": {"done": 1, "total": 2, "message": "half"}')
        (where / "go").touch()

        assert shown.ends() == 0
    last = json.loads(shown.text.splitlines()[-1])
    assert (last["state"], last["result"]) == ("completed", {"walked": 2})
    assert last["steps"] == [{"name": "prepare", "kind": "step", "done": True}]


def test_ctrl_c_leaves_and_changes_nothing(where, sent):
    store, job = sent("walk")
    with watching(store, job, cwd=where) as shown:
        shown.shows("(?m)^progress ")
        shown.process.send_signal(signal.SIGINT)

        assert shown.ends() == 130
    assert dutiful("job", store, job, "--json", cwd=where).returncode == 0
    (where / "go").touch()
    assert dutiful("watch", store, job, cwd=where).returncode == 0


def test_a_job_that_has_ended_is_shown_at_once(store):
    assert dutiful("watch", store, 2).stdout.splitlines()[-1] == "3"
    assert [dutiful("watch", store, job).returncode for job in (2, 3, 4)] == [0, 1, 1]


def test_a_job_that_is_not_there_is_said(store):
    done = dutiful("watch", store, 99)

    assert done.returncode == 1
    assert "job 99 is not in the store" in done.stderr


def test_a_job_that_is_deleted_meanwhile_ends_it(store):
    with watching(store, 5, cwd=store.parent) as shown:
        shown.shows("(?m)^pending ")
        Worker(store).job(5).delete()

        assert shown.ends() == 1
        assert "job 5 is not in the store" in shown.process.stderr.read()
