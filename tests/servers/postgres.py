"""
A PostgreSQL server of one's own: started in a second, killed, restarted, copied to a standby.

    with Server.create() as server:
        server.start()
        psycopg.connect(server.url())
        server.kill9()
        server.start()

It lives in a folder of its own below the temporary one, and goes with it: by `remove` (or `with`), or by its
watchdog when the process that made it is gone. It is as durable as a real one, fsync and all; what it leaves
out is only what a test never looks at.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from tests.servers import programs, watchdog
from tests.servers.process import ServerError, children, free_port, new_folder, watch

START_S = 30.0  # it takes 0.2 s; after a crash it reads its log first
STOP_S = 30.0
LOOK_S = 0.01  # how often the file is read that says "ready"
READY = ("ready", "standby")
USER = "postgres"
STOP_SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}

SETTINGS = {
    "fsync": "on",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "max_connections": "200",
    "shared_buffers": "64MB",
    # One round is as safe as 4,096 for a random password, and a test connects hundreds of times.
    "scram_iterations": "1",
    "log_line_prefix": "%m [%p] %a ",
    "log_checkpoints": "off",
}


class Server:
    """
    One PostgreSQL server, made by `create` or `standby_of`; it does not run before `start`.

    Its port stays the same over all its restarts.
    """

    def __init__(self, folder: Path, *, password: str, listen: str = "127.0.0.1") -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.password = password
        self.listen = listen
        self.port = free_port(listen)
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog = watch(folder, os.getpid())

    @classmethod
    def create(cls, *, listen: str = "127.0.0.1", settings: dict[str, str] | None = None) -> Self:
        """
        Make a new, empty cluster.

        Args:
            listen: The address to listen on, beside a socket in its folder. Who connects needs the password.
            settings: Lines for postgresql.conf, over our own `SETTINGS`.
        """
        server = cls(new_folder("postgres"), password=secrets.token_urlsafe(12), listen=listen)
        try:
            server._initdb()
            server.configure(**SETTINGS, **(settings or {}))
        except BaseException:
            server.remove()
            raise
        return server

    @classmethod
    def standby_of(cls, primary: "Server", *, settings: dict[str, str] | None = None) -> Self:
        """Make a copy of the running `primary` that follows it, once started, until `promote`."""
        server = cls(new_folder("postgres"), password=primary.password, listen=primary.listen)
        command = ["pg_basebackup", "--pgdata", str(server.data), "--dbname", primary.url()]
        try:
            server._run(*command, "--write-recovery-conf", "--checkpoint=fast", "--no-sync")
            server.configure(**(settings or {}))
        except BaseException:
            server.remove()
            raise
        return server

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def pid(self) -> int | None:
        """The process that is the server's first; None when it does not run."""
        running = self._process is not None and self._process.poll() is None
        return self._process.pid if self._process and running else None

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the URL of a database; `port`: of a proxy or pooler in front of this server."""
        place = f"127.0.0.1:{port}" if port else f"{self.listen}:{self.port}"
        return f"postgresql://{USER}:{quote(self.password)}@{place}/{quote(database)}"

    def configure(self, **settings: str) -> None:
        """Write settings, which hold from the next start (or `reload`)."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def start(self, timeout_s: float = START_S) -> None:
        """Start it; return once it takes connections (a standby: once it can be read)."""
        assert self.pid is None, "the server runs already"
        command = [str(programs.bin_folder() / "postgres"), "-D", str(self.data)]
        place = ["-h", self.listen, "-p", str(self.port), "-k", str(self.folder)]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C on pytest is for pytest.
            self._process = subprocess.Popen(
                [*command, *place],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=programs.environment(),
                start_new_session=True,
                **programs.as_user(),
            )
        self._wait_until_ready(time.monotonic() + timeout_s)

    def stop(self, mode: str = "fast") -> None:
        """
        Stop it, if it runs; return once it has ended.

        Args:
            mode: "smart" waits for all clients to go, "fast" throws them out and ends in good order,
                "immediate" lets all fall: the next start recovers as after a crash.
        """
        if self._process is None:
            return
        self._process.send_signal(STOP_SIGNALS[mode])
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            text = f"the server did not stop ({mode}) within {STOP_S:.0f} s"
            raise ServerError(self._with_log(text)) from None
        self._process = None

    def restart(self, mode: str = "fast") -> None:
        """Stop it in this mode, and start it."""
        self.stop(mode)
        self.start()

    def kill9(self) -> None:
        """Kill all its processes with SIGKILL, as the kernel does when memory is out."""
        if self._process is None:
            return
        first = self._process
        first.send_signal(signal.SIGSTOP)  # so that it starts no others
        others = children(first.pid)
        for pid in (first.pid, *others):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        first.wait(STOP_S)
        for pid in others:  # while one is left it holds the shared memory, and no server can start
            watchdog.wait_for_end(pid, STOP_S)
        self._process = None

    def pause(self) -> None:
        """Freeze all its processes (SIGSTOP): connections stay open, nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        self._signal_all(signal.SIGCONT)

    def reload(self) -> None:
        """Have it read its settings again."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signal.SIGHUP)

    def catch_up(self, primary: "Server", timeout_s: float = START_S) -> None:
        """Wait until this standby has replayed all that `primary` has written so far."""
        import psycopg

        with (
            psycopg.connect(primary.url(), autocommit=True) as there,
            psycopg.connect(self.url(), autocommit=True) as here,
        ):
            written = there.execute("SELECT pg_current_wal_lsn()").fetchone()
            deadline = time.monotonic() + timeout_s
            while here.execute("SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", written).fetchone() != (
                True,
            ):
                if time.monotonic() > deadline:
                    raise ServerError(self._with_log("the standby does not follow"))
                time.sleep(LOOK_S)

    def promote(self) -> None:
        """Make this standby a primary; return once it takes writes."""
        self._run("pg_ctl", "promote", "--pgdata", str(self.data), "--wait")

    def remove(self) -> None:
        """End it if it runs, and remove its folder. Repeating it is safe."""
        if self._process is not None:
            self.resume()  # a paused server would not hear the signal
            self.stop("immediate")
        self._watchdog.kill()
        self._watchdog.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _initdb(self) -> None:
        secret = self.folder / "password"
        secret.write_text(self.password)
        options = ["--username", USER, "--pwfile", str(secret), "--auth", "scram-sha-256"]
        try:
            self._run("initdb", "-D", str(self.data), *options, "--encoding=UTF8", "--locale=C", "--no-sync")
        finally:
            secret.unlink()
        if self.listen != "127.0.0.1":
            with (self.data / "pg_hba.conf").open("a") as file:
                file.write("host all,replication all all scram-sha-256\n")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(programs.bin_folder() / program), *arguments]
        environment = programs.environment()
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, **programs.as_user()
        )
        if done.returncode != 0:
            raise ServerError(self._with_log(f"{program} failed: {done.stderr.strip()}"))

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        state = self.data / "postmaster.pid"
        while True:
            if self._process.poll() is not None:
                code, self._process = self._process.returncode, None
                raise ServerError(self._with_log(f"the server ended at its start with code {code}"))
            with contextlib.suppress(FileNotFoundError):
                lines = state.read_text().splitlines()
                # The file of a killed server is still there; line 8 is the state that pg_ctl waits for.
                if lines[:1] == [str(self._process.pid)] and lines[7:8] and lines[7].strip() in READY:
                    return
            if time.monotonic() > deadline:
                raise ServerError(self._with_log("the server is not ready in time"))
            time.sleep(LOOK_S)

    def _signal_all(self, number: int) -> None:
        assert self._process is not None, "the server does not run"
        for pid in (self._process.pid, *children(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _with_log(self, text: str) -> str:
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join([text, *lines[-20:]])
