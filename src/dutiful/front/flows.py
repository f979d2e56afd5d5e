"""The front door's part for groups and chains (`dutiful.flows`): how they are stored."""

import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from contextlib import suppress
from itertools import chain as chained
from typing import Any

import msgspec

from dutiful.errors import ConfigError, DutifulError
from dutiful.flows import Chain, ChainJob, Group, GroupJob, merged
from dutiful.front.sender import Sender
from dutiful.handle import Job, in_thread
from dutiful.job import JobId
from dutiful.link import Link
from dutiful.sending import Sending, SendOptions
from dutiful.store.contract import Draft, Special

CHUNK_S = 1.0  # a chunk is stored after that, however small it is: members are not to wait for others
CHAIN_JOBS_MAX = 10_000  # in one commit: a tenth of a second of a file's write lock


class Plan:
    """
    A group, checked, about to be sent.

    Args:
        callback: The draft of its callback.
        how: How to send the members.
    """

    def __init__(self, callback: Draft, how: Sending) -> None:
        self.opening = _with(callback, gathers=True)
        self.how = how

    def members(self, drafts: Iterable[Draft], of: JobId, after: tuple[JobId, ...] = ()) -> list[Draft]:
        """Return drafts as those of members of the group of the job `of`."""
        return [_with(draft, member_of=of, after=after) for draft in drafts]

    def closing(self, of: JobId) -> Draft:
        """Return what says that there are no more."""
        return msgspec.structs.replace(_with(self.opening, gathers=False, closes=of), payloads=[])

    def at_once(self, drafts: list[Draft], after: int | None = None) -> list[Draft]:
        """Return the drafts of all of it; `after` is the place, from here, of the job that members follow."""
        if not drafts:  # then the callback does
            follows = self.how.after if after is None else (*self.how.after, after)
            return [_with(self.opening, gathers=True, after=follows), self.closing(-1)]
        members = [
            _with(draft, member_of=-at, after=() if after is None else (after - at,))
            for at, draft in enumerate(drafts, 1)
        ]
        return [self.opening, *members, self.closing(-1 - len(drafts))]


class Source:
    """The payloads of a group, as they come."""

    def __init__(self, payloads: Iterable[object]) -> None:
        self._payloads = iter(payloads)
        self.is_over = False

    def some(self) -> Iterator[object]:
        """Give those that come within a second or so."""
        until = time.monotonic() + CHUNK_S
        for payload in self._payloads:
            yield _checked(payload)
            if time.monotonic() >= until:
                return
        self.is_over = True


class Flows(Sender):
    """What stores groups and chains."""

    def group(self, job_id: JobId) -> GroupJob:
        """Return the group whose callback has this id; asks the store only when it is used."""
        return GroupJob(self, job_id)

    def store_group(self, group: Group) -> GroupJob:
        """`Group.send` does this."""
        return GroupJob(self, self._send_group(group, group.payloads, exempt=self._is_handler_here()))

    async def astore_group(self, group: Group) -> GroupJob:
        """`Group.asend` does this."""
        return GroupJob(self, await self._asend_group(group, exempt=self._is_handler_here()))

    def store_chain(self, chain: Chain) -> ChainJob:
        """`Chain.send` does this."""
        return self._send_chain(chain, exempt=self._is_handler_here())

    # --- groups ------------------------------------------------------------------------------------

    def _plan(self, group: Group) -> Plan:
        how = self._how(group.options, "members of a Group")
        then = self._how(merged({}, group.then.options), "the callback of a Group")
        if then.after:
            raise ConfigError(
                "the callback of a Group has after=; nothing was stored. It follows the members: give after= "
                "to the Group, whose members then wait."
            )
        if self._config.buffer == 1:
            raise ConfigError(
                "buffer=1 has no room for a Group: its callback takes one place while the members run; "
                "nothing was stored. Set buffer=2 or more."
            )
        return Plan(self._drafting.one(group.then.payload, then), how)

    def _how(self, options: SendOptions, whose: str) -> Sending:
        for name in ("transaction", "unique"):
            if options.get(name):
                raise ConfigError(f"{whose} cannot have {name}=; nothing was stored. Send without it.")
        return self._sending(options)

    def _send_group(
        self, group: Group, payloads: "Iterable[object] | AsyncIterable[object]", *, exempt: bool
    ) -> JobId:
        if not isinstance(payloads, Iterable):
            raise ConfigError(
                f"the payloads of a Group are a {type(payloads).__name__}, over which send() cannot iterate; "
                "nothing was stored. Use asend() for asynchronous ones."
            )
        plan = self._plan(group)
        source = Source(payloads)
        chunks = self._chunks(source, plan.how)
        nothing: list[Draft] = []
        first = next(chunks, nothing)
        if source.is_over and self._has_room(first):
            return self._send_whole(plan.at_once(first), plan.how, exempt=exempt)[0].start
        job_id = self._open_group(plan, exempt=exempt)
        stored: list[range] = []
        try:
            members = (plan.members(drafts, job_id) for drafts in chained([first], chunks))
            if self._config.buffer is None:
                self._send_ahead(members, stored, exempt=exempt)
            else:
                self._send_in_turn(members, plan.how, stored, exempt=exempt)
            self._send_in_turn([[plan.closing(job_id)]], plan.how, [], exempt=exempt)
        except BaseException as error:
            self._give_up(job_id, stored, error)
            raise
        return job_id

    def _chunks(self, source: Source, how: Sending) -> Iterator[list[Draft]]:
        while not source.is_over:
            yield from self._drafting.chunks(source.some(), how, self._chunk_jobs())

    def _has_room(self, members: list[Draft]) -> bool:
        buffer = self._config.buffer
        return buffer is None or sum(len(draft.payloads) for draft in members) < buffer

    def _open_group(self, plan: Plan, *, exempt: bool) -> JobId:
        return self._send_whole([plan.opening], plan.how, exempt=exempt)[0].start

    def _give_up(self, job_id: JobId, stored: list[range], error: BaseException) -> None:
        """Say what is stored of a group that is not sent to its end, and end its callback."""
        with suppress(DutifulError):  # if it cannot be, it is dead in an hour
            if self.opened().edit([job_id], "cancel"):
                self._store.ring()
        count = sum(map(len, stored))
        if isinstance(error, DutifulError):
            error.stored = count
        error.add_note(
            f"{count} members of this group are stored, and run; its callback, job {job_id}, will not. "
            f"worker.group({job_id}).cancel() ends what still waits."
        )

    async def _asend_group(self, group: Group, *, exempt: bool) -> JobId:
        plan = self._plan(group)
        stored: list[range] = []
        job_id: JobId | None = None
        try:
            async for payloads, is_last in _in_turns(group.payloads, self._chunk_jobs()):
                if job_id is None and is_last:
                    return await in_thread(self._send_group, group, payloads, exempt=exempt)
                if job_id is None:
                    job_id = await in_thread(self._open_group, plan, exempt=exempt)
                await in_thread(self._add, plan, job_id, payloads, stored, exempt=exempt)
            assert job_id is not None, "the last turn is marked"
            closing = [[plan.closing(job_id)]]
            await in_thread(self._send_in_turn, closing, plan.how, [], exempt=exempt)
        except BaseException as error:
            if job_id is not None:
                await in_thread(self._give_up, job_id, stored, error)
            raise
        return job_id

    def _add(
        self, plan: Plan, job_id: JobId, payloads: list[object], stored: list[range], *, exempt: bool
    ) -> None:
        chunks = self._drafting.chunks(map(_checked, payloads), plan.how, self._chunk_jobs())
        members = (plan.members(drafts, job_id) for drafts in chunks)
        self._send_in_turn(members, plan.how, stored, exempt=exempt)

    # --- chains --------------------------------------------------------------------------------------

    def _send_chain(self, chain: Chain, *, exempt: bool) -> ChainJob:
        how = self._how(chain.options, "a Chain")
        drafts: list[Draft] = []
        places: list[tuple[int, bool]] = []  # of each link its draft, and whether it is a group's callback
        for link, options in _links(chain, {}):
            after = places[-1][0] - len(drafts) if places else None
            places.append((len(drafts), isinstance(link, Group)))
            if isinstance(link, Group):
                drafts += self._group_link(link, after)
            else:
                drafts.append(self._link(link, options, after))
        jobs = sum(len(draft.payloads) for draft in drafts)
        if jobs > min(CHAIN_JOBS_MAX, self._config.buffer or CHAIN_JOBS_MAX):
            raise ConfigError(
                f"this Chain has {jobs} jobs, and is stored in one commit: it can have {CHAIN_JOBS_MAX} at "
                "most, and no more than buffer=; nothing was stored. Send a large Group by itself, and the "
                "rest with after= its job."
            )
        ranges = self._send_whole(drafts, how, exempt=exempt)
        firsts = dict(zip((at for at, draft in enumerate(drafts) if draft.payloads), ranges, strict=True))
        return ChainJob(
            self,
            tuple(
                GroupJob(self, firsts[at].start) if is_group else Job(self, firsts[at].start)
                for at, is_group in places
            ),
        )

    def _link(self, link: Link, options: SendOptions, after: int | None) -> Draft:
        draft = self._drafting.one(link.payload, self._how(options, "a link of a Chain"))
        return _with(draft, after=() if after is None else (after,))

    def _group_link(self, group: Group, after: int | None) -> list[Draft]:
        if not isinstance(group.payloads, Iterable):
            raise ConfigError(
                f"the payloads of a Group in a Chain are a {type(group.payloads).__name__}; nothing was "
                "stored. Give ones that need not be awaited."
            )
        plan = self._plan(group)
        chunks = self._drafting.chunks(map(_checked, group.payloads), plan.how, CHAIN_JOBS_MAX + 1)
        drafts: list[Draft] = []
        for chunk in chunks:
            drafts += chunk
            if sum(len(draft.payloads) for draft in drafts) > CHAIN_JOBS_MAX:
                break  # it is refused, without reading them all
        return plan.at_once(drafts, after)

    def _send_whole(self, drafts: list[Draft], how: Sending, *, exempt: bool) -> list[range]:
        """Store drafts in one commit, all of them or none; return the ids of those that hold jobs."""
        bound = [drafts[0], *(msgspec.structs.replace(draft, bound=True) for draft in drafts[1:])]
        ranges: list[range] = []
        self._send_in_turn([bound], how, ranges, exempt=exempt)
        return [ids for ids in ranges if ids]


def _with(
    draft: Draft,
    *,
    after: tuple[JobId, ...] = (),
    gathers: bool = False,
    member_of: JobId = 0,
    closes: JobId = 0,
) -> Draft:
    """Return a draft that also asks for this."""
    special = draft.special or Special()
    asked = msgspec.structs.replace(
        special, after=(*special.after, *after), gathers=gathers, member_of=member_of, closes=closes
    )
    return msgspec.structs.replace(draft, special=asked)


def _links(chain: Chain, outer: SendOptions) -> Iterator[tuple[Link | Group, SendOptions]]:
    """Return the links of a chain, and of chains in it, each with its options."""
    for at, link in enumerate(chain.links):
        options = merged(outer, chain.options)
        if at:
            options.pop("after", None)  # it is the first one's
        if isinstance(link, Chain):
            yield from _links(link, options)
        elif isinstance(link, Group):
            yield _following(link, options.get("after")), options
        else:
            one = link if isinstance(link, Link) else Link(link)
            yield one, merged(options, one.options)


def _following(group: Group, after: Any) -> Group:
    """Return a group that is the first link of a chain with `after`."""
    if after is None:
        return group
    if group.options.get("after") is not None:
        raise ConfigError(
            "both a Chain and the Group that it begins with have after=; nothing was stored. Give it to one."
        )
    return Group(group.payloads, then=group.then, **merged({"after": after}, group.options))


def _checked(payload: object) -> object:
    if isinstance(payload, Group | Chain | Link):
        raise ConfigError(
            f"a member of the Group is a {type(payload).__name__}; members are payloads. Send each Chain by "
            "itself, and then a job with after= all of them."
        )
    return payload


async def _in_turns(
    payloads: "Iterable[object] | AsyncIterable[object]", size: int
) -> AsyncGenerator[tuple[list[object], bool]]:
    """Return payloads in lists, as Source does, and whether that is the last one."""
    turn: list[object] = []
    until = time.monotonic() + CHUNK_S
    source = payloads if isinstance(payloads, AsyncIterable) else _asynchronous(payloads)
    async for payload in source:
        turn.append(payload)
        if len(turn) >= size or time.monotonic() >= until:
            yield turn, False
            turn, until = [], time.monotonic() + CHUNK_S
    yield turn, True


async def _asynchronous(payloads: Iterable[object]) -> AsyncGenerator[object]:
    for payload in payloads:
        yield payload
