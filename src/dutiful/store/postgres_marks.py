"""
What a worker of a PostgreSQL store leaves on its own machine: which jobs it runs, and whether it lives.

The server knows which jobs a worker has claimed, not which of them it had begun when it died.
So each worker writes that into a file of its own, locked while it lives (see `liveness`), in a
folder for this user alone. Who rescues on the same machine reads it, and sees a living process
whose connection was lost. Elsewhere all that the dead worker had claimed counts as begun: then
suspects run one at a time, which is slower and as safe.
"""

import contextlib
import os
import socket
import stat
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from dutiful.errors import StoreUnavailable
from dutiful.job import JobId
from dutiful.store import clock
from dutiful.store.liveness import Folder, Life, running_of_dead

FORGET_S = 3600.0  # an unlocked file is of no use any more when nobody has rescued its worker for so long


class Local(Struct, frozen=True):
    """What this machine knows of a worker. `running` None: all that it had claimed."""

    is_known: bool = False
    is_dead: bool = False
    running: frozenset[JobId] | None = None


class LocalFolder(Folder):
    """The folder of this user's marks, for all databases: a token is unlike any other."""

    def __init__(self) -> None:
        super().__init__(Path(_temporary()) / f"{os.geteuid()}")
        self.path = self.path.with_name(f"dutiful-{os.geteuid()}")

    def make(self) -> None:
        """Make the folder; refuse one that anybody else can write to, read, or owns."""
        with contextlib.suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        found = self.path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise StoreUnavailable(
                str(self.path), "it must be a folder of this user's alone; nothing was written to it."
            )

    def life(self) -> Life | None:
        """
        Make a file for a new worker; None where there is no place for one.

        A full or read-only disk, or a folder that is somebody else's, must not keep a worker
        from its jobs: without marks they are rescued with more care, that is all.
        """
        try:
            self.make()
            return Life(self)
        except (OSError, StoreUnavailable):
            return None

    def look_at(self, token: str, host: str, boot: str) -> Local:
        """Return what is known here of a worker."""
        if host != socket.gethostname():
            return Local()
        path = self.path / f"{token}.lock"
        try:
            if not path.exists():
                return Local()
            is_dead, running = running_of_dead(path)
        except OSError:  # the file, or the whole folder, is another user's
            return Local()
        if boot != clock.boot_id():  # the machine went down: no job's fault
            return Local(is_known=True, is_dead=is_dead, running=frozenset())
        return Local(is_known=True, is_dead=is_dead, running=running)

    def remove_old(self) -> None:
        """Remove what dead workers left that were rescued from elsewhere."""
        with contextlib.suppress(OSError):
            for path in self.path.iterdir():
                if path.stat().st_mtime < time.time() - FORGET_S:
                    self.forget_if_dead(path.stem)


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # nothing here can be written to: then there are no marks (see `life`)
        return os.sep
