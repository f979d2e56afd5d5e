"""The one file that knows rich: colour, and a progress bar. Without it everything is there, plainly."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

_BAR = 36  # characters


def printer() -> Callable[[list[tuple[str, str]]], None]:
    """Return a function that prints a line of (text, style) parts to standard output."""
    console = Console(highlight=False, emoji=False, markup=False)

    def write(parts: list[tuple[str, str]]) -> None:
        console.print(Text.assemble(*parts), soft_wrap=True)

    return write


@contextmanager
def progress(label: str, total: int | None) -> Generator[Callable[[int, str], None], None, None]:
    """Show a bar on standard error; the function given sets how far it is, with a note."""
    note = TextColumn("{task.fields[note]}", style="dim")
    columns: list[ProgressColumn]
    if total is None:
        columns = [SpinnerColumn(), TextColumn("{task.description}"), note]
    else:
        line = BarColumn(_BAR, complete_style="green", finished_style="green")
        columns = [TextColumn("  {task.description}"), line, TextColumn("{task.percentage:>3.0f}%"), note]
    with Progress(*columns, console=Console(stderr=True), transient=total is None) as bar:
        task = bar.add_task(label, total=total, note="")
        yield lambda done, text: bar.update(task, completed=done, note=text)
