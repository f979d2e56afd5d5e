"""`dutiful key`: a new key for encryption."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dutiful.cli import codes

if TYPE_CHECKING:
    import argparse

_EPILOG = """\
examples:
  export DUTIFUL_KEY=$(dutiful key)

Whoever has the key can read what is stored; without it nobody can. Keep it where passwords are kept."""


def add_to(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(_args: argparse.Namespace) -> int:
    from dutiful import new_key

    print(new_key())
    return codes.OK
