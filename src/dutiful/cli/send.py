"""`dutiful send`: one job, or a stream of them."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, lines, options, show, text
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from dutiful import Worker

_EPILOG = """\
examples:
  dutiful send jobs.db notify '{"user_id": 7}'
  dutiful send jobs.db notify '{"user_id": 7}' --delay 10m --priority 5
  dutiful send jobs.db report null --run-at 2027-01-31T09:00+01:00
  dutiful send jobs.db notify < users.jsonl        one job per line

The ids are printed, one a line (for a stream: not on a terminal). Lines are stored as they come.
After a bad line nothing more is; the message says which it was, and what is stored."""


class _BadLine(Exception):
    def __init__(self, number: int, problem: object) -> None:
        super().__init__(number, problem)
        self.number, self.problem = number, problem


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    parser.add_argument("task", metavar="TASK", help="the task's name, or its payload type's")
    parser.add_argument(
        "payload", metavar="JSON", nargs="?", help="the payload; without it, JSON lines from stdin"
    )
    parser.add_argument("--queue", help="the queue (default)")
    due = parser.add_mutually_exclusive_group()
    due.add_argument("--delay", type=options.seconds, metavar="TIME", help="due after 90, 90s, 10m, 2h, 1d")
    due.add_argument(
        "--run-at", type=options.instant, metavar="INSTANT", help="due then: ISO 8601 with a time zone"
    )
    parser.add_argument("--priority", type=int, default=0, metavar="N", help="higher runs first (0)")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store, make=True) as worker:
        return _one(worker, args) if args.payload is not None else _stream(worker, args)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "task": args.task,
        "queue": args.queue,
        "delay": args.delay,
        "run_at": args.run_at,
        "priority": args.priority,
    }


def _one(worker: Worker, args: argparse.Namespace) -> int:
    import msgspec

    try:
        payload = msgspec.json.decode(args.payload)
    except (msgspec.DecodeError, UnicodeError) as error:
        raise codes.Refused(f"the payload is no JSON: {error}. Nothing was stored.") from error
    print(worker.send(payload, **_options(args)).id)
    return codes.OK


# --- a stream -------------------------------------------------------------------------------------


def _stream(worker: Worker, args: argparse.Namespace) -> int:
    if sys.stdin.isatty():
        show.tell("reading JSON lines from the keyboard; Ctrl-D ends")
    sending = _Sending(worker, _options(args))
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
    def __init__(self, worker: Worker, sending_options: dict[str, Any]) -> None:
        self._worker = worker
        self._options = sending_options
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
                    self._send(batch)
                    read += length
                    update(read, text.jobs(self.count))
            except lines.LineTooLong as error:
                raise _BadLine(error.number, error) from error

    def _send(self, batch: list[lines.Line]) -> None:
        """Send the lines up to the first bad one, and raise that."""
        from dutiful import NotEncodable

        payloads, bad = _decoded(batch)
        try:
            self._stored(self._worker.send_many(payloads, **self._options).ids)
        except NotEncodable:
            # Of this batch nothing is stored (lines.READ_BYTES), so that each is sent once here.
            self._one_by_one(batch, payloads)
        if bad is not None:
            raise bad

    def _one_by_one(self, batch: list[lines.Line], payloads: list[Any]) -> None:
        from dutiful import NotEncodable

        for line, payload in zip(batch, payloads, strict=False):
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


def _decoded(batch: list[lines.Line]) -> tuple[list[Any], _BadLine | None]:
    import msgspec

    decode: Callable[[bytes], Any] = msgspec.json.Decoder().decode
    payloads: list[Any] = []
    for line in batch:
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
