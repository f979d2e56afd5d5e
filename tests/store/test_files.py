"""What the store leaves in the file system, whom it lets in, and how SQLite is set."""

from __future__ import annotations

import ctypes
import os
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dutiful.errors import StoreBusy, StoreUnavailable
from dutiful.job import Claim
from dutiful.store import sqlite_file
from dutiful.store.contract import Draft, Outcome, Take, Work
from dutiful.store.sqlite import SqliteStore
from dutiful.store.sqlite_file import network_file_system
from tests.store import inside

MODES = """
import os, sys
os.umask(int(sys.argv[2], 8))
from dutiful.store.sqlite import SqliteStore
from dutiful.store.contract import Draft, Outcome, Work
store = SqliteStore(sys.argv[1])
store.open()
store.join("w", ["q"], 1)
store.exchange(Work(drafts=[Draft("t", "q", ["1"])]), Outcome())
for folder, folders, files in os.walk(os.path.dirname(sys.argv[1])):
    for name in folders + files:
        path = os.path.join(folder, name)
        print(oct(os.lstat(path).st_mode & 0o7777), os.path.splitext(name)[1] or name)
os._exit(0)
"""


def _send(store: SqliteStore) -> Outcome:
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["1"])]), outcome)
    return outcome


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# --- modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", ["000", "022", "077"])
def test_files_are_for_this_user_alone_whatever_the_umask(tmp_path: Path, umask: str) -> None:
    """Database, log, shared memory and lock files 0600; the folder, which guards the bells too, 0700."""
    output = subprocess.run(
        [sys.executable, "-c", MODES, str(tmp_path / "jobs.db"), umask],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    modes = dict(reversed(line.split(" ", 1)) for line in output.splitlines())

    assert modes.pop(".db-dutiful") == "0o700"
    modes.pop(".sock")
    assert modes == dict.fromkeys([".db", ".db-wal", ".db-shm", ".lock"], "0o600")


def test_the_mode_of_a_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "users.db"
    path.touch()
    path.chmod(0o640)

    inside.opened(path).close()

    assert _mode(path) == 0o640


# --- links and strangers -----------------------------------------------------------------------


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "jobs.db-dutiful"
    folder.mkdir(mode=0o700)
    (folder / "write.lock").symlink_to(victim)

    with pytest.raises(StoreUnavailable, match=r"write\.lock"):
        inside.opened(tmp_path / "jobs.db")

    assert victim.read_text() == "precious"


def test_a_lock_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "jobs.db-dutiful").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(StoreUnavailable):
        inside.opened(tmp_path / "jobs.db")

    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_lock_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "jobs.db-dutiful").touch()

    with pytest.raises(StoreUnavailable):
        inside.opened(tmp_path / "jobs.db")


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever put it there would choose where our file is made, and with which mode."""
    (tmp_path / "jobs.db").symlink_to(tmp_path / "target")

    with pytest.raises(StoreUnavailable):
        inside.opened(tmp_path / "jobs.db").close()

    assert not (tmp_path / "target").exists()


def test_two_names_of_one_file_share_their_locks(tmp_path: Path) -> None:
    """A link to an existing file is fine; but who comes by it must meet who comes by the file."""
    store = inside.opened(tmp_path / "jobs.db")
    (tmp_path / "link.db").symlink_to(tmp_path / "jobs.db")
    other = inside.opened(tmp_path / "link.db")
    try:
        assert inside.folder_of(other).path.resolve() == inside.folder_of(store).path.resolve()
    finally:
        other.close()
        store.close()


def test_a_lock_folder_that_everybody_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "jobs.db-dutiful"
    folder.mkdir()
    folder.chmod(0o777)

    with pytest.raises(StoreUnavailable, match="everybody"):
        inside.opened(tmp_path / "jobs.db")


# --- places where it cannot be ---------------------------------------------------------------------


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="no/such"):
        inside.opened(tmp_path / "no" / "such" / "jobs.db")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("create", [True, False])
def test_a_name_that_is_too_long_is_told(tmp_path: Path, create: bool) -> None:
    with pytest.raises(StoreUnavailable, match="name too long; nothing was changed"):
        SqliteStore(str(tmp_path / f"{'x' * 300}.db"), create=create).open()


@pytest.mark.parametrize("create", [True, False])
def test_a_folder_without_access_is_told(tmp_path: Path, monkeypatch, create: bool) -> None:
    """Of which not even is known whether the file is there."""

    def denied(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "exists", denied)

    with pytest.raises(StoreUnavailable, match="Permission denied; nothing was changed"):
        SqliteStore(str(tmp_path / "jobs.db"), create=create).open()


def test_a_directory_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="not a file"):
        inside.opened(tmp_path)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_place_without_permission_is_named(tmp_path: Path, monkeypatch, what: str) -> None:
    path = tmp_path / "jobs.db"
    path.touch()
    refused = path if what == "file" else tmp_path
    monkeypatch.setattr(sqlite_file.os, "access", lambda name, mode: Path(name) != refused)

    with pytest.raises(StoreUnavailable, match="permission"):
        inside.opened(path)


def test_a_read_only_file_system_is_named(tmp_path: Path, monkeypatch) -> None:
    flags = type("flags", (), {"f_flag": os.ST_RDONLY})
    monkeypatch.setattr(sqlite_file.os, "statvfs", lambda folder: flags)

    with pytest.raises(StoreUnavailable, match="read-only"):
        inside.opened(tmp_path / "jobs.db")

    assert list(tmp_path.iterdir()) == []


def test_an_old_sqlite_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sqlite_file.sqlite3, "sqlite_version_info", (3, 34, 9))

    with pytest.raises(StoreUnavailable, match=r"3\.35"):
        inside.opened(tmp_path / "jobs.db")


@pytest.mark.parametrize(
    ("magic", "name"),
    [(0x6969, "NFS"), (0xFF534D42, "CIFS"), (0xFE534D42, "SMB2"), (0x65735546, "FUSE"), (0x01021997, "9P")],
)
def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch, magic: int, name: str) -> None:
    monkeypatch.setattr(sqlite_file, "_statfs_magic", lambda folder: magic)

    with pytest.raises(StoreUnavailable, match=name):
        inside.opened(tmp_path / "jobs.db")

    assert list(tmp_path.iterdir()) == []


def test_the_magic_number_is_read_from_the_system() -> None:
    """/proc is procfs, 0x9fa0, on any Linux; a local file system is no network's."""
    assert sqlite_file._statfs_magic(Path("/proc")) == 0x9FA0
    assert sqlite_file._statfs_magic(Path("/no/such/folder")) == 0
    assert network_file_system(Path("/proc")) is None


def test_a_magic_number_with_the_sign_bit_is_found(monkeypatch) -> None:
    """CIFS's has the highest of 32 bits set: as a signed long of 32 bits it is negative."""

    class Library:
        def statfs(self, path: bytes, buffer) -> int:
            ctypes.memmove(buffer, ctypes.byref(ctypes.c_long(-0x00ACB2BE)), ctypes.sizeof(ctypes.c_long))
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda *_a, **_k: Library())

    assert network_file_system(Path("/")) == "CIFS"


def test_elsewhere_no_file_system_is_suspected(monkeypatch) -> None:
    monkeypatch.setattr(sqlite_file.sys, "platform", "darwin")

    assert network_file_system(Path("/proc")) is None


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_each_connection_has_the_settings_that_the_promises_need(
    tmp_path: Path, durability: str, synchronous: int
) -> None:
    """WAL, a sync per commit, and no checkpoint but our own; those of handlers' transactions too."""
    store = inside.opened(tmp_path / "jobs.db", durability=durability)
    owner = store.join("w", ["q"], 1)
    outcome = Outcome()
    work = Work(drafts=[Draft("t", "q", ["1"])], take=Take(owner, ("q",), 1, handoff=True))
    store.exchange(work, outcome)
    with store.transaction(outcome.claims[0]) as users:
        for db in (inside.writer(store), inside.reader(store), users):
            settings = [
                db.execute(f"PRAGMA {name}").fetchone()[0]
                for name in ("journal_mode", "synchronous", "wal_autocheckpoint", "trusted_schema")
            ]
            assert [s.decode() if isinstance(s, bytes) else s for s in settings] == ["wal", synchronous, 0, 0]
    assert inside.writer(store).execute("PRAGMA auto_vacuum").fetchone() == (2,)
    store.close()


def test_macs_flush_the_drive_too(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sqlite_file.sys, "platform", "darwin")
    with closing(sqlite_file.connect(str(tmp_path / "jobs.db"), "full", busy_s=1)) as db:
        assert db.execute("PRAGMA fullfsync").fetchone() == (1,)
        assert db.execute("PRAGMA checkpoint_fullfsync").fetchone() == (1,)


def test_only_our_checkpoints_move_the_log_and_they_come_in_time(tmp_path: Path) -> None:
    """The log grows by commits, and is moved after about 8 MiB; so it stays bounded."""
    store = inside.opened(tmp_path / "jobs.db", durability="normal")
    log = tmp_path / "jobs.db-wal"
    sizes = []
    for _ in range(40):
        store.exchange(Work(drafts=[Draft("t", "q", ["x" * 100_000] * 10)]), Outcome())
        sizes.append(log.stat().st_size)
    store.close()

    assert max(sizes) < 32 * 1024 * 1024
    assert not log.exists()


def test_the_log_is_cut_back_when_nothing_but_upkeep_has_written(tmp_path: Path) -> None:
    """Edits and beats are no steps, and count towards no checkpoint: tidying looks at the log itself."""
    store = inside.opened(tmp_path / "jobs.db", durability="normal")
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["x" * 500] * 4000)]), outcome)
    for _ in range(6):
        store.edit(list(outcome.stored[0]), "cancel")
        store.edit(list(outcome.stored[0]), "retry")
    grown = (tmp_path / "jobs.db-wal").stat().st_size

    store.tidy()

    left = (tmp_path / "jobs.db-wal").stat().st_size
    store.close()
    assert grown > 16 * 1024 * 1024
    assert left < 1024 * 1024


def test_a_further_connection_writes_nothing(tmp_path: Path) -> None:
    """Each handler's transaction opens one: it should not cost a commit more."""
    store = inside.opened(tmp_path / "jobs.db")
    store.changed()
    sqlite_file.connect(str(tmp_path / "jobs.db"), "full", busy_s=1).close()
    changed = store.changed()
    store.close()

    assert not changed


def test_the_file_shrinks_after_a_burst(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = inside.opened(path, durability="normal")
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["x" * 1000] * 20_000)]), outcome)
    inside.writer(store).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    grown = path.stat().st_size
    store.edit(list(outcome.stored[0]), "delete")

    store.tidy()

    inside.writer(store).execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    store.close()
    assert path.stat().st_size < grown / 2


# --- others at the file -----------------------------------------------------------------------------


@pytest.fixture
def taken(tmp_path: Path):
    """A store, and somebody who holds SQLite's own write lock."""
    store = inside.opened(tmp_path / "jobs.db", busy_s=0.05)
    with closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield store, other
    store.close()


def test_a_file_that_another_connection_writes_is_busy_for_a_while(taken) -> None:
    store, other = taken
    with pytest.raises(StoreBusy):
        _send(store)

    other.execute("ROLLBACK")
    assert _send(store).committed


def test_reading_goes_on_beside_a_writer(taken) -> None:
    store, _other = taken

    assert store.unfinished() == 0


def test_a_handlers_transaction_says_busy_in_our_words(taken) -> None:
    store, _other = taken

    with pytest.raises(StoreBusy):
        with store.transaction(Claim(1, 1, 0, 0, "t", "q", None)):
            pass


def test_a_handlers_transaction_makes_no_new_file_where_ours_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    store = inside.opened(path)
    path.unlink()
    try:
        with pytest.raises(Exception):  # noqa: B017  # a StoreError or not: the next line counts
            with store.transaction(Claim(1, 1, 0, 0, "t", "q", None)):
                pass
        assert not path.exists()
    finally:
        store.close()


def test_a_users_connection_may_have_a_row_factory(tmp_path: Path) -> None:
    """The recipe of Python's own documentation."""
    store = inside.opened(tmp_path / "jobs.db")
    try:
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as users, users:
            users.row_factory = lambda cursor, row: dict(
                zip([c[0] for c in cursor.description], row, strict=True)
            )
            store.insert_in(users, [Draft("t", "q", ["1"])])
        assert store.unfinished() == 1
    finally:
        store.close()


def test_a_users_connection_may_give_rows_and_bytes(tmp_path: Path) -> None:
    store = inside.opened(tmp_path / "jobs.db")
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as users, users:
        users.row_factory = sqlite3.Row
        users.text_factory = bytes
        store.insert_in(users, [Draft("t", "q", ["1"])])

    assert store.unfinished() == 1
    store.close()


def test_closing_while_others_write_keeps_the_rest_in_order(tmp_path: Path) -> None:
    """A close that finds the lock taken can be repeated."""
    store = inside.opened(tmp_path / "jobs.db", busy_s=0.05)
    other = inside.opened(tmp_path / "jobs.db", busy_s=5)
    with inside.writing(other):
        store.close()
    store.close()
    other.close()

    assert not (tmp_path / "jobs.db-wal").exists()
