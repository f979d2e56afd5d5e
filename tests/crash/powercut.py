"""
A real power cut, in about a second: ext4 on a loop device, shut down while a program writes to it.

`EXT4_IOC_SHUTDOWN` with NOLOGFLUSH ends all writing to the device at once, without flushing the
journal: what the kernel held in memory is gone, as when the plug is pulled. Then the image is
unmounted and mounted again, which replays the journal as after a reboot. The program's promises go
to a file outside, and are compared with what the disk has.

What counts is what had been promised when the cut *began* (`cut` returns it). An fsync that is
under way during the call can still return 0 though its data is dropped: measured, in plain sqlite3
too, in 1 of about 40 cuts, always the very last commit. Without power nobody would have heard of it.

It needs root and a loop device; `unavailable()` says what is missing.
"""

from __future__ import annotations

import fcntl
import functools
import os
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2
IMAGE_BYTES = 32 << 20


def _run(*argv: str | Path) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60)


class Drive:
    """An ext4 image, mounted at `mount`, that can lose its power."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "drive.img"
        self.mount = folder / "drive"

    def make(self) -> None:
        """Make the file system, empty, and mount it."""
        self.mount.mkdir()
        with self._image.open("wb") as image:
            image.truncate(IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", self._image)
        self.plug_in()

    def plug_in(self) -> None:
        """Mount it; after a cut, this replays its journal."""
        _run("mount", "-o", "loop", self._image, self.mount)

    def cut(self, promises: Path | None = None) -> bytes:
        """Take the power away; return what the file `promises` held when that began."""
        root = os.open(self.mount, os.O_RDONLY)
        try:
            promised = promises.read_bytes() if promises else b""
            fcntl.ioctl(root, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(root)
        return promised

    def unplug(self) -> None:
        """Unmount it. Whoever had files open there must be dead."""
        _run("umount", self.mount)


@contextmanager
def drive(folder: Path) -> Iterator[Drive]:
    """Give an empty mounted drive in `folder`, and unmount it in the end."""
    made = Drive(folder)
    made.make()
    try:
        yield made
    finally:
        if made.mount.is_mount():
            _run("umount", "--lazy", made.mount)  # a failed test may still have a file open there


@functools.cache
def unavailable() -> str | None:
    """Say why no real cut can be made here, or None if it can."""
    if os.geteuid() != 0:
        return "a real power cut needs root, to mount an ext4 image"
    try:
        with tempfile.TemporaryDirectory() as folder, drive(Path(folder)) as tried:
            tried.cut()
    except (OSError, subprocess.SubprocessError) as error:
        return f"a real power cut needs a loop device, ext4 and its shutdown ioctl: {error}"
    return None
