"""
The server that the benchmarks of the PostgreSQL store run on: their own, on this machine's disk.

fsync and synchronous_commit are on, as everywhere; it shares the CPUs with its clients. Its memory and its
log are sized so that a measurement of a few seconds meets no checkpoint; the same for all that are compared.
"""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import table
from tests.servers.postgres import Server
from tests.servers.shared import fresh_database

SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
}
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat after the name, which ends with ")".
PARENT, USER_OF_CHILDREN, SYSTEM_OF_CHILDREN = 1, 13, 14


@contextmanager
def running(**settings: str) -> Iterator[Server]:
    """Start a server for the time of the block."""
    place = Path(tempfile.gettempdir()).resolve()
    if table.file_system(place).startswith(("tmpfs", "ramfs")):
        sys.exit(f"{place} is in memory, where fsync costs nothing; set TMPDIR to a folder on a disk")
    with Server.create() as server:
        server.configure(**SETTINGS, **settings)  # what stands last in the file holds
        server.start()
        yield server


@contextmanager
def fresh(server: Server) -> Iterator[str]:
    """Give the URL of a database that is empty; drop it afterwards."""
    with fresh_database(server.url()) as url:
        yield url


def described(server: Server) -> table.Figure:
    """Return the line of the table that says what was measured on."""
    import psycopg

    with psycopg.connect(server.url()) as db:
        said = ", ".join(
            f"{name}={db.execute(f'SHOW {name}').fetchall()[0][0]}"
            for name in ("fsync", "synchronous_commit", *SETTINGS)
        )
        version = db.execute("SHOW server_version").fetchall()[0][0]
    return table.Figure(f"server: PostgreSQL {version}", said)


def cpu_s(server: Server) -> float:
    """Return the CPU seconds of all the server's processes so far, ended ones too."""
    first = server.pid
    assert first is not None
    ns = ticks = 0
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (place / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if place.name == str(first):
                ticks = int(fields[USER_OF_CHILDREN]) + int(fields[SYSTEM_OF_CHILDREN])
            elif fields[PARENT] != str(first):
                continue
            # An idle server takes less than a tick in seconds; this counts each ns, of the living.
            ns += int((place / "schedstat").read_text().split()[0])
    return ns / 1e9 + ticks / TICKS_PER_S
