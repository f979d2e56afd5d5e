"""A line that changes below those that stay, on a terminal; elsewhere a line whenever it has changed."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Self

from dutiful.cli import show, text

if TYPE_CHECKING:
    from types import TracebackType

_WIDTH = 30  # of the bar, in characters
_AGAIN = "\r\x1b[2K"  # to the line's begin, and empty it


class Live:
    """Prints lines, and below them how far it is."""

    def __init__(self) -> None:
        self._is_terminal = sys.stdout.isatty() and show.is_clever()
        self._shown = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()

    def line(self, *parts: show.Part) -> None:
        """Print a line that stays."""
        self.clear()
        show.line(*parts)
        sys.stdout.flush()

    def bar(self, done: float, total: float | None, message: str) -> None:
        """Show how far it is."""
        words = text.progress(done, total, message)
        if not self._is_terminal:
            if words != self._shown:
                show.line((f"{'progress':<10}", show.DIM), words)
                sys.stdout.flush()
            self._shown = words
            return
        shown = words
        if total:
            full = round(_WIDTH * min(1.0, max(0.0, done / total)))
            shown = f"[{'#' * full}{'-' * (_WIDTH - full)}]  {words}"
        room = shutil.get_terminal_size().columns - 1
        self._write(shown if len(shown) <= room else f"{shown[: room - 1]}…")

    def clear(self) -> None:
        """Take that away."""
        if self._is_terminal and self._shown:
            self._write("")

    def _write(self, shown: str) -> None:
        if shown != self._shown:
            sys.stdout.write(_AGAIN + shown)
            sys.stdout.flush()
        self._shown = shown
