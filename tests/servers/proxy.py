"""
A network that can be broken: a TCP proxy between clients and a server.

    with Proxy(server.port) as proxy:
        url = server.url(port=proxy.port)
        proxy.black_hole()        # nothing passes, nothing is closed
        proxy.heal()              # what was held comes late, as by TCP
        trap = proxy.cut_at_commit(When.AFTER)

It runs in a thread of its own; a control has taken effect when its call returns. What it cannot show: the
kernel beneath still answers keepalives and acknowledges bytes, so no `tcp_user_timeout` ever fires here; that
takes network namespaces. While the server is down, a connection is accepted and reset, not refused. Sockets
that a forked child inherits stay open in the child, whatever is cut here. And it is a thread, so what blocks
while it holds the GIL waits for ever: `PGconn.get_result` of psycopg_binary does, its connections do not.
"""

import asyncio
import re
import socket
import threading
from collections.abc import Coroutine
from enum import Enum
from types import TracebackType
from typing import Self, TypeVar

from tests.servers.link import Link, Network
from tests.servers.process import free_port
from tests.servers.trap import Trap, When
from tests.servers.wire import COMMIT

__all__ = ["Proxy", "To", "Trap", "When"]

CONTROL_S = (
    10.0  # a control takes microseconds; a limit, so that a bug here fails a test and does not hang it
)
HOST = "127.0.0.1"
T = TypeVar("T")


class To(Enum):
    """A direction."""

    SERVER = "server"
    CLIENT = "client"


class Proxy:
    """
    A TCP proxy to `host:port`; it listens from `start` (or `with`) to `close`.

    Attributes:
        port: Its own, which stays the same while new connections are refused.
    """

    def __init__(self, port: int, host: str = HOST) -> None:
        self.port = free_port()
        self._network = Network((host, port))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._listener: socket.socket | None = None
        self._links: dict[Link, asyncio.Task[None]] = {}  # which also keeps the tasks alive
        self._accepted = 0
        self._errors: list[Exception] = []
        self._statements = 0  # of the links that are no more

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Start to listen."""
        self._thread.start()
        self._do(self._listen())

    def close(self) -> None:
        """Cut all connections, and end."""
        if not self._thread.is_alive():
            return
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONTROL_S)
        assert not self._thread.is_alive()
        if self._errors:
            raise ExceptionGroup("the proxy failed", self._errors)

    # What the network does from now on, to all connections.

    def heal(self) -> None:
        """All passes again, without delay; new connections are taken; no trap is set."""

        async def heal() -> None:
            self._network.delay_s = 0.0
            self._network.trap = None
            self._network.open_gates()
            for link in self._links:
                link.release()
            await self._listen()

        self._do(heal())

    def delay(self, ms: float) -> None:
        """Let all bytes, either way, arrive `ms` milliseconds late; in order, however many they are."""

        async def delay() -> None:
            self._network.delay_s = ms / 1000

        self._do(delay())

    def black_hole(self, *directions: To) -> None:
        """
        Let nothing pass in these directions (none named: both), neither bytes nor the end of a connection.

        New connections are accepted, and get no answer. After `heal` all that was held back arrives.
        """

        async def close() -> None:
            self._network.close_gates(
                to_server=not directions or To.SERVER in directions,
                to_client=not directions or To.CLIENT in directions,
            )

        self._do(close())

    def refuse(self) -> None:
        """Refuse new connections (there is no listener: ECONNREFUSED); those there are go on."""
        self._do(self._deafen())

    def retarget(self, port: int, host: str = HOST) -> None:
        """Lead new connections to another server, as a failover does; those there are stay where they are."""

        async def retarget() -> None:
            self._network.target = (host, port)

        self._do(retarget())

    # What happens now, to the connections there are.

    def cut(self, *, reset: bool = True) -> int:
        """Close all connections at both ends, by RST or in good order (FIN); return how many."""

        async def cut() -> int:
            links = list(self._links)
            for link in links:
                link.cut(reset=reset)
            await asyncio.gather(*(link.ended.wait() for link in links))
            return len(links)

        return self._do(cut())

    def half_close(self, to: To) -> int:
        """Tell this side that the other will say nothing more (FIN); the other way stays open."""

        async def half_close() -> int:
            for link in self._links:
                link.half_close(to_server=to is To.SERVER)
            return len(self._links)

        return self._do(half_close())

    # What happens when a certain statement passes.

    def cut_at_commit(self, when: When, *, skip: int = 0) -> Trap:
        """Cut the connection on which the next COMMIT comes (after `skip` others)."""
        return self.cut_at(COMMIT, when, skip=skip)

    def cut_at(self, pattern: str | re.Pattern[str], when: When, *, skip: int = 0) -> Trap:
        """
        Cut the connection on which the next statement comes in which `pattern` is found.

        A trap is sprung once. Another one, and `heal`, takes its place.
        """
        trap = Trap(re.compile(pattern), when, skip)

        async def arm() -> None:
            self._network.trap = trap

        self._do(arm())
        return trap

    # What has been seen.

    @property
    def connections(self) -> int:
        """How many connections there are."""

        async def count() -> int:
            return len(self._links)

        return self._do(count())

    @property
    def accepted(self) -> int:
        """How many connections there have been."""
        return self._accepted

    @property
    def statements(self) -> int:
        """How many statements have passed to the server, as Query or Execute."""

        async def count() -> int:
            return self._statements + sum(link.said.statements for link in self._links)

        return self._do(count())

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _do(self, control: Coroutine[object, object, T]) -> T:
        return asyncio.run_coroutine_threadsafe(control, self._loop).result(CONTROL_S)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server((HOST, self.port), backlog=1024)
            self._listener.setblocking(False)
            # Not asyncio.start_server: what that has just accepted nobody knows of, and no cut reaches it.
            self._loop.add_reader(self._listener, self._accept, self._listener)

    async def _deafen(self) -> None:
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except OSError:
            return  # it is gone again
        self._accepted += 1
        link = Link(self._network, client)
        self._links[link] = self._loop.create_task(self._serve(link))

    async def _serve(self, link: Link) -> None:
        try:
            await link.run()
        except Exception as error:  # a bug here: the test that uses us shall hear of it
            self._errors.append(error)
        finally:
            self._statements += link.said.statements
            del self._links[link]
            link.ended.set()

    async def _end(self) -> None:
        await self._deafen()
        self._network.open_gates()
        links = list(self._links)
        for link in links:
            link.cut(reset=True)
        await asyncio.gather(*(link.ended.wait() for link in links))
