"""
Who lives, told by the operating system: locked files in a folder beside the database.

    jobs.db-dutiful/
        write.lock       held around each commit and checkpoint of any of our processes
        <token>.lock     held by one worker while it lives; its content says what it runs
        <token>.sock     that worker's doorbell

A lock (`flock`) falls with the last process that holds it, however it ends, at once. So a
worker whose file can be locked is dead, and a handler that hogs the interpreter for an
hour is not. We never open the database file itself here: closing it would drop SQLite's
own locks of the whole process.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
import socket
import stat
import struct
import threading
import time
from collections.abc import Collection, Generator
from pathlib import Path

from dutiful.errors import StoreBusy, StoreUnavailable
from dutiful.job import JobId

# Slots for running handlers in a worker's lock file; more than these are all counted as running.
SLOTS_MAX = 4096
# A mark that says: more run than there is room for, so all are to be counted as running.
MANY = -1
# A new worker's doorbell is noticed this soon; until then it looks for itself.
BELLS_S = 0.05


class Folder:
    """The folder of lock files beside one database."""

    def __init__(self, database: Path) -> None:
        self.path = database.with_name(database.name + "-dutiful")
        self._bells: list[str] = []
        self._bells_until = 0.0

    def make(self) -> None:
        """Create the folder, for this user alone; refuse one that somebody else could tamper with."""
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StoreUnavailable(
                str(self.path), f"the folder for the lock files cannot be made: {error.strerror}"
            ) from error
        found = self.path.lstat()
        mine = found.st_uid in (os.geteuid(), 0) or os.geteuid() == 0
        if not stat.S_ISDIR(found.st_mode) or found.st_mode & stat.S_IWOTH or not mine:
            raise StoreUnavailable(
                str(self.path),
                "it must be a folder of yours that not everybody can write to; nothing was changed.",
            )

    def bells(self) -> list[str]:
        """Return the names of all doorbells, as they were lately."""
        now = time.monotonic()
        if now < self._bells_until:
            return self._bells
        self._bells_until = now + BELLS_S
        try:
            self._bells = [path.name for path in self.path.iterdir() if path.suffix == ".sock"]
        except FileNotFoundError:  # somebody removed the folder: the backstop serves
            self._bells = []
        return self._bells

    def tokens(self) -> set[str]:
        """Return the names of all workers' lock files."""
        return {path.stem for path in self.path.iterdir() if path.suffix == ".lock"} - {"write"}

    def forget(self, token: str) -> None:
        """Remove a dead worker's files."""
        for ending in (".lock", ".sock"):
            with contextlib.suppress(OSError):  # gone already, or the disk is read-only by now
                (self.path / (token + ending)).unlink()

    def forget_if_dead(self, token: str) -> None:
        """Remove the files of an unknown worker, if it is dead; we hold its lock meanwhile."""
        try:
            fd = os.open(self.path / f"{token}.lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            if _try_flock(fd):
                self.forget(token)
        finally:
            os.close(fd)


class FileLock:
    """
    A lock over all our processes; never waits without a bound.

    `release` may be called whatever became of `acquire`, and any number of times: so it stands
    in a `finally` around both, and an exception that a signal throws in cannot come between.
    """

    def __init__(self, path: Path, label: str, wait_s: float) -> None:
        self._path, self._label, self._wait_s = path, label, wait_s
        self._fd = _open_private(path)
        self._waiting: _Waiting | None = None
        self._given_up: _Waiting | None = None

    def acquire(self) -> None:
        """
        Take the lock.

        Raises:
            StoreBusy: It was not free in time.
        """
        if _try_flock(self._fd) or _try_flock_soon(self._fd):
            return
        # One that gave up may still wait in the kernel: take it up again, rather than add a thread.
        if self._given_up is None or not self._given_up.want_again():
            self._given_up = _Waiting(self._path)
        self._waiting, self._given_up = self._given_up, None
        if not self._waiting.wait(self._wait_s):
            raise StoreBusy(self._label, self._wait_s)

    def release(self) -> None:
        """Give the lock back, if it was got."""
        if self._waiting is not None:
            self._waiting.give_up()
            self._given_up, self._waiting = self._waiting, None
        _flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file, which also gives the lock back."""
        os.close(self._fd)


class Life:
    """One worker's lock file, held until `end` or the death of the process and its children."""

    def __init__(self, folder: Folder, token: str | None = None) -> None:
        self.token = token or secrets.token_hex(8)
        self._folder = folder
        self.path = folder.path / f"{self.token}.lock"
        self.fd = self._create()
        self._map = mmap.mmap(self.fd, 8 * SLOTS_MAX)
        # The kernel keeps what is written here when the process is killed, at no system call.
        self.marks = memoryview(self._map).cast("q")

    def _create(self) -> int:
        # Locked before it has its name: nobody ever sees it unlocked while we live.
        draft = self.path.with_suffix(".new")
        fd = _open_private(draft)
        try:
            os.ftruncate(fd, 8 * SLOTS_MAX)
            fcntl.flock(fd, fcntl.LOCK_EX)
            draft.rename(self.path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def is_in_place(self) -> bool:
        """Whether the file that others look at is still the one that we hold."""
        return _same_file(self.fd, self.path)

    def end(self) -> None:
        """Remove the file and give back the lock."""
        self._folder.forget(self.token)
        self.abandon()

    def abandon(self) -> None:
        """Give back map and descriptor, but leave the file (after a fork: it is the parent's)."""
        self.marks.release()
        self._map.close()
        os.close(self.fd)


def running_of_dead(path: Path) -> tuple[bool, frozenset[JobId] | None]:
    """
    Return whether the worker with this lock file is dead, and which jobs it was running.

    (True, None): it is dead and did not leave a readable mark, or ran more than it could mark. A
    missing file says nothing by itself: (False, None).
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False, None
    try:
        # Shared, so that two who look do not take each other for the owner.
        if not _try_flock(fd, fcntl.LOCK_SH):
            return False, None
        content = os.pread(fd, 8 * SLOTS_MAX, 0)
        if len(content) < 8 * SLOTS_MAX:
            return True, None
        ids = frozenset(struct.unpack(f"={SLOTS_MAX}q", content)) - {0}
        return True, None if MANY in ids else ids
    finally:
        os.close(fd)


class Doorbell:
    """A socket that other processes send a datagram to when there is something due."""

    def __init__(self, folder: Folder, token: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0)
        with _short(folder.path) as base:
            self._socket.bind(f"{base}/{token}.sock")

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._socket.fileno()

    def hush(self) -> None:
        """Take all rings that came in."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(16)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Ringer:
    """Rings the doorbells of a folder."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0)

    def ring(self, own: Collection[str]) -> None:
        """Ring all doorbells but our own. A bell that cannot be rung is left to the backstop."""
        bells = [bell for bell in self._folder.bells() if bell not in own]
        if not bells:
            return
        with _short(self._folder.path) as base:
            for bell in bells:
                # Full: it has been rung already. Refused or gone: its worker is dead.
                with contextlib.suppress(OSError):
                    self._socket.sendto(b"1", f"{base}/{bell}")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


@contextlib.contextmanager
def _short(folder: Path) -> Generator[str]:
    """Give a path to the folder that fits a socket's address, which ends at 108 bytes."""
    path = str(folder)
    if len(path.encode()) < 80:
        yield path
        return
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _open_private(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreUnavailable(str(path), f"the lock file cannot be opened: {error.strerror}") from error


def _same_file(fd: int, path: Path) -> bool:
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)


# `fcntl.flock` gives up the interpreter lock, for a call that takes a microsecond; a handler
# may then keep it for the rest of its burst while we sit between two halves of a commit (see
# sqlite_step.fused). So this one, which never waits, keeps it.
_flock = ctypes.PyDLL(None, use_errno=True).flock
_flock.argtypes = (ctypes.c_int, ctypes.c_int)


def _try_flock(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    if _flock(fd, kind | fcntl.LOCK_NB) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EWOULDBLOCK, errno.EINTR):
        return False
    raise OSError(code, os.strerror(code))


class _Waiting:
    """A thread that waits for the lock where the kernel wakes it; `flock` itself has no time limit."""

    def __init__(self, path: Path) -> None:
        self._fd = _open_private(path)  # its own, so that giving up cannot take a lock from us
        self._deciding = threading.Lock()
        self._came = threading.Event()
        self._is_wanted = True
        self._is_over = False
        try:
            threading.Thread(target=self._wait, name="dutiful-lock-wait", daemon=True).start()
        except RuntimeError:  # "can't create new thread"
            os.close(self._fd)
            raise

    def _wait(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        with self._deciding:
            if self._is_wanted:
                self._came.set()
            else:
                self._is_over = True
                os.close(self._fd)

    def wait(self, wait_s: float) -> bool:
        """Wait for the lock; return whether we have it."""
        return self._came.wait(wait_s)

    def want_again(self) -> bool:
        """Go on waiting after all; return whether the lock has not come meanwhile, and been let go."""
        with self._deciding:
            self._is_wanted = not self._is_over
            return self._is_wanted

    def give_up(self) -> None:
        """Give the lock back, now or as soon as it comes."""
        with self._deciding:
            if self._is_wanted:
                self._is_wanted = False
                if self._came.is_set():
                    self._is_over = True
                    os.close(self._fd)


def _try_flock_soon(fd: int) -> bool:
    # Most commits are over within a fraction of a millisecond: look a few times before a
    # thread is started to wait (60 µs).
    for _ in range(8):
        if _try_flock(fd):
            return True
        time.sleep(50e-6)
    return False
