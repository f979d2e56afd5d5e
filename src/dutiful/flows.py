"""
Jobs that belong together: a `Group` has a callback for when all have completed, a `Chain` an order.

Both only describe; `send` has a worker store them, as jobs that follow others (see docs/after.md).
"""

from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Protocol, Unpack

from dutiful.errors import ConfigError, JobNotFound, WrongState
from dutiful.handle import Desk, Job, in_thread
from dutiful.job import JobId, Progress, State
from dutiful.link import Link
from dutiful.sending import SendOptions
from dutiful.store.special import groups

_PAGE_JOBS = 1000


class FlowSender(Protocol):
    """A worker, as far as flows need it."""

    def store_group(self, group: "Group") -> "GroupJob":
        """Store a group."""
        ...

    async def astore_group(self, group: "Group") -> "GroupJob":
        """Do so without blocking the event loop."""
        ...

    def store_chain(self, chain: "Chain") -> "ChainJob":
        """Store a chain."""
        ...


class Group:
    """
    Many jobs, its members, and one when all have completed: `Group(payloads, then=…).send(worker)`.

    Args:
        payloads: Those of the members, of any number; read as they are stored, a thousand at a time.
        then: The payload of the callback, which finds the members' results in `ctx.after`, in their
            order; or a Link, which has options too. Its `on_dead` says what happens if a member does not
            complete: "cancel" the callback (default), "run" it all the same, or "wait" until the
            member is run again by hand.
        options: Those of `worker.send`, for each member; not `unique` and `transaction`.

    Raises:
        ConfigError: That cannot be a callback.
    """

    def __init__(
        self,
        payloads: "Iterable[object] | AsyncIterable[object]",
        *,
        then: object,
        **options: Unpack[SendOptions],
    ) -> None:
        if isinstance(then, Group | Chain):
            raise ConfigError(
                f"then= is a {type(then).__name__}; the callback of a Group is one job. "
                "To go on from there, write Chain(Group(…, then=…), …)."
            )
        self.payloads = payloads
        self.then = then if isinstance(then, Link) else Link(then)
        self.options = options

    def send(self, worker: FlowSender) -> "GroupJob":
        """
        Store the members and the callback; when this returns, all of it is on disk.

        Up to a thousand members are one commit with the callback. More are stored a thousand a commit, or
        what has come within a second, and may run from then on; the callback never does before all of
        them are there. If the process dies meanwhile, the members that are stored run, and the callback
        is dead an hour later, with the error NeverSent.

        Returns:
            The callback's job, which knows its members.

        Raises:
            GroupGone: The group was cancelled meanwhile.
            As `worker.send_many`. `error.stored` members are stored, and run; the callback is cancelled.
        """
        return worker.store_group(self)

    async def asend(self, worker: FlowSender) -> "GroupJob":
        """`send`, without blocking the event loop; payloads may come asynchronously."""
        return await worker.astore_group(self)


class Chain:
    """
    Jobs one after the other: `Chain(first, second, third).send(worker)`.

    Each runs when the one before has completed, whose result is `ctx.after[0]`.

    Args:
        links: Payloads; Links, which have options too; Groups, after whose callback it goes on.
        options: Those of `worker.send`, for each link that has none of its own, but not for what is
            inside of a Group; not `unique` and `transaction`. `after` is for the first.

    Raises:
        ConfigError: It has no links.
    """

    def __init__(self, *links: object, **options: Unpack[SendOptions]) -> None:
        if not links:
            raise ConfigError("a Chain without links is nothing to send; give it payloads.")
        self.links = links
        self.options = options

    def send(self, worker: FlowSender) -> "ChainJob":
        """
        Store all of it in one commit; when this returns, it is on disk.

        Returns:
            The last link's job, which knows the others.

        Raises:
            ConfigError: It has more than 10,000 jobs. As `worker.send`. Nothing was stored.
        """
        return worker.store_chain(self)

    async def asend(self, worker: FlowSender) -> "ChainJob":
        """`send`, without blocking the event loop."""
        return await in_thread(worker.store_chain, self)


class GroupJob(Job):
    """The callback of a group: a Job, which knows the members."""

    __slots__ = ()

    @property
    def progress(self) -> Progress:
        """
        How many members have finished, of how many; the total is None while they are being sent.

        Read from one row, however many they are. With `on_dead="wait"`, one that is dead is not done.

        Raises:
            JobNotFound: The callback was deleted, or finished and pruned.
        """
        with self._desk.opened().sql_look() as look:
            found = groups.progress(look, self.id)
        if found is None:
            raise JobNotFound(self.id)
        return Progress(*found)

    @property
    def members(self) -> Iterator[Job]:
        """The members, in the order sent, read from the store a page at a time."""
        return (Job(self._desk, job_id) for page in self._pages() for job_id in page)

    def cancel(self) -> None:
        """
        End the callback, and all members that have not finished: those that run as `Job.cancel` says.

        Raises:
            WrongState: All have finished. JobNotFound: The callback is gone.
        """
        store = self._desk.opened()
        done = store.edit([self.id], "cancel")  # first, so that it does not run for the members' end
        for page in self._pages(unfinished=True):
            done += store.edit(page, "cancel")
        if not done:
            raise WrongState(
                self.id, "cancel", self.refresh().state, (State.PENDING, State.BLOCKED, State.RUNNING)
            )
        store.ring()
        self._desk.nudge()

    def _pages(self, *, unfinished: bool = False) -> Iterator[list[JobId]]:
        page, is_more = [groups.BEFORE_ALL], True
        while is_more:
            with self._desk.opened().sql_look() as look:
                page = groups.members(look, self.id, page[-1], _PAGE_JOBS, unfinished=unfinished)
            yield page
            is_more = len(page) == _PAGE_JOBS


class ChainJob(Job):
    """
    The last job of a chain: a Job, which knows the others.

    Attributes:
        links: The jobs of all links, in order; of a Group, the callback's.
    """

    __slots__ = ("links",)

    def __init__(self, desk: Desk, links: tuple[Job, ...]) -> None:
        super().__init__(desk, links[-1].id)
        self.links = links

    def cancel(self) -> None:
        """
        End all links that have not finished: those that run as `Job.cancel` says.

        Raises:
            WrongState: All have finished. JobNotFound: The last one is gone.
        """
        are_over = True
        for link in reversed(self.links):  # so that none runs for the end of the one before
            with suppress(WrongState, JobNotFound):
                link.cancel()
                are_over = False
        if are_over:
            super().cancel()  # says why not


def merged(options: Mapping[str, Any], own: Mapping[str, Any]) -> SendOptions:
    """Return a link's own options, and those of its chain that it has not."""
    return SendOptions(**{**options, **own})  # type: ignore[typeddict-item]  # they are checked when it is sent
