"""The tools themselves: disks that fill up and fail, and a clock that can be set."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import disk
from tests.faults.clock import Clock, cannot_move

PROGRAMS = Path(__file__).parent / "programs"
needs_mount = pytest.mark.skipif(disk.cannot_mount() is not None, reason=disk.cannot_mount() or "")
needs_strace = pytest.mark.skipif(disk.cannot_inject() is not None, reason=disk.cannot_inject() or "")


@needs_mount
def test_a_small_disk_fills_up_and_is_freed(tmp_path: Path) -> None:
    """Not a byte fits when it is full; when it is freed, one does."""
    with disk.small_disk(tmp_path, 200) as mount:
        filling = disk.Filling(mount)

        with pytest.raises(OSError, match="No space left"):
            (mount / "file").write_bytes(b"x")
        filling.free()

        (mount / "file").write_bytes(b"x")


@needs_mount
def test_a_disk_is_read_only_for_a_while(tmp_path: Path) -> None:
    """Not even root can write to it; afterwards everybody can."""
    with disk.small_disk(tmp_path, 200) as mount:
        with disk.read_only(mount), pytest.raises(OSError, match="Read-only"):
            (mount / "file").write_bytes(b"x")

        (mount / "file").write_bytes(b"x")


@needs_mount
def test_an_aborted_disk_refuses_writing(tmp_path: Path) -> None:
    """As after a disk error, the file system turns read-only under its users."""
    with disk.journalled_disk(tmp_path) as mount:
        disk.abort(mount)

        with pytest.raises(OSError, match="Read-only"):
            (mount / "file").write_bytes(b"x")


def _insert(folder: Path, calls: str, error: str, when: str, file: str) -> tuple[list[str], int]:
    log = folder / "log"
    command = disk.failing(calls, error, when, paths=[folder / file], log=log)
    argv = [*command, str(PROGRAMS / "insert.py"), str(folder / "x.db")]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.splitlines(), disk.injected(log)


@needs_strace
def test_the_nth_sync_fails_and_no_other(tmp_path: Path) -> None:
    """The WAL's header and the table take two syncs; the fourth is the second insert's."""
    said, injected = _insert(tmp_path, disk.SYNCS, "EIO", "4", "x.db-wal")

    assert said == ["stored", "failed disk I/O error", "stored", "stored", "stored"]
    assert injected == 1


@needs_strace
def test_all_writes_from_the_nth_on_find_no_space(tmp_path: Path) -> None:
    """SQLite says that the disk is full, each time."""
    said, injected = _insert(tmp_path, "pwrite64", "ENOSPC", "8+", "x.db-wal")

    assert said == ["stored", *["failed database or disk is full"] * 4]
    assert injected >= 4


def test_permissions_hold_even_for_root(tmp_path: Path) -> None:
    """A program that is bound by permissions cannot write where the mode forbids it."""
    tmp_path.chmod(0o500)
    code = f"open({str(tmp_path / 'file')!r}, 'w')"
    argv = [*disk.bound_by_permissions(), sys.executable, "-c", code]

    done = subprocess.run(argv, capture_output=True, text=True, check=False)

    tmp_path.chmod(0o700)
    assert "PermissionError" in done.stderr


@pytest.mark.skipif(cannot_move() is not None, reason=cannot_move() or "")
@pytest.mark.parametrize("jump_s", [2 * 86400, -3 * 3600])
def test_the_wall_clock_jumps_and_the_others_do_not(tmp_path: Path, jump_s: int) -> None:
    """Python and SQLite see the jump at once; MONOTONIC and BOOTTIME go on, and sleeping works."""
    clock = Clock(tmp_path)
    argv = [sys.executable, str(PROGRAMS / "tell_time.py")]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | clock.env
    ) as teller:
        before = _ask(teller)
        clock.jump_to(jump_s)
        after = _ask(teller)

    assert before[:2] == pytest.approx([time.time()] * 2, abs=5)
    assert after[:2] == pytest.approx([time.time() + jump_s] * 2, abs=5)
    assert after[2:] == pytest.approx(before[2:], abs=5)


def _ask(teller: subprocess.Popen[str]) -> list[float]:
    assert teller.stdin is not None
    assert teller.stdout is not None
    teller.stdin.write("\n")
    teller.stdin.flush()
    return [float(word) for word in teller.stdout.readline().split()]
