"""
Disks that fail: a small one that fills up, one that turns read-only, and calls that return errors.

`small_disk` mounts a tmpfs of a few hundred kilobytes; `fill` takes what is left of it, and its
`free` gives it back. `read_only` remounts a disk so that nothing can be written. `failing` builds a
command that runs a program under `strace` with one system call failing: `fdatasync` of the WAL with
EIO the N-th time, or all writes with ENOSPC from the N-th on. strace counts per thread, and only
calls on the given paths. `bound_by_permissions` takes root's freedom from permissions away.

Mounting needs root, and the injections need strace; `cannot_mount()` and `cannot_inject()` say what
is missing.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SYNCS = "fdatasync,fsync"
BLOCK = bytes(4096)


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[Path]:
    """Mount an empty tmpfs of `size_kb` in a new folder `disk` and unmount it in the end."""
    mount = folder / "disk"
    mount.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", mount)
    try:
        yield mount
    finally:
        _run("umount", "--lazy", mount)


@contextmanager
def journalled_disk(folder: Path, size_mb: int = 16) -> Iterator[Path]:
    """Mount an empty ext4 image in a new folder `disk` and unmount it in the end."""
    mount, image = folder / "disk", folder / "disk.img"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size_mb << 20)
    _run("mkfs.ext4", "-q", "-F", image)
    _run("mount", "-o", "loop,errors=remount-ro", image, mount)
    try:
        yield mount
    finally:
        _run("umount", "--lazy", mount)


def abort(mount: Path) -> None:
    """Make a mounted ext4 refuse all writing from now on, as it does after a disk error."""
    _run("mount", "-o", "remount,abort", mount)


class Filling:
    """What is left of a disk, taken by one file until `free`."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "filling"
        self.more()

    def more(self) -> None:
        """Take whatever is free now."""
        with self._file.open("ab", buffering=0) as file:
            while _wrote(file.fileno(), BLOCK) or _wrote(file.fileno(), b"\0"):
                pass

    def free(self) -> None:
        """Give all of it back."""
        self._file.unlink()


def _wrote(fd: int, data: bytes) -> bool:
    try:
        return os.write(fd, data) > 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@contextmanager
def read_only(mount: Path) -> Iterator[None]:
    """Remount a disk read-only for a while. Nobody may have a file open for writing there."""
    _run("mount", "-o", "remount,ro", mount)
    try:
        yield
    finally:
        _run("mount", "-o", "remount,rw", mount)


def failing(calls: str, error: str, when: str, *, paths: Sequence[Path], log: Path) -> list[str]:
    """
    Return the command that runs the Python script named after it with failing system calls.

    Args:
        calls: As strace names them, e.g. "fdatasync,fsync" or "pwrite64".
        error: The error they return, e.g. "EIO".
        when: "3" for the third only, "3+" for all from the third on, for each thread.
        paths: Calls on other files are neither counted nor hurt.
        log: Where strace writes what it saw.
    """
    only = [option for path in paths for option in ("-P", str(path))]
    inject = f"inject={calls}:error={error}:when={when}"
    options = ["-f", "-y", "-qq", "--seccomp-bpf", "-e", "signal=none", "-e", f"trace={calls}", "-e", inject]
    return ["strace", *options, *only, "-o", str(log), sys.executable, "-u"]


def injected(log: Path) -> int:
    """Return how many calls strace has failed."""
    return log.read_text().count("(INJECTED)")


def bound_by_permissions() -> list[str]:
    """Return what to put before a command so that file permissions hold for it, even if root runs it."""
    if os.geteuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


@functools.cache
def cannot_mount() -> str | None:
    """Say why no disk can be mounted here, or None if one can."""
    if os.geteuid() != 0:
        return "a small disk needs root, to mount a tmpfs"
    try:
        with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder), 100):
            return None
    except (OSError, subprocess.SubprocessError) as error:
        return f"a small disk needs the right to mount a tmpfs: {error}"


@functools.cache
def cannot_inject() -> str | None:
    """Say why no system call can be made to fail here, or None if one can."""
    if shutil.which("strace") is None:
        return "failing system calls need strace"
    done = subprocess.run(["strace", "-qq", "-o", os.devnull, "true"], capture_output=True, check=False)
    return None if done.returncode == 0 else f"strace may not trace here: {done.stderr.decode()[-200:]}"
