"""The tests' own PostgreSQL: what the tests of the store rely on."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.servers import programs, shared, watchdog
from tests.servers.postgres import Server
from tests.servers.process import ServerError

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0


def asked(url: str, query: str) -> object:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query)
        row = cursor.fetchone() if cursor.description else None
        return row and row[0]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server.create() as server:
        server.start()
        yield server


@pytest.mark.parametrize("time", ["first", "second"])
def test_each_test_has_a_new_and_empty_database(database_url: str, time: str):
    assert (
        asked(database_url, "SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0
    )
    asked(database_url, "CREATE TABLE mine (id int)")


def test_a_database_goes_though_somebody_is_connected(postgres_url: str):
    with shared.fresh_database(postgres_url) as url:
        connection = psycopg.connect(url)

    with connection, pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError, match="does not exist"):
        psycopg.connect(url)


def test_the_server_is_as_durable_as_a_real_one(postgres_url: str):
    assert asked(postgres_url, "SHOW fsync") == "on"
    assert asked(postgres_url, "SHOW synchronous_commit") == "on"
    assert asked(postgres_url, "SHOW full_page_writes") == "on"


def test_it_does_not_run_as_root(server: Server):
    assert server.pid is not None
    owners = subprocess.run(
        ["ps", "-o", "uid=", "-p", str(server.pid)], capture_output=True, text=True, check=True
    )

    assert int(owners.stdout) == programs.unprivileged()[0] != 0


def test_nobody_connects_without_the_password(server: Server):
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(server.url().replace(server.password, "guess"))


@pytest.mark.parametrize("end", ["smart", "fast", "immediate", "kill9"])
def test_what_is_committed_survives_each_way_to_end(server: Server, end: str):
    asked(server.url(), "CREATE TABLE kept (id int)")
    url = server.url()

    if end == "kill9":
        server.kill9()
    else:
        server.stop(end)

    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    server.start()
    assert asked(url, "SELECT count(*) FROM kept") == 0


def test_it_is_killed_with_its_clients_and_starts_at_once(server: Server):
    """Ten times: backends in the middle of something do not keep the next server from starting."""
    asked(server.url(), "CREATE TABLE filled (id int)")
    for _ in range(10):
        with psycopg.connect(server.url()) as connection:
            connection.execute("INSERT INTO filled SELECT generate_series(1, 1000)")
            server.kill9()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("SELECT 1")
        server.start()

    assert asked(server.url(), "SELECT count(*) FROM filled") == 0


def test_a_paused_server_goes_on(server: Server):
    with psycopg.connect(server.url(), autocommit=True) as connection:
        server.pause()
        with pytest.raises(psycopg.OperationalError, match="timeout"):
            psycopg.connect(server.url(), connect_timeout=2)
        server.resume()

        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_paused_server_can_be_removed(server: Server):
    server.pause()

    server.remove()

    assert not server.folder.exists()


def test_a_standby_follows_and_takes_over(server: Server):
    asked(server.url(), "CREATE TABLE kept (id int)")
    with Server.standby_of(server) as standby:
        standby.start()
        assert asked(standby.url(), "SELECT pg_is_in_recovery()") is True
        asked(server.url(), "INSERT INTO kept VALUES (1)")
        standby.catch_up(server)
        server.kill9()

        standby.promote()

        assert asked(standby.url(), "INSERT INTO kept VALUES (2) RETURNING (SELECT count(*) FROM kept)") == 1


def test_settings_can_be_changed(server: Server):
    server.configure(max_connections="17", work_mem="5MB")
    server.reload()
    server.restart()

    assert asked(server.url(), "SHOW max_connections") == "17"
    assert asked(server.url(), "SHOW work_mem") == "5MB"


def test_an_error_at_the_start_shows_the_log(server: Server):
    server.stop()
    server.configure(max_connections="many")

    with pytest.raises(ServerError, match='invalid value for parameter "max_connections"'):
        server.start()


def test_the_server_of_a_killed_owner_ends():
    """As when pytest is killed: nobody is left to clean up but the watchdog."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout is not None
        pid, folder = owner.stdout.readline().split()
        owner.kill()

    assert watchdog.wait_for_end(int(pid), PATIENCE_S)
    wait_until_gone(Path(folder))


OWNER = """
import sys
import tempfile
import time
from tests.servers.postgres import Server
server = Server.create()
server.start()
print(server.pid, server.folder, flush=True)
sys.stdin.read()
"""


def test_the_run_s_server_ends_with_the_run_and_not_with_who_started_it(tmp_path: Path):
    """Two processes of a run get one server; it lives on when both have ended, until the controller has."""
    controller = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    ask = (
        "import pathlib; from tests.servers import shared; "
        f"print(shared.run_url(pathlib.Path({str(tmp_path)!r}), {controller.pid}))"
    )
    with controller:
        askers = [
            subprocess.Popen([sys.executable, "-c", ask], cwd=ROOT, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        urls = {asker.communicate()[0].strip() for asker in askers}
        (url,) = urls
        folder = Path(str(asked(url, "SHOW data_directory"))).parent
        controller.kill()

    wait_until_gone(folder)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def wait_until_gone(folder: Path) -> None:
    """Wait for the last that a watchdog does."""
    deadline = time.monotonic() + PATIENCE_S
    while folder.exists():
        assert time.monotonic() < deadline, f"{folder} is still there"
        time.sleep(0.01)


def test_programs_behind_a_closed_folder_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As in a checkout below /root; and a copy from which somebody has cleaned a file away is made anew."""
    installed = closed_away(tmp_path)
    # Not below tmp_path, which is closed to others itself.
    open_place = Path(tempfile.gettempdir()) / f"dutiful-test-{os.getpid()}"
    open_place.mkdir()
    open_place.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(open_place))
    try:
        if os.geteuid() == 0:
            assert not programs.reachable(installed)

        place = programs.copied(installed, "1")

        made = place.stat()
        assert programs.reachable(place)
        assert programs.copied(installed, "1") == place
        assert place.stat().st_ino == made.st_ino
        next(path for path in place.rglob("*.sql")).unlink()
        assert programs.copied(installed, "1") == place
        assert programs.whole(place, installed)
        assert list(open_place.iterdir()) == [place], "nothing else is left"
        assert installed.stat().st_mode & 0o777 == 0o700, "the closed folder stays closed"
    finally:
        shutil.rmtree(open_place)


def closed_away(folder: Path) -> Path:
    """Link the installed programs into a folder that only we can enter."""
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    source = programs.bin_folder().parents[2]
    for name in programs.NEEDED:
        shutil.copytree(source / name, closed / name, symlinks=True)
    return closed
