"""`dutiful pause` and `resume`: a queue, or a task, for all workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, show, text
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse

    from dutiful import Paused, Worker

HELP = {
    "pause": "have no worker begin jobs of a queue, or of a task",
    "resume": "let jobs of a queue, or of a task, run again",
}
_EPILOGS = {
    "pause": """\
examples:
  dutiful pause jobs.db --queue mail
  dutiful pause jobs.db --task notify
  dutiful pause jobs.db                  what is paused

What runs goes on; jobs can be sent, and wait. It holds until `dutiful resume`, restarts included.""",
    "resume": """\
examples:
  dutiful resume jobs.db --queue mail""",
}


def add_to(parser: argparse.ArgumentParser) -> None:
    action = parser.prog.split()[-1]
    options.store(parser)
    which = parser.add_mutually_exclusive_group(required=action == "resume")
    which.add_argument("--queue", metavar="NAME", help="this queue")
    which.add_argument("--task", metavar="NAME", help="this task")
    options.as_json(parser, "one document: all that is paused then")
    parser.set_defaults(command=command, action=action)
    parser.epilog = _EPILOGS[action]


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        was_done = True
        if args.queue is not None or args.task is not None:
            was_done = _change(worker, args)
        paused = worker.paused()
    if args.json:
        show.document([document(each) for each in paused])
    elif not paused:
        show.tell("nothing is paused")
    else:
        rows = [(each.kind, text.clean(each.name), text.local(each.at)) for each in paused]
        show.columns(("PAUSED", "NAME", "SINCE"), rows)
    return codes.OK if was_done else codes.FAILED


def document(paused: Paused) -> dict[str, Any]:
    """Return what is paused, for programs."""
    return {"kind": paused.kind, "name": paused.name, "at": text.iso(paused.at)}


def names(paused: list[Paused]) -> str:
    """Return all that is paused, in words."""
    return ", ".join(f"{each.kind} {each.name}" for each in paused)


def _change(worker: Worker, args: argparse.Namespace) -> bool:
    """Do it; return whether that could be done."""
    if args.action == "pause":
        worker.pause(queue=args.queue, task=args.task)
        return True
    if worker.resume(queue=args.queue, task=args.task):
        return True
    show.tell(f"dutiful: {text.clean(args.queue or args.task)} was not paused; nothing was changed.")
    return False
