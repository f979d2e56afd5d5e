"""
The slots in which handlers run, and the threads that serve them.

A slot is a token: whoever holds it may run one handler. There are `concurrency` of them
for all kinds of handlers together. Jobs wait in one line, `ready`; threads take from its
front, so with one slot the order is kept. A thread that meets an async job hands job and
slot over to the event loop and takes another slot if there is one.

Threads are woken one at a time, each by the one before it when there is still work: a
burst of tiny jobs is served by one thread, and slow jobs still get all of theirs within
microseconds of each other.
"""

import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

from dutiful.job import Claim
from dutiful.runner.batches import Batches, Item, Place
from dutiful.runner.spare import Spare

Run = Callable[[Item, int], bool]


class _Server:
    """One thread that serves slots; parked on its lock while there is nothing to do."""

    __slots__ = ("ended", "parked", "slot", "thread")

    def __init__(self) -> None:
        self.parked = threading.Lock()
        self.parked.acquire()
        self.slot = -1
        self.ended = False
        self.thread: threading.Thread | None = None


class Slots:
    """
    Runs what is ready, at most `count` at once.

    Args:
        count: How many slots.
        run: Runs a job in a slot. True: the slot is free again. False: it went elsewhere,
            and comes back through `free`.
        when_low: Called when little is left in line.
        when_free: Called when a slot becomes free and nothing is in line.
        fault: Called with a job, when `run` raised, which it should not.
        batches: Where jobs are gathered that stand in line together.
        spare: Numbers for slots in place of stuck ones.
    """

    def __init__(
        self,
        count: int,
        run: Run,
        *,
        when_low: Callable[[], None],
        when_free: Callable[[], None],
        fault: Callable[[Item, BaseException], None],
        batches: Batches,
        spare: Spare,
    ) -> None:
        self.ready: deque[Item] = deque()
        self._batches = batches
        self.low_water = 0
        self._run = run
        self._when_low = when_low
        self._when_free = when_free
        self._fault = fault
        self._mutex = threading.Lock()
        self._free = list(range(count - 1, -1, -1))
        self._count = count
        self._spare = spare
        self._parked: list[_Server] = []
        self._servers: set[_Server] = set()
        self._threads: set[int] = set()
        self._is_waking = False
        self._is_open = True
        self._is_ending = False
        self._alone: Claim | None = None

    # --- looking ----------------------------------------------------------------------------

    @property
    def busy(self) -> int:
        """How many slots are held."""
        return self._count - len(self._free)

    @property
    def running(self) -> int:
        """How many handlers run, those of stuck threads included."""
        with self._mutex:
            return self._count - len(self._free) + sum(server.ended for server in self._servers)

    @property
    def count(self) -> int:
        """How many slots there are, without those of stuck threads."""
        return self._count

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing is in line."""
        return not self.ready and self._alone is None and not self.busy

    @property
    def held(self) -> int:
        """How many jobs and places are in line, and how many jobs are gathered for those."""
        return len(self.ready) + self._batches.held

    @property
    def waiting(self) -> list[Claim]:
        """The jobs that have not begun: those in line, in batches, and the one that is to run alone."""
        alone = self._alone
        in_line = [item for item in list(self.ready) if not isinstance(item, Place)]
        return [*in_line, *self._batches.waiting, *([] if alone is None else [alone])]

    @property
    def is_closed(self) -> bool:
        """Whether a job that must run alone keeps the others waiting, or the end has come."""
        return not self._is_open

    def serves_here(self) -> bool:
        """Whether this very thread is one that runs handlers."""
        return threading.get_ident() in self._threads

    # --- work comes ---------------------------------------------------------------------------

    def offer(self, items: Sequence[Item]) -> None:
        """Put jobs at the end of the line."""
        # Set first: whoever takes the last of them is to say so.
        self.low_water = (len(self.ready) + len(items)) // 2
        self.ready.extend(items)
        self._wake_one()

    def offer_alone(self, claim: Claim) -> None:
        """Run a job when all others have ended, and nothing beside it."""
        with self._mutex:
            self._alone = claim
            self._is_open = False
        self._wake_one()

    def take_back(self, *, alone: bool, gathering: bool = True) -> list[Claim]:
        """
        Empty the line; return what was in it.

        With `alone` also the job that waits to run alone, with `gathering` those of batches without a place.
        """
        back: list[Claim] = []
        while self.ready:
            try:
                item = self.ready.popleft()
            except IndexError:
                break
            if not isinstance(item, Place):
                back.append(item)
        back += self._batches.take_back(gathering=gathering)
        with self._mutex:
            if alone and self._alone is not None:
                back.append(self._alone)
                self._alone = None
        return back

    @property
    def waiting_alone(self) -> Claim | None:
        """The job that waits for all others to end."""
        return self._alone

    def _wake_one(self) -> None:
        with self._mutex:
            if self._is_waking or not self._free or not self._has_work():
                return
            self._is_waking = True
            slot = self._free.pop()
            server = self._parked.pop() if self._parked else None
        if server is not None:
            server.slot = slot
            server.parked.release()
        else:
            self._start_server(slot)

    def _has_work(self) -> bool:
        if self._is_open:
            return bool(self.ready)
        return self._alone is not None and len(self._free) == self._count

    def _start_server(self, slot: int) -> None:
        server = _Server()
        server.slot = slot
        server.thread = threading.Thread(
            target=self._serve, args=(server,), name="dutiful-handler", daemon=True
        )
        with self._mutex:
            self._servers.add(server)
        try:
            server.thread.start()
        except RuntimeError:  # "can't create new thread": out of memory, or the interpreter ends
            with self._mutex:
                self._servers.discard(server)
                self._free.append(slot)
                self._is_waking = False

    # --- a server's life ------------------------------------------------------------------------

    def _serve(self, server: _Server) -> None:
        self._threads.add(threading.get_ident())
        try:
            while True:
                self._is_waking = False
                self._serve_line(server)
                if server.ended or self._has_ended(server):
                    return
                server.parked.acquire()
                if self._is_ending:
                    self._return_slot(server)
                    return
        finally:
            self._threads.discard(threading.get_ident())
            with self._mutex:
                self._servers.discard(server)
                if server.ended:
                    self._spare.give_back([server.slot])
            self._when_free()

    def _serve_line(self, server: _Server) -> None:
        """Run what is in line until there is nothing to run, or no slot to run it in."""
        ready, run = self.ready, self._run
        while True:
            try:
                claim = ready.popleft() if self._is_open else self._take_alone()
            except IndexError:
                claim = None
            if claim is None:
                if self._park(server):
                    return
                continue
            if ready and self._free and not self._is_waking:
                self._wake_one()
            if len(ready) <= self.low_water:
                self.low_water = -1  # once; the next offer sets it again
                self._when_low()
            try:
                is_here = run(claim, server.slot)
            except BaseException as error:  # noqa: BLE001  # a bug in us; the thread serves on
                self._fault(claim, error)
                is_here = True
            if server.ended or not (is_here or self._take_slot(server)):
                return

    def _has_ended(self, server: _Server) -> bool:
        """At the end nobody wakes a server that comes to rest now: it goes by itself."""
        with self._mutex:
            if self._is_ending and server in self._parked:
                self._parked.remove(server)
                return True
            return False

    def _return_slot(self, server: _Server) -> None:
        """Woken for work at the moment of the end: the slot goes back unused."""
        with self._mutex:
            if server.slot >= 0:
                self._free.append(server.slot)

    def _take_alone(self) -> Item | None:
        with self._mutex:
            if self._alone is None or len(self._free) != self._count - 1:
                return None
            claim, self._alone = self._alone, None
            return claim

    def open_again(self) -> None:
        """The job that ran alone has ended: go on with the others."""
        with self._mutex:
            self._is_open = not self._is_ending

    def _park(self, server: _Server) -> bool:
        """Give the slot back and rest, unless work came in meanwhile; return whether it rests."""
        with self._mutex:
            if server.ended:  # its slot was replaced while it was stuck
                return True
            self._free.append(server.slot)
            if self._has_work():
                self._free.pop()
                return False
            server.slot = -1
            self._parked.append(server)
        self._when_free()
        return True

    def _take_slot(self, server: _Server) -> bool:
        """After a slot went elsewhere: take another, or rest. Return whether there is one."""
        with self._mutex:
            if server.ended:
                return False
            if self._free and self._has_work():
                server.slot = self._free.pop()
                return True
            server.slot = -1
            self._parked.append(server)
            return False

    def free(self, slot: int) -> None:
        """A slot that went elsewhere is free again."""
        with self._mutex:
            self._free.append(slot)
        self._wake_one()
        if not self.ready:
            self._when_free()

    def replace(self, slot: int) -> bool:
        """
        The thread in `slot` is stuck: open another slot in its place; it ends when it can.

        Returns whether there is one: thousands of stuck threads are left as they are.
        """
        number = self._spare.one()
        if number is None:
            return False
        with self._mutex:
            for server in self._servers:
                if server.slot == slot and server not in self._parked:
                    server.ended = True
            self._free.append(number)
        self._wake_one()
        return True

    def take_out(self, job_ids: Collection[int]) -> list[Claim]:
        """Take jobs out of the line; return those that were still there."""
        out: list[Claim] = []
        with self._mutex:
            if self._alone is not None and self._alone.id in job_ids:
                out.append(self._alone)
                self._alone = None
                self._is_open = not self._is_ending
        for item in list(self.ready):
            if not isinstance(item, Place) and item.id in job_ids:
                with suppress(ValueError):  # it has just begun
                    self.ready.remove(item)
                    out.append(item)
        return out + self._batches.take_out(job_ids)

    # --- the end ------------------------------------------------------------------------------------

    def shut(self) -> None:
        """Start nothing more."""
        with self._mutex:
            self._is_open = False
            self._is_ending = True

    def end(self) -> None:
        """Let all resting threads go, and wait for them."""
        self.shut()
        with self._mutex:
            parked, self._parked = self._parked, []
        for server in parked:
            server.parked.release()
        for server in parked:
            if server.thread is not None and server.thread is not threading.current_thread():
                server.thread.join()
