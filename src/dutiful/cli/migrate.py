"""`dutiful migrate`: the schema, for those who do not leave it to the first start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dutiful.cli import codes, options, show, text

if TYPE_CHECKING:
    import argparse

_EPILOG = """\
examples:
  dutiful migrate postgresql://app@db.example.com/app
  dutiful migrate postgresql://app@db.example.com/app --sql > dutiful.sql
  dutiful migrate 'postgresql://db.example.com/app?dutiful_schema=jobs'

A worker does the same when it starts, unless its store's URL says dutiful_migrate=off. It is one
transaction, under a lock, and old workers may run meanwhile. --sql changes nothing: it prints what
leads from the version that is there to this program's, and nothing if they are the same."""


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    parser.add_argument("--sql", action="store_true", help="print the SQL, for others to apply")
    options.as_json(parser, "one document: store, before, after")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    import dutiful

    if args.sql:
        print(dutiful.migration_sql(args.store), end="")
        return codes.OK
    done = dutiful.migrate(args.store)
    if args.json:
        show.document({"store": done.store, "before": done.before, "after": done.after})
        return codes.OK
    name = text.clean(done.store)
    if done.before == done.after:
        show.line(f"{name}: schema version {done.after}, up to date; nothing to do")
    elif not done.before:
        show.line(f"{name}: made, schema version {done.after}")
    else:
        show.line(f"{name}: schema version {done.before} → {done.after}")
    return codes.OK
