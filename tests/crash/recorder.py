"""
Record what a process does to its database files, in order: writes, syncs, and its own promises.

The program runs under `strace`, which prints every write, truncation, sync, creation, rename and
unlink, with all bytes in hexadecimal: such a line holds no quote or comma of its own, so it parses
without guessing. The program appends a line to the *marks* file for each promise it makes ("ACK 7",
when `send` has returned): that is a system call too, so promises stand in one order with the
writes. A call of one thread can span others' lines; an event therefore has a `begin` and an `end`
(line numbers), and whoever replays it decides what had surely happened.

The `-shm` file is not recorded: it is mapped memory, and SQLite rebuilds it. Reads are not either.
What we could not replay (`pwritev` on a database file, `write` on one that was not opened to be appended to)
is refused, not ignored.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

TRACED = (
    "pwrite64,write,pwritev,pwritev2,writev,ftruncate,fallocate,fsync,fdatasync,sync_file_range,"
    "open,openat,creat,unlink,unlinkat,rename,renameat,renameat2,link,linkat"
)
STRING_BYTES_MAX = 1 << 22  # SQLite writes a page at a time; a longer one is refused, not cut


class RecordingFailed(Exception):
    """The trace holds something that cannot be replayed, or the program failed."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that began and (unless a kill came between) ended at these lines of the trace."""

    begin: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Write(Event):
    """Bytes put into the file at `offset`."""

    name: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Append(Event):
    """Bytes put at the end of the file, wherever that was."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate(Event):
    """The file was given this size."""

    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Sync(Event):
    """fsync or fdatasync of the file; an empty name is the directory."""

    name: str


@dataclass(frozen=True, slots=True)
class Create(Event):
    """Opened with O_CREAT; it may have been there."""

    name: str


@dataclass(frozen=True, slots=True)
class Unlink(Event):
    """The name is gone."""

    name: str


@dataclass(frozen=True, slots=True)
class Rename(Event):
    """The file has another name."""

    name: str
    new_name: str


@dataclass(frozen=True, slots=True)
class Mark(Event):
    """A line that the program appended to its marks file."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """One system call as strace printed it; `result` is None if the process died in it."""

    begin: int
    end: int | None
    name: str
    args: str
    result: int | None
    result_path: str | None


def record(argv: Sequence[str], *, db: Path, marks: Path, trace: Path, timeout_s: float) -> list[Event]:
    """Run `argv` under strace to its end and return what it did to `db`, its WAL and its journal."""
    if db.exists():
        raise RecordingFailed(f"{db} is there already; a recording begins with nothing")
    command = [*strace(trace), *argv]
    done = run(command, timeout_s=timeout_s)
    if done.returncode:
        raise RecordingFailed(f"exit status {done.returncode}: {done.stderr[-2000:]}")
    with trace.open() as lines:
        return list(events(calls(lines), db=db, marks=marks))


def run(command: Sequence[str], *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; when the time is up, kill all that it has started and show their stacks."""
    patient = ["env", "--ignore-signal=USR1", *command]  # strace would die of it; the app sets its own
    with subprocess.Popen(
        patient, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGUSR1)  # the app shows its stacks
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGKILL)
            said, errors = process.communicate()
            raise RecordingFailed(f"not ended within {timeout_s} s: {errors[-20_000:]}") from None
    return subprocess.CompletedProcess(command, process.returncode, said, errors)


def strace(trace: Path) -> list[str]:
    """Return the command that records the program named after it."""
    if shutil.which("strace") is None:
        raise RecordingFailed("strace is not installed")
    options = ["-f", "-y", "-xx", "-qq", "--seccomp-bpf", "-s", str(STRING_BYTES_MAX)]
    return ["strace", *options, "-e", "signal=none", "-e", f"trace={TRACED}", "-o", str(trace)]


LINE = re.compile(r"(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)", re.DOTALL)
RESULT = re.compile(r"\) += (-?\d+|\?)(?:<([^>]*)>)?[^\"]*$")
UNFINISHED = " <unfinished ...>"


def calls(lines: Iterable[str]) -> Iterator[Call]:
    """Join the halves of interrupted lines; a call comes when it ends, or last if it never did."""
    open_calls: dict[str, tuple[int, str, str]] = {}
    for number, line in enumerate(lines):
        match = LINE.match(line.rstrip("\n"))
        if match is None:
            continue  # "+++ exited +++"
        thread, resumed, name, rest = match.groups()
        if resumed is None and rest.endswith(UNFINISHED):
            open_calls[thread] = (number, name, rest.removesuffix(UNFINISHED))
            continue
        begin, name, head = open_calls.pop(thread) if resumed else (number, name, "")
        yield _call(begin, number, name, head + rest)
    for begin, name, head in open_calls.values():
        yield Call(begin, None, name, head.rstrip(", "), None, None)


def _call(begin: int, end: int, name: str, text: str) -> Call:
    match = RESULT.search(text)
    if match is None:
        raise RecordingFailed(f"no result in {name}({text[:200]}")
    number, path = match.groups()
    if number == "?":
        return Call(begin, None, name, text[: match.start()], None, None)
    return Call(begin, end, name, text[: match.start()], int(number), _text(path) if path else None)


FILE = r"\d+<([^>]*)>(?:\(deleted\))?"
STRING = r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?'
PWRITE = re.compile(rf"{FILE}, {STRING}, \d+, (\d+)")
WRITE = re.compile(rf"{FILE}, {STRING}, \d+")
FTRUNCATE = re.compile(rf"{FILE}, (\d+)")
ONE_FILE = re.compile(FILE)
STRINGS = re.compile(STRING)


def events(traced: Iterable[Call], *, db: Path, marks: Path) -> Iterator[Event]:
    """Translate the calls that succeeded, or may have, and concern the database or the marks."""
    places = _Places(db, marks)
    found = (event for call in traced for event in places.events(call))
    yield from _placed(sorted(found, key=lambda event: event.begin))


def _placed(found: Iterable[Event]) -> Iterator[Event]:
    """Say where in the file an append went."""
    sizes: dict[str, int] = {}
    for event in found:
        match event:
            case Append(begin, end, name, data):
                yield Write(begin, end, name, sizes.get(name, 0), data)
                sizes[name] = sizes.get(name, 0) + len(data)
                continue
            case Write(name=name, offset=offset, data=data):
                sizes[name] = max(sizes.get(name, 0), offset + len(data))
            case Truncate(name=name, size=size):
                sizes[name] = size
            case Unlink(name=name):
                sizes.pop(name, None)
            case Rename(name=name, new_name=new_name):
                sizes[new_name] = sizes.pop(name, 0)
        yield event


class _Places:
    """Knows which paths matter: the database, its WAL, its journal, their directory, the marks."""

    def __init__(self, db: Path, marks: Path) -> None:
        db = db.resolve()
        self._names = {str(db) + suffix: db.name + suffix for suffix in ("", "-wal", "-journal")}
        self._names[str(db.parent)] = ""
        self._marks = str(marks.resolve())
        self._appended: set[str] = set()  # what was opened to be appended to

    def events(self, call: Call) -> Iterator[Event]:
        """Return the event of one call, if it is one."""
        if call.result is not None and call.result < 0:
            return
        match call.name:
            case "pwrite64":
                yield from self._pwrite(call)
            case "write":
                yield from self._write(call)
            case "ftruncate":
                yield from self._truncate(call)
            case "fsync" | "fdatasync":
                yield from self._sync(call)
            case "open" | "openat" | "creat":
                yield from self._open(call)
            case _:
                yield from self._other(call)

    def _pwrite(self, call: Call) -> Iterator[Event]:
        path, text, cut, offset = _fields(PWRITE, call)
        if (name := self._names.get(_text(path))) is not None:
            data = _bytes(text, cut)
            length = len(data) if call.result is None else call.result
            yield Write(call.begin, call.end, name, int(offset), data[:length])

    def _write(self, call: Call) -> Iterator[Event]:
        path, text, cut = _fields(WRITE, call)
        if (name := self._names.get(_text(path))) is not None:
            if _text(path) not in self._appended:
                raise RecordingFailed("write() on a database file: this SQLite does not use pwrite64")
            data = _bytes(text, cut)
            length = len(data) if call.result is None else call.result
            yield Append(call.begin, call.end, name, data[:length])
        if _text(path) == self._marks:
            for line in _bytes(text, cut).decode().splitlines():
                yield Mark(call.begin, call.end, line)

    def _truncate(self, call: Call) -> Iterator[Event]:
        path, size = _fields(FTRUNCATE, call)
        if (name := self._names.get(_text(path))) is not None:
            yield Truncate(call.begin, call.end, name, int(size))

    def _sync(self, call: Call) -> Iterator[Event]:
        (path,) = _fields(ONE_FILE, call)
        if (name := self._names.get(_text(path))) is not None:
            yield Sync(call.begin, call.end, name)

    def _open(self, call: Call) -> Iterator[Event]:
        if "O_APPEND" in call.args and call.result_path:
            self._appended.add(call.result_path)
        if "O_CREAT" not in call.args and call.name != "creat":
            return
        name = self._names.get(call.result_path or "")
        if name:
            yield Create(call.begin, call.end, name)

    def _other(self, call: Call) -> Iterator[Event]:
        paths = [self._names.get(_text(text)) for text, _ in STRINGS.findall(call.args)]
        paths += [self._names.get(_text(path)) for path in ONE_FILE.findall(call.args)]
        if not any(paths):
            return
        if call.name in ("unlink", "unlinkat") and paths[0]:
            yield Unlink(call.begin, call.end, paths[0])
        elif call.name.startswith("rename") and paths[0] and paths[1]:
            yield Rename(call.begin, call.end, paths[0], paths[1])
        else:
            raise RecordingFailed(f"{call.name} on a database file cannot be replayed")


def _fields(pattern: re.Pattern[str], call: Call) -> tuple[str, ...]:
    match = pattern.match(call.args)
    if match is None:
        raise RecordingFailed(f"cannot read {call.name}({call.args[:200]}")
    return match.groups()


def _bytes(text: str, cut: str | None) -> bytes:
    if cut:
        raise RecordingFailed(f"a write of more than {STRING_BYTES_MAX} bytes was cut")
    return bytes.fromhex(text.replace("\\x", ""))


def _text(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda hexed: chr(int(hexed[1], 16)), text)
