"""`dutiful send` of a stream: JSON lines become jobs as they come."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, lines, show, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dutiful import Worker

# What `send_many` puts in one commit at least: a thousand jobs, or 1 MiB as stored (JSON grows then: 1e9
# becomes 1000000000.0). Given no more, it stores all or nothing, and the id of each stored job is known.
PART_JOBS = 1000
PART_BYTES = 128 * 1024


class _BadLine(Exception):
    def __init__(self, number: int, problem: object) -> None:
        super().__init__(number, problem)
        self.number, self.problem = number, problem


def send(worker: Worker, options: dict[str, Any]) -> int:
    """Send the lines of standard input; print the ids. Stops at the first bad line, and says which."""
    if sys.stdin.isatty():
        show.tell("reading JSON lines from the keyboard; Ctrl-D ends")
    sending = _Sending(worker, options)
    try:
        sending.all()
    except _BadLine as bad:
        raise codes.Refused(_report(bad, sending.count), codes.FAILED) from bad
    except BaseException as error:  # Ctrl-C, a full disk: what is stored stays
        if sending.count:
            error.add_note(f"{text.jobs(sending.count)} stored before.")
        raise
    if sys.stdout.isatty():
        print(sending.summary())
    return codes.OK


def _report(bad: _BadLine, count: int) -> str:
    return (
        f"line {bad.number}: {bad.problem}. What came before is stored: "
        f"{text.jobs(count)}; nothing from this line on. Mend it and send the rest: tail -n +{bad.number}"
    )


class _Sending:
    def __init__(self, worker: Worker, options: dict[str, Any]) -> None:
        self._worker = worker
        self._options = options
        self.count = 0
        self._first = self._last = 0
        self._prints = not sys.stdout.isatty()

    def summary(self) -> str:
        if not self.count:
            return "0 jobs stored"
        ids = f"id {self._first}" if self.count == 1 else f"ids {self._first} to {self._last}"
        return f"{text.jobs(self.count)} stored, {ids}"

    def all(self) -> None:
        size = _size_of_stdin()
        read = 0
        with show.progress("sending", size) as update:
            try:
                for batch, length in lines.batches(sys.stdin.buffer):
                    for part in _parts(batch):
                        self._send(part)
                    read += length
                    update(read, text.jobs(self.count))
            except lines.LineTooLong as error:
                raise _BadLine(error.number, error) from error

    def _send(self, part: list[lines.Line]) -> None:
        """Send the lines up to the first bad one, and raise that."""
        from dutiful import DutifulError, NotEncodable

        payloads, bad = _decoded(part)
        try:
            self._stored(self._worker.send_many(payloads, **self._options).ids)
        except DutifulError as error:
            self.count += error.stored
            error.__notes__ = []  # it speaks of this part, of which nobody but us knows
            if not isinstance(error, NotEncodable):
                raise
            self._one_by_one(part[error.stored :], payloads[error.stored :])
        if bad is not None:
            raise bad

    def _one_by_one(self, part: list[lines.Line], payloads: list[Any]) -> None:
        """Send them until the one that cannot be stored: now it is known which."""
        from dutiful import NotEncodable

        for line, payload in zip(part, payloads, strict=False):
            try:
                self._stored([self._worker.send(payload, **self._options).id])
            except NotEncodable as error:
                raise _BadLine(line.number, error.reason) from error

    def _stored(self, ids: list[int]) -> None:
        if not ids:
            return
        self._first = self._first or ids[0]
        self._last = ids[-1]
        self.count += len(ids)
        if self._prints:
            self._print(ids)

    def _print(self, ids: list[int]) -> None:
        """Print ids as they are stored; that nobody reads them (`| head`) does not end the sending."""
        try:
            print(*ids, sep="\n", flush=True)
        except BrokenPipeError:
            self._prints = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parts(batch: list[lines.Line]) -> Iterator[list[lines.Line]]:
    part: list[lines.Line] = []
    size = 0
    for line in batch:
        if part and (len(part) >= PART_JOBS or size + len(line.data) > PART_BYTES):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line.data)
    if part:
        yield part


def _decoded(part: list[lines.Line]) -> tuple[list[Any], _BadLine | None]:
    import msgspec

    decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode
    payloads: list[Any] = []
    for line in part:
        try:
            payloads.append(decode(line.data))
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            return payloads, _BadLine(line.number, f"no JSON: {error}")
    return payloads, None


def _size_of_stdin() -> int | None:
    """Return the size of a file that was redirected; a pipe has none."""
    with contextlib.suppress(OSError, ValueError):
        found = os.fstat(sys.stdin.fileno())
        if stat.S_ISREG(found.st_mode):
            return found.st_size
    return None
