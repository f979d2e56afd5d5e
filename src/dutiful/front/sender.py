"""The front door's part for sending: `send`, `send_many`, their async twins, and events for jobs."""

import threading
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from dutiful.errors import ConfigError, DutifulError, StoreBusy, WorkerStopped
from dutiful.front.base import Base
from dutiful.handle import Job, Jobs, current_task, in_thread
from dutiful.payload import encode
from dutiful.sending import CHUNK_JOBS, Sending, SendOptions
from dutiful.steps import check_event
from dutiful.store.committer import Sending as Begun
from dutiful.store.contract import Draft, Store
from dutiful.store.special import events
from dutiful.store.special.gates import Turn

if TYPE_CHECKING:
    from dutiful.async_edge import AsyncEdge


R = TypeVar("R")


class Sender(Base):
    """What stores jobs."""

    def send(self, payload: object, **options: Unpack[SendOptions]) -> Job:
        """
        Store a job. When this returns it is on disk, and will be run.

        Args:
            payload: A value of a registered type, or with `task` any JSON value.
            task: The task's name, or the payload type to find it by.
            queue: Default: the handler's, or the worker's first.
            delay: Seconds, or a timedelta, until it is due; 0 or more.
            run_at: The instant when it is due: a datetime with a time zone.
            priority: Higher runs first; default 0.
            key: Jobs of one key run one at a time, in the order sent; a text, or a function of the
                payload. A waiting retry holds its key, unless `on_failure="skip"`.
            unique: True, or a Unique: at most one such job.
            expires: Seconds, a timedelta, or an aware datetime: dead if not started by then.
            deadline: Seconds, or a timedelta, for all attempts together.
            after: A job, or several, that have to finish first; their results are `ctx.after`.
                `on_dead` says what happens if one does not complete: "cancel" this one
                (default), "run" it, or "wait" until it is run again by hand.
            headers: Texts by name that travel with the job: trace context and the like.
            transaction: Your own connection or session to the same database, in a transaction:
                the job exists if that commits. See docs/transactions.md for the libraries.
            timeout: With `buffer`, seconds to wait for room; None waits for ever.

        Raises:
            UnknownTask: No handler for this payload. NotEncodable: It cannot be stored.
            ConfigError: An option is wrong. BufferFull: No room in time.
            WorkerStopped: After `stop()`. StoreError: The store cannot do it.
            In all of these nothing was stored.
        """
        return self._send(payload, options, exempt=self._is_handler_here())

    def _sending(self, options: SendOptions) -> Sending:
        """Read the options, and add the headers that all sends have."""
        if self._outgoing and options.get("transaction") is None:  # which cannot have any
            headers: dict[str, str] = {}
            for each in self._outgoing:
                headers |= each()
            given: Any = options.get("headers") or {}
            if headers and isinstance(given, Mapping):
                options = {**options, "headers": {**headers, **given}}
        return Sending(self._registry, self._config, options)

    def _send(
        self, payload: object, options: SendOptions, *, exempt: bool, gone: threading.Event | None = None
    ) -> Job:
        how = self._sending(options)
        stored: list[range] = []
        me = self._door.enter(exempt=exempt)
        try:
            self._send_chunk([self._drafting.one(payload, how)], how, stored, exempt=exempt, gone=gone)
        finally:
            self._door.leave(me)
        return Job(self, stored[0][0])

    def _draft(self, payload: object, options: Mapping[str, Any]) -> Draft:
        """Return the job that a handler sends with its own completion (`ctx.send`)."""
        how = self._sending(cast("SendOptions", dict(options)))
        draft = self._drafting.one(payload, how)
        unique = None if draft.special is None else draft.special.unique
        if unique is not None and unique.on_conflict == "raise":
            raise ConfigError(
                "ctx.send() cannot raise DuplicateJob, as it stores nothing yet; nothing was stored. Use "
                'Unique(on_conflict="return"), or worker.send().'
            )
        return draft

    def send_many(self, payloads: Iterable[object], **options: Unpack[SendOptions]) -> Jobs:
        """
        Store many jobs, a thousand per commit: the fast way. The options are those of `send`.

        Raises:
            As `send`. Chunks before the one at fault stay stored: `error.stored` jobs.
        """
        return self._send_many(payloads, options, exempt=self._is_handler_here())

    def _send_many(self, payloads: Iterable[object], options: SendOptions, *, exempt: bool) -> Jobs:
        how = self._sending(options)
        ranges: list[range] = []
        chunks = self._drafting.chunks(payloads, how, self._chunk_jobs())
        try:
            if how.transaction is None and self._config.buffer is None:
                self._send_ahead(chunks, ranges, exempt=exempt)
            else:
                self._send_in_turn(chunks, how, ranges, exempt=exempt)
        except DutifulError as error:
            error.stored = sum(map(len, ranges))
            if error.stored:
                error.add_note(f"{error.stored} jobs of this send_many are stored; the rest is not.")
            raise
        return Jobs(self, ranges)

    def _send_in_turn(
        self, chunks: Iterable[list[Draft]], how: Sending, ranges: list[range], *, exempt: bool
    ) -> None:
        for drafts in chunks:
            # Inside the door for each chunk only: payloads may be slow to come.
            me = self._door.enter(exempt=exempt)
            try:
                self._send_chunk(drafts, how, ranges, exempt=exempt)
            finally:
                self._door.leave(me)

    def _send_ahead(self, chunks: Iterable[list[Draft]], ranges: list[range], *, exempt: bool) -> None:
        """Read and encode the next chunk while the last one is written."""
        begun: deque[Begun] = deque()
        try:
            for drafts in chunks:
                begun.append(self._begin(drafts, begun[-1] if begun else None, exempt=exempt))
                if len(begun) > 1:
                    self._finish(begun.popleft(), ranges)
        finally:
            while begun:
                self._finish(begun.popleft(), ranges)

    def _begin(self, drafts: list[Draft], follows: Begun | None, *, exempt: bool) -> Begun:
        self.opened()
        self._check_not_in_transaction()
        me = self._door.enter(exempt=exempt)
        try:
            begun = self._committer.begin(drafts, exempt=exempt, follows=follows)
            self._door.stay(begun)
        finally:
            self._door.leave(me)
        return begun

    def _finish(self, begun: Begun, ranges: list[range]) -> None:
        try:
            ranges += self._committer.finish(begun)
        finally:
            self._door.leave(begun)

    def _send_chunk(
        self,
        drafts: list[Draft],
        how: Sending,
        ranges: list[range],
        *,
        exempt: bool,
        gone: threading.Event | None = None,
    ) -> None:
        store = self._opened_beside(how.transaction)
        if how.transaction is None:
            self._check_not_in_transaction()
        if how.transaction is not None:
            ranges += store.insert_in(how.transaction, drafts)
        else:
            self._room.store(
                drafts, how.timeout, ranges, exempt=exempt, check=lambda: self._still_wanted(gone)
            )

    def _opened_beside(self, transaction: object) -> Store:
        """Open the store while its user may have a transaction open, perhaps on the same file."""
        try:
            return self.opened()
        except StoreBusy as error:
            if transaction is not None:
                error.add_note(
                    "It may be your own transaction that holds it: a store is opened, and made, at its first "
                    "use. Use the worker once before you begin: start it, or call worker.counts()."
                )
            raise

    def _check_not_in_transaction(self) -> None:
        if self._store.is_in_transaction_here():
            raise ConfigError(
                "this is inside ctx.transaction(), which holds the write lock; nothing was stored. "
                "Send with transaction=…, or after the block."
            )

    def _still_wanted(self, gone: threading.Event | None) -> None:
        """Between two looks for room: leave if the worker stops, or the waiting coroutine was cancelled."""
        self._door.check()
        if gone is not None and gone.is_set():
            raise WorkerStopped(self._config.name)  # nobody sees it: who waited is gone

    async def asend(self, payload: object, **options: Unpack[SendOptions]) -> Job:
        """
        `send`, without blocking the event loop; same promise, same errors. Many at once share commits.

        With `transaction`, an asynchronous connection is awaited; a blocking one blocks, as ever.
        """
        exempt = self._is_handler_here()
        if options.get("transaction") is not None:
            return Job(self, (await self._asend_in([payload], options, exempt=exempt))[0][0])
        if self._config.buffer is not None:  # it may have to wait for room
            return await self._in_thread(lambda gone: self._send(payload, options, exempt=exempt, gone=gone))
        how = self._sending(options)
        me = self._door.enter(current_task(), exempt=exempt)
        try:
            if not self._is_open:
                await in_thread(self.opened)
            self._check_not_in_transaction()
            return Job(self, (await self._edge().store([self._drafting.one(payload, how)]))[0][0])
        finally:
            self._door.leave(me)

    async def asend_many(
        self, payloads: "Iterable[object] | AsyncIterable[object]", **options: Unpack[SendOptions]
    ) -> Jobs:
        """`send_many`, without blocking the event loop; payloads may come asynchronously."""
        exempt = self._is_handler_here()
        ranges: list[range] = []
        async for chunk in _in_chunks(payloads, self._chunk_jobs()):
            try:
                if options.get("transaction") is not None:
                    ranges += await self._asend_in(chunk, options, exempt=exempt)
                else:
                    ranges += (await in_thread(self._send_many, chunk, options, exempt=exempt)).ranges
            except DutifulError as error:
                error.stored += sum(map(len, ranges))
                raise
        return Jobs(self, ranges)

    async def _asend_in(
        self, payloads: Iterable[object], options: SendOptions, *, exempt: bool
    ) -> list[range]:
        """Send in the caller's own transaction."""
        from dutiful.async_edge import insert_in

        how = self._sending(options)
        ranges: list[range] = []
        for drafts in self._drafting.chunks(payloads, how, CHUNK_JOBS):
            me = self._door.enter(current_task(), exempt=exempt)
            try:
                if not self._is_open:
                    await in_thread(self._opened_beside, how.transaction)
                ranges += await insert_in(self._store, how.transaction, drafts)
            finally:
                self._door.leave(me)
        return ranges

    async def _in_thread(self, send: "Callable[[threading.Event], R]") -> R:
        """Send in a thread; if the coroutine is cancelled meanwhile, have the thread give up too."""
        gone = threading.Event()
        try:
            return await in_thread(send, gone)
        finally:
            gone.set()

    def _edge(self) -> "AsyncEdge":
        if self._async is None:
            from dutiful.async_edge import AsyncEdge  # asyncio takes 20 ms, for those who use it

            self._async = AsyncEdge(self._committer)
        return self._async

    def _chunk_jobs(self) -> int:
        buffer = self._config.buffer
        return CHUNK_JOBS if buffer is None else min(CHUNK_JOBS, buffer)

    def send_event(self, name: str, payload: object = None) -> Job | None:
        """
        Send an event: to the oldest job that waits for it (`ctx.wait_event`), or to the first that will.

        When this returns it is on disk. A job that waits is due at once.

        Args:
            name: The event's name: any text, such as "approved:42".
            payload: Any JSON value.

        Returns:
            The job that it went to; None: it is kept until one asks for it.

        Raises:
            NotEncodable: It cannot be stored. ConfigError: The name is wrong.
            StoreError: The store cannot do it. In all of these nothing was stored.
        """
        check_event(name)
        text = encode(payload, f"event {name}", self._config.payload_bytes_max)
        store = self.opened()
        self._check_not_in_transaction()
        with store.sql() as sql:
            job_id = events.send(sql, name, text)
            gates = None if job_id is None else events.gates_of(sql, job_id)
        if job_id is None:
            return None
        if gates:  # in a transaction of its own: whoever holds a gate may wait for the job's row
            with store.sql() as sql:
                turn = Turn(sql)
                turn.look_at(*gates)
                turn.finish()
        store.ring()
        self.nudge()
        return Job(self, job_id)

    async def asend_event(self, name: str, payload: object = None) -> Job | None:
        """`send_event`, without blocking the event loop."""
        return await in_thread(self.send_event, name, payload)


async def _in_chunks(
    payloads: "Iterable[object] | AsyncIterable[object]", size: int
) -> AsyncGenerator[list[object]]:
    source = payloads if isinstance(payloads, AsyncIterable) else _asynchronous(payloads)
    chunk: list[object] = []
    async for payload in source:
        chunk.append(payload)
        if len(chunk) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _asynchronous(payloads: Iterable[object]) -> AsyncGenerator[object]:
    for payload in payloads:
        yield payload
