"""`dutiful rekey`: encrypt what is stored with the newest key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dutiful.cli import codes, options, show
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse

_EPILOG = """\
examples:
  DUTIFUL_KEY=$NEW,$OLD dutiful rekey jobs.db

Encrypts with the first key what is stored with the others, or in clear. All workers must have both
keys before. When nothing is left, the old key can go. Repeating goes on where it was."""


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    options.as_json(parser, "one document: done, and left, by key")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        found = worker.rekey()
    if args.json:
        show.document({"done": found.done, "left": found.left})
    else:
        show.line(f"{found.done:,} values encrypted with the first key")
        for key_id, count in found.left.items():
            show.tell(f"dutiful: {count:,} rows cannot be read with key {key_id}, and are as they were")
    return codes.FAILED if found.left else codes.OK
