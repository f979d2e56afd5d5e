"""`dutiful retry`, `cancel`, `delete`: by id, or all that fit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dutiful.cli import codes, options, show, text
from dutiful.cli.jobs import PAGE_JOBS, pages
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

    from dutiful import Job, Worker

HELP = {
    "retry": "run finished jobs again: dead, cancelled or completed ones",
    "cancel": "end jobs that wait; ask those that run to stop",
    "delete": "remove jobs and their history",
}
_STATES = {
    "retry": ("dead", "cancelled", "completed"),
    "cancel": ("pending", "blocked", "running"),
    "delete": ("pending", "blocked", "completed", "dead", "cancelled"),
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
        if not args.yes:
            worker.jobs(limit=1)  # a store that is not there is told before anything is asked
            if not _agreed(args):
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
    ids = list(dict.fromkeys(args.ids))  # one that is named twice is meant once
    count = 0
    for start in range(0, len(ids), PAGE_JOBS):
        part = ids[start : start + PAGE_JOBS]
        done = set(_edit(worker, args.edit, part))
        for job_id in part:
            problem = None if job_id in done else _problem(worker.job(job_id), args.edit)
            count += problem is None
            _tell(job_id, problem, as_json=args.json)
    if not args.json and count:
        show.line(f"{text.jobs(count)} {_DONE[args.edit]}")
    return codes.OK if count == len(ids) else codes.FAILED


def _edit(worker: Worker, edit: str, ids: Sequence[int]) -> list[int]:
    """Return the ids for which it was done. The commands are named as the methods are."""
    method: Callable[[Sequence[int]], list[int]] = getattr(worker, edit)
    return method(ids)


def _problem(job: Job, edit: str) -> str | None:
    """Try a job alone that was left out, which says why; None if by now it could be done."""
    from dutiful import JobError

    try:
        getattr(job, edit)()
    except JobError as error:
        return str(error)
    return None


def _tell(job_id: int, problem: str | None, *, as_json: bool) -> None:
    if as_json:
        show.record({"id": job_id, "done": problem is None} | ({} if problem is None else {"error": problem}))
    elif problem is not None:
        show.tell(f"dutiful: {text.clean(problem)}")


def _by_filter(worker: Worker, args: argparse.Namespace) -> int:
    """Change all that fit; one that has left the state meanwhile is no error, it is not meant."""
    count = 0
    with show.progress(args.edit, None) as update:
        for page in pages(worker, args):
            done = _edit(worker, args.edit, [record.id for record in page])
            count += len(done)
            update(count, text.jobs(count))
            if args.json:
                for job_id in done:
                    show.record({"id": job_id, "done": True})
    if not args.json:
        show.line(f"{text.jobs(count)} {_DONE[args.edit]}")
    return codes.OK
