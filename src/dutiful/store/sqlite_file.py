"""
Opening a SQLite file so that a commit survives a power cut, and saying clearly why not.

No file of SQLite's is opened or closed here but by SQLite itself: closing any descriptor
of a database drops the process's locks on it (sqlite.org/howtocorrupt.html, 2.2).
"""

import contextlib
import os
import sqlite3
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Literal

from dutiful.crashpoint import crashpoint
from dutiful.errors import (
    SchemaTooNew,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReplaced,
    StoreUnavailable,
)
from dutiful.store import moving

SCHEMA_VERSION = 1
SQLITE_MIN = (3, 35, 0)  # UPDATE … FROM and the upsert forms that the statements use

# File systems on which WAL's shared memory, or flock, does not hold between hosts.
# Source: statfs(2) magic numbers; sqlite.org/wal.html ("does not work over a network filesystem").
_NETWORK = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFE534D42: "SMB2",
    0xFF534D42: "CIFS",
    0x65735546: "FUSE",
    0x01021997: "9P",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x7461636F: "OCFS2",
}


def connect(path: str, durability: Literal["full", "normal"], *, busy_s: float) -> sqlite3.Connection:
    """Open a connection with the settings that our promises need."""
    db = sqlite3.connect(
        path, timeout=busy_s, isolation_level=None, check_same_thread=False, cached_statements=256
    )
    try:
        _settings(db, path, durability)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _settings(db: sqlite3.Connection, path: str, durability: str) -> None:
    if path != ":memory:":
        if not db.execute("PRAGMA page_count").fetchone()[0]:
            # Before the first table; later it would change nothing, but write all the same.
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise sqlite3.OperationalError(f"WAL mode cannot be set (journal_mode stays {mode!r})")
    # FULL, not NORMAL: in WAL mode NORMAL may roll back a commit after power loss,
    # and `send` promises that the job is on disk.
    db.execute(f"PRAGMA synchronous = {'FULL' if durability == 'full' else 'NORMAL'}")
    if sys.platform == "darwin":  # there fsync leaves data in the drive's cache
        db.execute("PRAGMA fullfsync = ON")
        db.execute("PRAGMA checkpoint_fullfsync = ON")
    # We checkpoint ourselves, under the write lock: SQLite before 3.51.3 can corrupt a file when
    # one connection checkpoints while another writes (sqlite.org/wal.html#walresetbug).
    db.execute("PRAGMA wal_autocheckpoint = 0")
    db.execute("PRAGMA journal_size_limit = 16777216")  # a burst's log is cut back, bytes
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute("PRAGMA temp_store = MEMORY")  # a statement's own undo log, of a few pages
    db.execute("PRAGMA cache_size = -16000")  # KiB


@contextlib.contextmanager
def reachable(path: Path) -> Generator[None]:
    """
    Raises:
        StoreUnavailable: The system lets nobody of us get at the path: no access to a folder, a name that is
            too long, a loop of links.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(
            str(path),
            f"{error.strerror or error}; nothing was changed. Check the path, and the permissions of its "
            "folders.",
        ) from error


def prepare(given: Path, path: Path) -> None:
    """
    Make sure that the file can be there: version, folder, permission, file system.

    `path` is where `given` leads, links followed.

    Raises:
        StoreUnavailable: With the path and the reason; nothing was created.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        raise StoreUnavailable(
            str(path),
            f"SQLite {sqlite3.sqlite_version} is too old; 3.35 or newer is needed. Use a newer Python.",
        )
    if given.is_symlink() and not path.exists():
        raise StoreUnavailable(
            str(given), f"it is a link to {path}, which is not there; nothing was created."
        )
    folder = path.parent
    if not folder.is_dir():
        raise StoreUnavailable(
            str(path), f"the folder {folder} does not exist; nothing was created. Make it first."
        )
    if path.exists() and not path.is_file():
        raise StoreUnavailable(str(path), "it is not a file; nothing was changed.")
    kind = network_file_system(folder)
    if kind is not None:
        raise StoreUnavailable(
            str(path),
            f"the folder is on {kind}, where SQLite's shared memory and locks do not hold and jobs could be "
            "lost; nothing was changed. Use a local disk, or PostgreSQL for several machines.",
        )
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise StoreUnavailable(str(path), f"{folder} is mounted read-only; nothing was changed.")
    for name in (path, folder) if path.exists() else (folder,):
        if not os.access(name, os.W_OK):
            raise StoreUnavailable(str(path), f"no permission to write {name}; nothing was changed.")
    if not path.exists():
        _create_private(path)


def check_there(path: Path) -> None:
    """
    Raises:
        StoreUnavailable: There is no file, or no jobs of dutiful in it. StoreCorrupt: It is no
            database. It was opened for reading only.
    """
    if not path.exists():
        raise StoreUnavailable(str(path), "there is no such file; nothing was created.")
    if not version_in(path):
        raise StoreUnavailable(str(path), "it holds no jobs of dutiful; nothing was changed.")


def version_in(path: Path) -> int:
    """Return the schema version of a file, 0 if it has none of our tables. Changes nothing."""
    try:
        # Without a log there is no other process: then as immutable, which makes no files beside it.
        mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True)) as db:
            return _version(db, str(path))
    except sqlite3.Error as error:
        raise translated(error, str(path), 0.0) from error


def _create_private(path: Path) -> None:
    # SQLite gives -wal and -shm the mode of the database file, and makes that 0644: so it is
    # made first. It is empty and no connection is open, so no lock is lost by closing it.
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        raise StoreUnavailable(str(path), f"the file cannot be created: {error.strerror}.") from error


def network_file_system(folder: Path) -> str | None:
    """Return what kind of network file system `folder` is on, or None for a local one."""
    if not sys.platform.startswith("linux"):
        return None
    return _NETWORK.get(_statfs_magic(folder))


def _statfs_magic(folder: Path) -> int:
    import ctypes  # 5 ms to import, needed once

    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), buffer) != 0:
        return 0
    # f_type is the first member: a long, of which the magic number is the lower 32 bits.
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) & 0xFFFFFFFF


class FileIdentity:
    """
    Which file was opened; notices when its name leads to another one, or to none.

    A database that was deleted or replaced while open takes commits without an error, and
    they are gone with the process.
    """

    def __init__(self, path: Path) -> None:
        self._path = str(path)
        found = path.stat()
        self._key = (found.st_dev, found.st_ino)

    def check(self) -> None:
        """
        Raises:
            StoreReplaced: The name leads elsewhere.
        """
        try:
            found = os.stat(self._path)  # noqa: PTH116  # on each commit: a third of the time of Path.stat
        except FileNotFoundError:
            raise self._lost("was deleted") from None
        if (found.st_dev, found.st_ino) != self._key or not stat.S_ISREG(found.st_mode):
            raise self._lost("was replaced by another file")

    def _lost(self, how: str) -> StoreReplaced:
        return StoreReplaced(
            self._path,
            f"the database file {how} while it was open; nothing was stored in the old one. "
            "Put it back, or restart the program to begin with the file that is there.",
        )


def migrate(db: sqlite3.Connection, label: str) -> None:
    """
    Bring the schema up to date in one transaction; whoever comes first does it.

    Raises:
        SchemaTooNew: A newer version has written the file; nothing was changed.
    """
    if _version(db, label) == SCHEMA_VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        found = _version(db, label)
        for version in range(found + 1, SCHEMA_VERSION + 1):
            for statement in statements(version):
                db.execute(statement)
                crashpoint("migrate.middle")
            db.execute(_NOTE.format(version=version))
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


_NOTE = """\
INSERT INTO dutiful_meta (key, value) VALUES ('schema_version', {version}), ('schema_min_code', {version})
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;
"""


def script(found: int) -> str:
    """Return what leads from version `found` to ours, to be looked at and applied by hand."""
    parts = ["BEGIN IMMEDIATE;\n"]
    for version in range(found + 1, SCHEMA_VERSION + 1):
        parts += [*statements(version), _NOTE.format(version=version)]
    return "\n".join([*(part.lstrip("\n") for part in parts), "COMMIT;\n"])


def statements(version: int) -> list[str]:
    """Return the SQL statements that lead to schema `version`."""
    from importlib import resources  # 10 ms, needed when a store is made

    text = resources.files("dutiful.store").joinpath(f"schema/sqlite/{version:04}.sql").read_text("utf-8")
    found: list[str] = []
    part = ""
    for line in text.splitlines(keepends=True):
        part += line
        if sqlite3.complete_statement(part):
            found.append(part)
            part = ""
    return found


def _version(db: sqlite3.Connection, label: str) -> int:
    """Return the schema version found, 0 for none; one that is newer but fits counts as ours."""
    there = db.execute(
        "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'dutiful_meta'"
    ).fetchone()
    if there is None:
        return 0
    version, min_code = (
        _meta(db, "schema_version"),
        _meta(db, "schema_min_code"),
    )
    if version <= SCHEMA_VERSION or min_code <= SCHEMA_VERSION:
        return min(version, SCHEMA_VERSION)
    raise SchemaTooNew(
        label,
        f"a newer dutiful has written it (schema {version}; this one knows {SCHEMA_VERSION}); nothing was "
        "changed. Upgrade dutiful in this program.",
    )


def _meta(db: sqlite3.Connection, key: str) -> int:
    row = db.execute("SELECT value FROM dutiful_meta WHERE key = ?", (key,)).fetchone()
    return 0 if row is None else int(row[0])


def translated(error: sqlite3.Error, label: str, waited_s: float) -> StoreError:
    """Return the error of ours that says what a driver's error means; set it as the cause."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(label, waited_s)
    if code == sqlite3.SQLITE_CONSTRAINT_TRIGGER and (moved := moving.read(label, str(error))):
        return moved
    if primary == sqlite3.SQLITE_FULL:
        return StoreFull(label, "the disk is full; nothing was stored. Make room; then it goes on by itself.")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return StoreCorrupt(
            label,
            f"{error}; nothing was changed and nothing was deleted. If it is another program's file, choose "
            "another path; if it is damaged, keep a copy and see docs/operations.md, 'A damaged file'.",
        )
    if primary in (
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
    ):
        name = getattr(error, "sqlite_errorname", "")
        return StoreUnavailable(
            label, f"{error} ({name}); nothing was stored. Check the disk, the permissions and the path."
        )
    return StoreError(label, f"{error}; nothing was stored.")
