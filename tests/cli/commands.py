"""The command line as users meet it: real processes, and facts to wait for."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WAIT_S = 30.0  # a bound for facts that take less than a second, on a machine that is busy with other tests
COMMAND = [sys.executable, "-P", "-m", "dutiful"]  # -P: as for the script, no module comes from cwd

# The handlers tell what happens by lines in a file: nothing that the store says of itself is needed.
APP = """\
import asyncio, os, time
from dutiful import Worker

worker = Worker("jobs.db", concurrency=2, grace_s=20)
notes = os.open("notes.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(text):
    os.write(notes, f"{text}\\n".encode())

@worker.handler("note")
def write(n: int):
    note(f"note {n} {os.getpid()}")
    return {"pid": os.getpid()}

@worker.handler("until")
def until(path: str):
    note(f"began {os.getpid()}")
    while not os.path.exists(path):
        time.sleep(0.01)
    note("ended")

@worker.handler("doze")
async def doze(seconds: int):
    note("dozing")
    await asyncio.sleep(seconds)

@worker.handler("boom")
def boom(message: str):
    raise ValueError(message)

class House:
    cellar = worker
"""


def dutiful(
    *args: object, cwd: Path | None = None, stdin: str | bytes = b"", **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    data = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*COMMAND, *map(str, args)], cwd=cwd, input=data, capture_output=True, timeout=WAIT_S * 2, **options
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def told(*args: object, cwd: Path | None = None) -> Any:
    """Return the document that a command prints with --json."""
    done = dutiful(*args, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def listed(*args: object, cwd: Path | None = None) -> list[Any]:
    """Return the JSON lines that a command prints with --json."""
    done = dutiful(*args, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def wait_until(fact: Callable[[], object], what: str = "it", timeout_s: float = WAIT_S) -> None:
    """Wait for a fact outside this process that nothing would wake us for."""
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, f"{what}: not so within {timeout_s} s"
        time.sleep(0.01)


class Running:
    """A command that goes on; its log lines are read as they come."""

    def __init__(self, cwd: Path, *args: object) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, *map(str, args)], cwd=cwd, stderr=subprocess.PIPE, text=True, process_group=0
        )
        self.pid = self._process.pid
        self.lines: list[str] = []
        self._said = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                with self._said:
                    self.lines.append(line.rstrip("\n"))
                    self._said.notify_all()

    def said(self, text: str, times: int = 1) -> None:
        """Wait until so many lines with this text have come."""
        with self._said:
            so = self._said.wait_for(lambda: sum(text in line for line in self.lines) >= times, WAIT_S)
        assert so, f"no {text!r}; it said\n" + "\n".join(self.lines)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def ends(self) -> int:
        """Wait for the end; return the exit code."""
        code = self._process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def has_ended(self, within_s: float) -> bool:
        try:
            self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.ends()


@contextmanager
def running(cwd: Path, *args: object) -> Iterator[Running]:
    """Run a command for the length of the block; whatever happens, it and its processes are gone then."""
    command = Running(cwd, *args)
    try:
        yield command
    finally:
        # First the ways that take the processes below along.
        for within_s in (0, 3):
            if not command.has_ended(within_s):
                command.signal(signal.SIGTERM)
        if not command.has_ended(within_s=10):
            command.kill()
        command.ends()


def notes(folder: Path) -> list[str]:
    """Return what the handlers noted."""
    path = folder / "notes.txt"
    return path.read_text().splitlines() if path.exists() else []


def on_terminal(
    *args: object, cwd: Path, answer: str = "", env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and all that was to be seen."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd)
        os.execve(COMMAND[0], [*COMMAND, *map(str, args)], {**os.environ, "TERM": "xterm", **(env or {})})
    if answer:
        os.write(terminal, answer.encode())
    seen = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # EIO: the other side is closed
            break
        if not data:
            break
        seen += data
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), seen.decode()
