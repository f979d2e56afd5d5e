"""The broken network: bytes first, between a plain client and an echo."""

import socket
import socketserver
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.servers.proxy import Proxy, To

PATIENCE_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)
        self.request.sendall(b"bye")


@pytest.fixture
def echo_port() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.handle_error = lambda *_: None  # connections are reset: that is the point
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo_port: int) -> Iterator[Proxy]:
    with Proxy(echo_port) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        yield client


def received(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(65536)):
        data += more
    return data


def hears_nothing(client: socket.socket) -> bool:
    client.settimeout(0.1)
    try:
        client.recv(100)
    except TimeoutError:
        return True
    finally:
        client.settimeout(PATIENCE_S)
    return False


def test_bytes_pass_in_order_however_many(client: socket.socket):
    sent = bytes(range(256)) * 20_000
    sender = threading.Thread(target=client.sendall, args=(sent,))

    sender.start()

    assert received(client, len(sent)) == sent
    sender.join()


def test_who_reads_late_gets_all_though_the_other_has_ended(proxy: Proxy, client: socket.socket):
    client.sendall(b"x" * 3_000_000)
    client.shutdown(socket.SHUT_WR)

    assert len(received(client, 3_000_003)) == 3_000_003


def test_the_end_of_one_side_is_the_end_of_the_other(proxy: Proxy, client: socket.socket):
    client.shutdown(socket.SHUT_WR)

    assert received(client, 100) == b"bye"
    assert proxy.accepted == 1


def test_delay_makes_bytes_late(proxy: Proxy, client: socket.socket):
    proxy.delay(ms=50)
    before = time.monotonic()

    client.sendall(b"late")

    assert client.recv(100) == b"late"
    assert time.monotonic() - before >= 0.1, "both ways"


def test_delay_does_not_make_bytes_few(proxy: Proxy, client: socket.socket):
    """Fifty chunks on the way at once take one delay, not fifty."""
    proxy.delay(ms=200)
    before = time.monotonic()

    for _ in range(50):
        client.sendall(b"x" * 1000)

    assert len(received(client, 50_000)) == 50_000
    assert time.monotonic() - before < 50 * 0.2


@pytest.mark.parametrize("directions", [(), (To.SERVER,), (To.CLIENT,), (To.SERVER, To.CLIENT)])
def test_a_black_hole_closes_nothing_and_heals(
    proxy: Proxy, client: socket.socket, directions: tuple[To, ...]
):
    proxy.black_hole(*directions)
    client.sendall(b"anyone?")

    assert hears_nothing(client)
    assert proxy.connections == 1
    proxy.heal()
    assert client.recv(100) == b"anyone?"


def test_a_black_hole_swallows_new_connections_too(proxy: Proxy):
    proxy.black_hole()

    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as client:
        client.sendall(b"hello")
        assert hears_nothing(client)
        proxy.heal()
        assert client.recv(100) == b"hello"


def test_a_cut_resets(proxy: Proxy, client: socket.socket):
    assert proxy.cut() == 1

    with pytest.raises(ConnectionResetError):
        client.recv(100)
    assert proxy.connections == 0


def test_a_cut_in_good_order_ends(proxy: Proxy, client: socket.socket):
    assert proxy.cut(reset=False) == 1

    assert client.recv(100) == b""


def test_a_cut_ends_a_connection_in_a_black_hole(proxy: Proxy, client: socket.socket):
    proxy.black_hole()
    client.sendall(b"lost")
    assert proxy.cut() == 1

    with pytest.raises(ConnectionResetError):
        client.recv(100)


def test_after_a_cut_new_connections_pass(proxy: Proxy, client: socket.socket):
    proxy.cut()

    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as another:
        another.sendall(b"again")
        assert another.recv(100) == b"again"


def test_half_close_towards_the_client(proxy: Proxy, client: socket.socket):
    """The client hears the end; the server knows nothing of it."""
    assert proxy.half_close(To.CLIENT) == 1

    assert client.recv(100) == b""
    client.sendall(b"still there?")
    assert proxy.connections == 1


def test_half_close_towards_the_server(proxy: Proxy, client: socket.socket):
    """The server hears the end, and its last words come through."""
    assert proxy.half_close(To.SERVER) == 1

    assert received(client, 100) == b"bye"


def test_refused_means_that_nobody_listens(proxy: Proxy, client: socket.socket):
    proxy.refuse()

    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)
    client.sendall(b"those there are")
    assert client.recv(100) == b"those there are"
    proxy.heal()
    socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S).close()


def test_a_server_that_is_down_means_a_reset(proxy: Proxy):
    proxy.retarget(1)  # nobody listens there

    with pytest.raises(ConnectionResetError):  # by the connect itself, or by what follows
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as client:
            client.recv(100)


def test_a_reset_by_the_client_reaches_the_server(proxy: Proxy, client: socket.socket):
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()

    deadline = time.monotonic() + PATIENCE_S
    while proxy.connections:
        assert time.monotonic() < deadline


def test_close_ends_all(echo_port: int):
    proxy = Proxy(echo_port)
    proxy.start()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S) as client:
        proxy.close()
        proxy.close()

        with pytest.raises(ConnectionResetError):
            client.recv(100)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=PATIENCE_S)
