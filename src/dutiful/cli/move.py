"""`dutiful move`: all jobs to another store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dutiful.cli import codes, options, show, text

if TYPE_CHECKING:
    import argparse

    from dutiful import Moved

_EPILOG = """\
examples:
  dutiful move jobs.db postgresql://app@db.example.com/app
  dutiful move postgresql://app@db.example.com/app jobs.db
  dutiful move jobs.db --give-up                   the source is in charge again

Stop the workers first. The target is made if it is not there, and must have no jobs. It may be
interrupted anywhere: the same command goes on where it ended, and until it is done neither store can
be used. In the end the counts must match; if not, the source stays in charge. Afterwards the source
refuses everything and says where the jobs are; they are still in it, and it may be deleted."""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="where the jobs are: a file, or a URL")
    parser.add_argument("target", metavar="TARGET", nargs="?", help="where they are to be")
    parser.add_argument(
        "--give-up", action="store_true", help="give up an unfinished move: the source is in charge again"
    )
    options.as_json(parser, "one document: source, target, jobs (by state), errors, damaged, was_done")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    import dutiful

    if args.give_up == (args.target is not None):
        raise codes.Refused("give a source and a target, or a source and --give-up; nothing was changed.")
    if args.give_up:
        return _give_up(args)
    try:
        with show.progress("moving", None if args.json else _count(args.source)) as update:
            done = dutiful.move(
                args.source,
                args.target,
                progress=lambda done, total: update(done, f"{done:,} of {total:,} jobs"),
            )
    except KeyboardInterrupt:
        show.tell(
            "\ndutiful: the move may be unfinished: the same command goes on, or give it up (--give-up)."
        )
        raise
    _report(done, as_json=args.json)
    return codes.OK


def _count(source: str) -> int | None:
    """Return how many jobs there are to move, for the bar; None if the source does not say."""
    import dutiful

    worker = dutiful.Worker(source, name="dutiful-cli", create=False)
    try:
        return sum(worker.counts().by_state.values())
    except dutiful.DutifulError:  # an unfinished move, or a fault: the move itself will say
        return None
    finally:
        worker.stop()


def _report(done: Moved, *, as_json: bool) -> None:
    if as_json:
        show.document(
            {
                "source": done.source,
                "target": done.target,
                "jobs": {str(state): count for state, count in done.by_state.items()},
                "errors": done.errors,
                "damaged": done.damaged,
                "was_done": done.was_done,
            }
        )
        return
    source, target = text.clean(done.source), text.clean(done.target)
    if done.was_done:
        show.line(f"{source} was moved to {target} before; nothing to do")
        return
    show.line(f"{text.jobs(done.jobs)} moved from {source} to {target}")
    show.line()
    for state, count in done.by_state.items():
        show.line("  ", (f"{state:<10}", show.state(str(state))[1]), f"{count:>12,}")
    show.line()
    if done.damaged:
        show.line(
            (f"  {done.damaged:,} damaged payloads or results could not be stored there", "yellow"),
            "; their jobs were, without",
        )
    show.line(f"  use {target} from now on; {source} refuses, and may be deleted")


def _give_up(args: argparse.Namespace) -> int:
    import dutiful

    was_unfinished = dutiful.give_up_move(args.source)
    if args.json:
        show.document({"source": args.source, "given_up": was_unfinished})
    elif was_unfinished:
        show.line(f"{text.clean(args.source)} is in charge again; what the target has of it is out of use")
    else:
        show.line(f"{text.clean(args.source)} has no unfinished move; nothing to do")
    return codes.OK
