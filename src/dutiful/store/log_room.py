"""
Room at the end of SQLite's log, so that a commit need not make the file longer.

To sync a file that has grown, the file system has to write down its length too: without room a store's
first sends take 1.6 to 1.7 times as long, on ext4 (bench/log_room.py). So when a commit has made the log
longer, zeros are appended, and the next ones write over them. To SQLite they are the end of the log: a frame
counts by its salt and its checksum (sqlite.org/fileformat2.html#walformat).

They are appended (O_APPEND), at whatever is the end at that instant: no frame can be overwritten, whoever
writes one meanwhile, and no lock is needed.
"""

import contextlib
import os
from pathlib import Path

_FIRST_BYTES, _MOST_BYTES = 64 * 1024, 1024 * 1024
_ZEROS = bytes(_MOST_BYTES)


class LogRoom:
    """
    Keeps room at the end of one log.

    Args:
        log: The file; it may not be there yet.
        bytes_max: A log of this size is not made longer: soon it is written from its beginning again.
    """

    def __init__(self, log: Path, bytes_max: int) -> None:
        self._log = log
        self._bytes_max = bytes_max
        self._fd: int | None = None
        self._seen: int | None = None

    def make(self) -> None:
        """After a commit: make room if it has made the log longer. If it cannot be, the next goes without."""
        try:
            fd = self._opened() if self._fd is None else self._fd
            # Not fstat: who has asked for a file's times makes the kernel write them at the next change.
            size = os.lseek(fd, 0, os.SEEK_END)
            grown, self._seen = 0 if self._seen is None else size - self._seen, size
            # Not after the first commit, which may be the only one. After a large one the file system's part
            # is small, and the zeros would be written twice.
            if 0 < grown <= _FIRST_BYTES and size < self._bytes_max:
                self._seen += os.write(fd, _ZEROS[: min(max(size, _FIRST_BYTES), _MOST_BYTES)])
        except OSError:  # a full disk, for one: what SQLite itself writes says so
            self.close()

    def _opened(self) -> int:
        self._fd = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        return self._fd

    def close(self) -> None:
        """Let go of the file."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):  # it is given back all the same
                os.close(fd)
