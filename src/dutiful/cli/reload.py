"""Noticing that a source file changed. The one file that knows watchfiles."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from dutiful.cli import codes
from dutiful.cli.logs import log

DEBOUNCE_MS = 300  # editors write a file in several steps


def watch(folders: Sequence[Path], changed: Callable[[str], None]) -> Callable[[], None]:
    """
    Call `changed` with a file's name whenever a .py file below the folders changes, in another thread.

    Returns a function that ends the watching.

    Raises:
        Refused: watchfiles is not installed.
    """
    try:
        import watchfiles
    except ModuleNotFoundError as error:
        raise codes.Refused(
            "--reload needs watchfiles; install it with: pip install 'dutiful[reload]'"
        ) from error
    logging.getLogger("watchfiles").setLevel(logging.WARNING)  # "1 change detected": we say which
    ended = threading.Event()

    def follow(*, force_polling: bool | None) -> None:
        changes = watchfiles.watch(
            *folders,
            watch_filter=watchfiles.PythonFilter(),
            stop_event=ended,
            debounce=DEBOUNCE_MS,
            rust_timeout=500,
            raise_interrupt=False,
            force_polling=force_polling,
        )
        for change in changes:
            changed(min(path for _, path in change))

    def look() -> None:
        try:
            follow(force_polling=None)
        except (RuntimeError, OSError) as error:  # its own error is a RuntimeError: the kernel gives no watch
            log.warning("looking for changes every 0.3 s, as the system does not tell of them: %s", error)
            follow(force_polling=True)

    thread = threading.Thread(target=look, name="dutiful-cli-reload", daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join()

    return end
