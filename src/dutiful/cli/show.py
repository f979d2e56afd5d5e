"""Printing: lines, columns, JSON. In colour on a terminal if rich is there; else the same text, plain."""

import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, TextIO

Part = str | tuple[str, str]  # text, or (text, style); the text is harmless already

DIM = "dim"
BOLD = "bold"
STATE_STYLES = {
    "pending": "cyan",
    "blocked": "yellow",
    "running": "blue",
    "completed": "green",
    "dead": "red",
    "cancelled": "dim",
}


def line(*parts: Part) -> None:
    """Print one line to standard output."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    _writer()(styled)


def _plain(parts: list[tuple[str, str]]) -> None:
    print("".join(text for text, _ in parts))


@cache
def _writer() -> Callable[[list[tuple[str, str]]], None]:
    if not _has_colour(sys.stdout):
        return _plain
    from dutiful.cli.rich_terminal import printer

    return printer()


def _has_colour(stream: TextIO) -> bool:
    return (
        stream.isatty() and not os.environ.get("NO_COLOR") and is_clever() and find_spec("rich") is not None
    )


def is_clever() -> bool:
    """Whether a terminal, if there is one, can move about in a line."""
    return os.environ.get("TERM", "") not in ("", "dumb")


def state(name: str) -> tuple[str, str]:
    """Return a state's name in its colour."""
    return name, STATE_STYLES.get(name, "")


def columns(
    heads: Sequence[str], rows: Sequence[Sequence[Part]], *, right: frozenset[int] = frozenset()
) -> None:
    """Print rows below their heads; the columns in `right` are numbers."""
    cells = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    widths = [max(len(head), *(len(row[at][0]) for row in cells)) for at, head in enumerate(heads)]
    for row in [[(head, DIM) for head in heads], *cells]:
        line(*_aligned(row, widths, right))


def _aligned(row: Sequence[tuple[str, str]], widths: Sequence[int], right: frozenset[int]) -> Iterator[Part]:
    for at, (text, style) in enumerate(row):
        is_last = at == len(row) - 1
        padded = text.rjust(widths[at]) if at in right else text if is_last else text.ljust(widths[at])
        yield "  "
        yield padded, style


def document(value: Any) -> None:
    """Print one JSON document, indented."""
    print(json.dumps(value, indent=2))


def record(value: Any) -> None:
    """Print one line of JSON lines."""
    print(json.dumps(value))


def tell(text: str) -> None:
    """Print a line for people to standard error, beside the output."""
    print(text, file=sys.stderr)


@contextmanager
def progress(label: str, total: int | None) -> Generator[Callable[[int, str], None], None, None]:
    """Show on a terminal how far it is: call the function given, with a note. Elsewhere show nothing."""
    if not sys.stderr.isatty() or not is_clever():
        yield lambda _done, _note: None
        return
    if _has_colour(sys.stderr):
        from dutiful.cli import rich_terminal

        with rich_terminal.progress(label, total) as update:
            yield update
        return
    # Each write covers the one before it: notes only grow.
    try:
        yield lambda _done, note: print(f"\r  {label}  {note}", end="", file=sys.stderr, flush=True)
    finally:
        print(file=sys.stderr)
