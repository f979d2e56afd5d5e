"""`dutiful retry`, `cancel`, `delete`: by id, or all that fit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dutiful.cli import codes, options, show, text
from dutiful.cli.jobs import matching
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from dutiful import Job, JobError, Worker

HELP = {
    "retry": "run finished jobs again: dead, cancelled or completed ones",
    "cancel": "end jobs that wait; ask those that run to stop",
    "delete": "remove jobs and their history",
}
_STATES = {
    "retry": ("dead", "cancelled", "completed"),
    "cancel": ("pending", "running"),
    "delete": ("pending", "completed", "dead", "cancelled"),
}
_EDITS: dict[str, Callable[[Job], None]] = {
    "retry": lambda job: job.retry(),
    "cancel": lambda job: job.cancel(),
    "delete": lambda job: job.delete(),
}
_DONE = {"retry": "back in line", "cancel": "cancelled, or asked to stop", "delete": "deleted"}
_EPILOGS = {
    "retry": """\
examples:
  dutiful retry jobs.db 42 43
  dutiful retry jobs.db --dead
  dutiful retry jobs.db --dead --task notify""",
    "cancel": """\
examples:
  dutiful cancel jobs.db 42
  dutiful cancel jobs.db --state pending --task notify

A running async or process=True handler is stopped; one in a thread is asked to (ctx.cancelled).""",
    "delete": """\
examples:
  dutiful delete jobs.db 42
  dutiful delete jobs.db --state completed --yes

On a terminal it asks first. A running job cannot be deleted: cancel it.""",
}


def add_to(parser: argparse.ArgumentParser) -> None:
    edit = parser.prog.split()[-1]
    options.store(parser)
    parser.add_argument("ids", type=options.count, nargs="*", metavar="ID", help="the jobs' ids")
    options.which_jobs(parser, states=_STATES[edit])
    if edit == "retry":
        parser.add_argument(
            "--dead", action="append_const", const="dead", dest="state", help="all that are dead"
        )
    if edit == "delete":
        parser.add_argument("--yes", action="store_true", help="do not ask")
    options.as_json(parser, "JSON lines, one per job: id, done, and if not, error")
    parser.set_defaults(command=command, edit=edit, yes=edit != "delete")
    parser.epilog = _EPILOGS[edit]


def command(args: argparse.Namespace) -> int:
    _check(args)
    with opened(args.store) as worker:
        if not args.yes and not _agreed(args):
            show.tell("nothing was deleted")
            return codes.FAILED
        return _by_id(worker, args) if args.ids else _by_filter(worker, args)


def _check(args: argparse.Namespace) -> None:
    if args.ids and (args.state or args.task or args.queue):
        raise codes.Refused("give ids, or --state and the like, not both; nothing was changed.")
    if not args.ids and not args.state:
        which = "--dead" if args.edit == "retry" else "--state STATE"
        raise codes.Refused(f"give the ids of the jobs, or {which} for all in a state; nothing was changed.")


def _agreed(args: argparse.Namespace) -> bool:
    """Ask whoever sits there; a script that names its jobs by id has said what it wants."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        if args.ids:
            return True
        raise codes.Refused(
            "deleting all that fit needs --yes where nobody can be asked; nothing was deleted."
        )
    if args.ids:
        what = (
            "job "
            + ", ".join(map(str, args.ids[:10]))
            + (f" and {len(args.ids) - 10:,} more" if args.ids[10:] else "")
        )
    else:
        limits = [
            f"of {name} {text.clean(value)}"
            for name, value in (("task", args.task), ("queue", args.queue))
            if value
        ]
        what = " ".join(["all jobs that are", " or ".join(args.state), *limits])
    print(f"Delete {what}, with payload and history? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _by_id(worker: Worker, args: argparse.Namespace) -> int:
    """Change the jobs that were named: one that cannot be is told, and the others are still done."""
    done = 0
    for job_id in args.ids:
        error = _edit(worker.job(job_id), args.edit)
        done += error is None
        if args.json:
            show.record(
                {"id": job_id, "done": error is None} | ({} if error is None else {"error": str(error)})
            )
        elif error is not None:
            show.tell(f"dutiful: {text.clean(str(error))}")
    if not args.json and done:
        show.line(f"{text.jobs(done)} {_DONE[args.edit]}")
    return codes.OK if done == len(args.ids) else codes.FAILED


def _by_filter(worker: Worker, args: argparse.Namespace) -> int:
    """Change all that fit; one that has left the state meanwhile is no error, it is not meant."""
    done = 0
    with show.progress(args.edit, None) as update:
        for job in _matching(worker, args):
            if _edit(job, args.edit) is not None:
                continue
            done += 1
            update(done, text.jobs(done))
            if args.json:
                show.record({"id": job.id, "done": True})
    if not args.json:
        show.line(f"{text.jobs(done)} {_DONE[args.edit]}")
    return codes.OK


def _matching(worker: Worker, args: argparse.Namespace) -> Iterator[Job]:
    for record in matching(worker, args.state, args.task, args.queue):
        yield worker.job(record.id)


def _edit(job: Job, edit: str) -> JobError | None:
    from dutiful import JobError

    try:
        _EDITS[edit](job)
    except JobError as error:
        return error
    return None
