"""
One connection through the proxy: two streams of bytes, each with its reader and its deliverer.

The reader notes for all it reads when it is due, so a delay makes bytes late without making them few. The
deliverer waits for that instant, and for the direction's gate.
"""

import asyncio
import socket
import struct
from contextlib import suppress

from tests.servers.trap import Trap, When
from tests.servers.wire import Conversation

CHUNK = 65536
HELD_CHUNKS = 64  # per direction; then the sender's own buffers fill, as they do when a network is down
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST, and throws away what is not yet sent

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Queue = asyncio.Queue[tuple[float, bytes | None]]  # (due, bytes); b"": the end; None: it was reset


class Network:
    """What holds for all connections; touched by the proxy's thread only."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.delay_s = 0.0
        self.trap: Trap | None = None
        self.to_server, self.to_client = asyncio.Event(), asyncio.Event()
        self.open_gates()

    def open_gates(self) -> None:
        self.to_server.set()
        self.to_client.set()

    def close_gates(self, *, to_server: bool, to_client: bool) -> None:
        if to_server:
            self.to_server.clear()
        if to_client:
            self.to_client.clear()


class Link:
    """One client and its connection to the server."""

    def __init__(self, network: Network, accepted: socket.socket) -> None:
        self.said = Conversation()
        self.ended = asyncio.Event()
        self._network = network
        self._accepted = accepted
        self._client: Ends | None = None
        self._server: Ends | None = None
        self._work = asyncio.ensure_future(self._pass_all())
        self._shut: set[asyncio.StreamWriter] = set()  # FIN is sent: nothing more can be
        self._trap: Trap | None = None  # the one that caught a statement of ours
        self._answer = 0  # the answer that tells that the statement is done
        self._over = False  # that is reached after which the trap cuts
        self._kept = bytearray()  # what a silent trap keeps from the client
        self._heard = asyncio.Event()  # unset: the client talks into the void
        self._heard.set()

    async def run(self) -> None:
        """Connect to the server, and pass bytes until both sides have ended, or it is cut."""
        await asyncio.wait([self._work])
        if self._client is None:  # it was cut before it began; else the socket is asyncio's
            self._accepted.close()
        for _, writer in self._ends():
            writer.close()
            with suppress(OSError):  # it was reset: closed all the same
                await writer.wait_closed()  # as long as a slow one takes to read; a cut ends that too
        if self._trap is not None and self._over:
            self._trap.spring()
        if not self._work.cancelled():
            self._work.result()  # a bug of ours is raised here

    def cut(self, *, reset: bool) -> None:
        """Close both ends."""
        for _, writer in self._ends():
            abort(writer) if reset else writer.close()
        if reset and self._client is None:
            linger(self._accepted)
        self._work.cancel()

    def half_close(self, *, to_server: bool) -> None:
        """Send FIN to one side."""
        ends = self._server if to_server else self._client
        if ends is not None:
            self._shut_down(ends[1])

    def release(self) -> None:
        """Deliver what a silent trap has kept."""
        if self._client is not None and self._trap is not None and self._trap.when is When.SILENT:
            self._send(self._client[1], bytes(self._kept))
            self._kept.clear()
            self._trap = None
        self._heard.set()

    def _ends(self) -> list[Ends]:
        return [ends for ends in (self._client, self._server) if ends is not None]

    async def _pass_all(self) -> None:
        network = self._network
        self._client = await asyncio.open_connection(sock=self._accepted)
        await network.to_server.wait()
        try:
            self._server = await asyncio.open_connection(*network.target)
        except OSError:
            abort(self._client[1])
            return
        up, down = Queue(HELD_CHUNKS), Queue(HELD_CHUNKS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(self._client[0], up))
            tasks.create_task(self._read(self._server[0], down))
            tasks.create_task(self._deliver_up(up, self._server[1]))
            tasks.create_task(self._deliver_down(down, self._client[1]))

    async def _read(self, reader: asyncio.StreamReader, queue: Queue) -> None:
        loop = asyncio.get_running_loop()
        data: bytes | None = b"-"
        while data:
            try:
                data = await reader.read(CHUNK)
            except OSError:
                data = None
            await queue.put((loop.time() + self._network.delay_s, data))

    async def _deliver_up(self, queue: Queue, server: asyncio.StreamWriter) -> None:
        while True:
            data = await self._due(queue, self._network.to_server)
            await self._heard.wait()
            if not data:
                return self._finish(server, data)
            self._send(server, self._inspected(data))
            if self._over and self._trap is not None:
                return self._cut_off(self._trap)
            await drained(server)

    async def _deliver_down(self, queue: Queue, client: asyncio.StreamWriter) -> None:
        while True:
            data = await self._due(queue, self._network.to_client)
            if not data:
                return self._finish(client, data)
            self.said.from_server(data)
            if self._trap is None:
                self._send(client, data)
            else:
                self._withhold(data)
            await drained(client)

    async def _due(self, queue: Queue, gate: asyncio.Event) -> bytes | None:
        due, data = await queue.get()
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        await gate.wait()
        return data

    def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if data and writer not in self._shut and not writer.is_closing():
            writer.write(data)

    def _finish(self, writer: asyncio.StreamWriter, end: bytes | None) -> None:
        """Tell this side how the other has ended."""
        if end is None:
            abort(writer)
        else:
            self._shut_down(writer)

    def _shut_down(self, writer: asyncio.StreamWriter) -> None:
        if writer not in self._shut and not writer.is_closing():
            self._shut.add(writer)
            with suppress(OSError):  # it was reset, which is more
                writer.write_eof()

    def _inspected(self, data: bytes) -> bytes:
        """Return what the server gets of what the client says."""
        passed = bytearray()
        for message in self.said.from_client(data):
            trap = self._network.trap
            if trap is not None and self._trap is None and trap.catches(message.sql):
                self._trap, self._answer = trap, message.answer
                self._over = trap.when in {When.BEFORE, When.WITH}
                if trap.when is When.BEFORE:
                    break
            passed += message.raw
        return bytes(passed)

    def _withhold(self, data: bytes) -> None:
        """Keep from the client what the server says after the trap has its statement."""
        assert self._trap is not None
        silent = self._trap.when is When.SILENT
        if silent:
            self._kept += data
        if self._over or self.said.answered < self._answer:
            return
        if silent:
            self._heard.clear()
            self._trap.spring()
        else:
            self._over = True
            self.cut(reset=True)

    def _cut_off(self, trap: Trap) -> None:
        """Cut the client off from what it has just said."""
        if trap.when is When.BEFORE or self._client is None or self._server is None:
            self.cut(reset=True)
            return
        # The server hears no more than that its client is done. RST would make its kernel throw away the
        # statement; so would its own vain attempt to answer, which is why its answers are still taken.
        abort(self._client[1])
        self._shut_down(self._server[1])
        trap.spring()


async def drained(writer: asyncio.StreamWriter) -> None:
    """Wait until this side has taken enough of what it was sent."""
    with suppress(OSError):  # it is gone: its reader sees that, and tells the other side
        await writer.drain()


def abort(writer: asyncio.StreamWriter) -> None:
    """Close it with RST."""
    linger(writer.get_extra_info("socket"))
    writer.transport.abort()


def linger(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side was quicker
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
