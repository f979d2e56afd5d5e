"""`dutiful schedules`: what fires when; and pausing, resuming and running one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, show, text
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse

    from dutiful import Worker
    from dutiful.schedules import Schedule

_EPILOG = """\
examples:
  dutiful schedules jobs.db
  dutiful schedules jobs.db --pause report
  dutiful schedules jobs.db --run report         prints the id of the job

A stale one has not been declared by any worker for an hour: it does not fire."""


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--pause", metavar="NAME", help="let it fire no more")
    what.add_argument("--resume", metavar="NAME", help="let it fire again, from now on")
    what.add_argument("--run", metavar="NAME", help="store a job of it now")
    what.add_argument("--forget", metavar="NAME", help="remove it; a worker that declares it brings it back")
    options.as_json(parser, "JSON lines, one per schedule")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        if args.run is not None:
            show.line(str(worker.schedules.run(args.run).id))
            return codes.OK
        _change(worker, args)
        found = list(worker.schedules)
    if args.json:
        for schedule in found:
            show.record(_document(schedule))
    elif not found:
        show.tell("there are no schedules")
    else:
        now_ms = round(time.time() * 1000)
        heads = ("NAME", "WHEN", "QUEUE", "LAST JOB", "NEXT")
        show.columns(heads, [_row(schedule, now_ms) for schedule in found], right=frozenset({3}))
    return codes.OK


def _change(worker: Worker, args: argparse.Namespace) -> None:
    for action in ("pause", "resume", "forget"):
        name = getattr(args, action)
        if name is not None:
            getattr(worker.schedules, action)(name)


def _row(schedule: Schedule, now_ms: int) -> tuple[str, ...]:
    if schedule.paused:
        following = "paused"
    elif schedule.stale:
        following = "stale"
    else:
        following = text.from_now(schedule.next_at, now_ms)
    last = "" if schedule.last_job is None else str(schedule.last_job)
    return text.clean(schedule.name), text.clean(schedule.spec), text.clean(schedule.queue), last, following


def _document(schedule: Schedule) -> dict[str, Any]:
    return {
        "name": schedule.name,
        "spec": schedule.spec,
        "missed": schedule.missed,
        "queue": schedule.queue,
        "next_at": text.iso(schedule.next_at),
        "last_at": text.iso(schedule.last_at),
        "last_job": schedule.last_job,
        "paused": schedule.paused,
        "stale": schedule.stale,
    }
