"""`dutiful send`: one job, or a stream of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, stream
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse

    from dutiful import Worker

_EPILOG = """\
examples:
  dutiful send jobs.db notify '{"user_id": 7}'
  dutiful send jobs.db notify '{"user_id": 7}' --delay 10m --priority 5
  dutiful send jobs.db report null --run-at 2027-01-31T09:00+01:00
  dutiful send jobs.db sync '{"account": 42}' --key account:42 --unique
  dutiful send jobs.db Order@2 '{"id": 7}'         of a payload type with @version(2)
  dutiful send jobs.db notify < users.jsonl        one job per line

The ids are printed, one a line (for a stream: not on a terminal). Lines are stored as they come.
After a bad line nothing more is; the message says which it was, and what is stored."""


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    parser.add_argument(
        "task", metavar="TASK", help="the task's name, or its payload type's; Order@2: in version 2"
    )
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
    parser.add_argument("--key", metavar="KEY", help="jobs of one key run one at a time, in the order sent")
    parser.add_argument(
        "--unique", action="store_true", help="if the same one waits or runs already, print that one's id"
    )
    parser.add_argument(
        "--expires", type=options.seconds, metavar="TIME", help="dead if not started by then: 90, 90s, 10m"
    )
    parser.add_argument("--secret", action="store_true", help="mask the payload wherever it is shown")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store, make=True) as worker:
        return _one(worker, args) if args.payload is not None else stream.send(worker, _options(args))


def _options(args: argparse.Namespace) -> dict[str, Any]:
    asked = {
        "key": args.key,
        "unique": args.unique or None,
        "expires": args.expires,
        "secret": args.secret or None,
    }
    return {
        **{name: value for name, value in asked.items() if value is not None},
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
