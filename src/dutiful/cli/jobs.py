"""`dutiful jobs`: a list, a page at a time, so that a million jobs take no memory."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, show, text
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from dutiful import Paused, Record, Worker

PAGE_JOBS = 500
LIMIT_JOBS = 50

_EPILOG = """\
examples:
  dutiful jobs jobs.db
  dutiful jobs jobs.db --state dead --state cancelled --task notify
  dutiful jobs jobs.db --before 4711               the next page
  dutiful jobs jobs.db --all --json | jq .id       all of them, a line each

Payloads and results are shown by `dutiful job` alone: they may be private."""
_FAR_MS = 50 * 365 * 86_400_000  # so far away is only what waits for an event without a timeout
_BEHIND = {"after": "other jobs", "group": "the rest of its group", "key": "its key", "pool": "its limit"}


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    options.which_jobs(parser)
    limits = parser.add_mutually_exclusive_group()
    limits.add_argument(
        "--limit", type=options.count, default=LIMIT_JOBS, metavar="N", help="at most this many (%(default)s)"
    )
    limits.add_argument("--all", action="store_true", help="without a limit")
    parser.add_argument("--before", type=options.count, metavar="ID", help="only jobs with a smaller id")
    options.as_json(parser, "JSON lines, one per job")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        found = itertools.chain.from_iterable(pages(worker, args, before=args.before))
        wanted = found if args.all else itertools.islice(found, args.limit)
        last = _as_lines(wanted) if args.json else _as_table(wanted, worker.paused())
        if not args.json and not args.all and last is not None and next(found, None) is not None:
            show.line()
            show.line((f"  there are more: --before {last}", show.DIM))
    return codes.OK


def pages(worker: Worker, args: argparse.Namespace, *, before: int | None = None) -> Iterator[list[Record]]:
    """Yield the jobs that `options.which_jobs` asks for, newest first, a page at a time."""
    while page := worker.jobs(
        state=args.state or (), task=args.task, queue=args.queue, before=before, limit=PAGE_JOBS
    ):
        yield page
        before = page[-1].id


def _as_lines(records: Iterator[Record]) -> int | None:
    last = None
    for record in records:
        show.record(summary(record))
        last = record.id
    return last


def summary(record: Record) -> dict[str, Any]:
    """Return a job for programs, without what may be private."""
    return {
        "id": record.id,
        "state": str(record.state),
        "task": record.task,
        "version": record.version,
        "queue": record.queue,
        "priority": record.priority,
        "attempt": record.attempt,
        "failures": record.failures,
        "crashes": record.crashes,
        "created_at": text.iso(record.created_at),
        "due_at": text.iso(record.due_at),
        "started_at": text.iso(record.started_at),
        "finished_at": text.iso(record.finished_at),
        "cancel_at": text.iso(record.cancel_at),
        "worker": record.worker,
        "key": record.key,
        "held": record.held,
        "expires_at": text.iso(record.expires_at),
    }


def _as_table(records: Iterator[Record], paused: list[Paused]) -> int | None:
    last = None
    # Columns are as wide as their page needs: with `--all` the width may change from page to page.
    while page := list(itertools.islice(records, PAGE_JOBS)):
        now_ms = round(time.time() * 1000)
        heads = ("ID", "STATE", "TASK", "QUEUE", "ATTEMPT", "WHEN")
        show.columns(heads, [_row(record, now_ms, paused) for record in page], right=frozenset({0, 4}))
        last = page[-1].id
    if last is None:
        show.tell("no such jobs")
    return last


def _row(record: Record, now_ms: int, paused: list[Paused]) -> list[show.Part]:
    return [
        str(record.id),
        show.state(str(record.state)),
        text.task(record),
        text.clean(record.queue),
        str(record.attempt),
        (when(record, now_ms, paused), show.DIM),
    ]


def when(record: Record, now_ms: int, paused: list[Paused]) -> str:
    """Return the instant that matters in the job's state, in words; and whether it is paused."""
    if record.finished_at is not None:
        return text.from_now(record.finished_at, now_ms)
    if record.state == "running":
        asked = ", asked to stop" if record.cancel_at is not None else ""
        started = record.started_at or record.due_at
        return f"since {text.duration((now_ms - started) / 1000)}{asked}"
    if record.held in _BEHIND:
        return f"waits for {_BEHIND[record.held]}"
    if record.due_at > now_ms + _FAR_MS:
        return "waits for an event"
    if record.due_at > now_ms:
        return f"due {text.from_now(record.due_at, now_ms)}"
    if any(each.name == getattr(record, each.kind) for each in paused):
        return "paused"
    return f"due since {text.duration((now_ms - record.due_at) / 1000)}"
