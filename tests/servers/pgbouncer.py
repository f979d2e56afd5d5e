"""
pgbouncer in front of a server: many clients share few connections, and none keeps one between transactions.

    with Pooler(postgres_url) as pooler:
        psycopg.connect(pooler.url())

In transaction mode there are no session advisory locks, no LISTEN, no SET that lasts; and before 1.21 no
prepared statements (Debian 12 has 1.18).
"""

import os
import shutil
import socket
import subprocess
import time
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from tests.servers import programs
from tests.servers.process import ServerError, free_port, new_folder, watch

START_S = 10.0
LOOK_S = 0.01
HOST = "127.0.0.1"


class Pooler:
    """
    One pgbouncer for all databases of the server at `url`; it runs from `start` (or `with`) to `remove`.

    Args:
        url: Of the server, or of a proxy in front of it; its user and password are also those of the clients.
        mode: "transaction", "session" or "statement".
        size: Connections to the server, for each database.
        settings: Further lines of its section [pgbouncer].
    """

    def __init__(
        self, url: str, *, mode: str = "transaction", size: int = 20, settings: dict[str, str] | None = None
    ) -> None:
        self.port = free_port(HOST)
        self.folder = new_folder("pgbouncer")
        self.log = self.folder / "pgbouncer.log"
        self._server = urlsplit(url)
        self._process: subprocess.Popen[bytes] | None = None
        self._write(mode, size, settings or {})
        self._watchdog = watch(self.folder, os.getpid())

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.remove()

    def url(self, database: str | None = None) -> str:
        """Return the URL of a database behind the pooler; the one of the server's URL if none is named."""
        path = self._server.path if database is None else f"/{database}"
        login = self._server.netloc.rpartition("@")[0]
        return self._server._replace(netloc=f"{login}@{HOST}:{self.port}", path=path).geturl()

    def start(self) -> None:
        """Start it; return once it takes connections."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program(), "-q", str(self.folder / "pgbouncer.ini")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
                **programs.as_user(),
            )
        deadline = time.monotonic() + START_S
        while not answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"pgbouncer did not start:\n{self.log.read_text()}")
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """End it at once, and all connections with it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(START_S)
            self._process = None

    def remove(self) -> None:
        """End it, and remove its folder. Repeating it is safe."""
        self.stop()
        self._watchdog.kill()
        self._watchdog.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, mode: str, size: int, settings: dict[str, str]) -> None:
        user, password = unquote(self._server.username or ""), unquote(self._server.password or "")
        lines = {
            "listen_addr": HOST,
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "pidfile": str(self.folder / "pgbouncer.pid"),  # the watchdog reads it
            "auth_type": "plain",
            "auth_file": str(self.folder / "users"),
            "admin_users": user,
            "pool_mode": mode,
            "default_pool_size": str(size),
            "max_client_conn": "500",
            **settings,
        }
        self._file("users", f'"{user}" "{password}"\n')
        server = f"* = host={self._server.hostname} port={self._server.port or 5432}\n"
        section = "".join(f"{name} = {value}\n" for name, value in lines.items())
        self._file("pgbouncer.ini", f"[databases]\n{server}[pgbouncer]\n{section}")

    def _file(self, name: str, text: str) -> None:
        path = self.folder / name
        path.touch(0o600)
        path.write_text(text)
        os.chown(path, *programs.unprivileged())


def program() -> str:
    """Return where pgbouncer is."""
    found = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if found is None:
        raise LookupError("there is no pgbouncer; run scripts/system-packages, or install it by hand")
    return found


def answers(port: int) -> bool:
    """Tell whether somebody listens there."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
