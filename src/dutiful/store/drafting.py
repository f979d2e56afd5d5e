"""What stores share in a step: drafts cut and joined, and what an outcome tells of them."""

from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from dutiful.crashpoint import crashpoint
from dutiful.job import JobId, State
from dutiful.store.contract import Draft, Outcome, Take, Work


def may_hand(draft: Draft, wish: Take) -> bool:
    """Return whether a draft's jobs may be stored as claimed by `wish`."""
    return (
        wish.handoff
        and draft.special is None  # its gates are in the store
        and draft.due_at_once
        and draft.queue in wish.queues
        and draft.task not in wish.skip
        and (wish.known is None or draft.task in wish.known)
    )


def fitting(work: Work, room: int) -> list[Draft]:
    """Return as much of the drafts as there is room for, in order; of those that are bound, all or none."""
    fitting: list[Draft] = []
    for run in _runs(work.drafts):
        count = jobs_in(run)
        if count <= room or len(fitting) < work.exempt:
            fitting += run
        else:
            fitting += [part(draft, 0, max(room, 0) if len(run) == 1 else 0) for draft in run]
        room -= count
    return fitting


def _runs(drafts: Sequence[Draft]) -> Iterator[Sequence[Draft]]:
    """Split drafts into those that are stored together or not at all."""
    start = 0
    for at in range(1, len(drafts) + 1):
        if at == len(drafts) or not drafts[at].bound:
            yield drafts[start:at]
            start = at


def standing(drafts: Sequence[Draft], late: Sequence[tuple[JobId, int]]) -> Sequence[Draft]:
    """Return the drafts, empty those that depend on an ack which came too late."""
    if not late or all(draft.only_if is None for draft in drafts):
        return drafts
    return [part(draft, 0, 0) if draft.only_if in late else draft for draft in drafts]


def is_plain(draft: Draft) -> bool:
    """Return whether a draft asks for nothing beyond task, queue, priority and time."""
    return draft.special is None and draft.only_if is None


def has_key(drafts: Sequence[Draft]) -> bool:
    """
    Return whether any of them has a key, whose jobs run in the order of their ids.

    Then the ids have to be the newest: those that a process has at hand are older than others', who may have
    sent before.
    """
    return any(draft.special is not None and draft.special.key is not None for draft in drafts)


def jobs_in(drafts: Sequence[Draft]) -> int:
    """Return how many jobs they are."""
    return sum(len(draft.payloads) for draft in drafts)


def ranges(drafts: Sequence[Draft], first: JobId) -> list[range]:
    """Return the ids of each draft, if they are given in a row."""
    ranges: list[range] = []
    for draft in drafts:
        ranges.append(range(first, first + len(draft.payloads)))
        first += len(draft.payloads)
    return ranges


def part(draft: Draft, start: int, stop: int) -> Draft:
    """Return the jobs of a draft from `start` to `stop`."""
    if start == 0 and stop == len(draft.payloads):
        return draft
    return replace(draft, payloads=draft.payloads[start:stop])


def alike(one: Draft, other: Draft) -> bool:
    """Return whether two drafts differ in their payloads alone."""
    return (one.task, one.queue, one.priority, one.delay_s, one.run_at, one.special) == (
        other.task,
        other.queue,
        other.priority,
        other.delay_s,
        other.run_at,
        other.special,
    )


def joined(drafts: Sequence[Draft]) -> Draft:
    """Return one draft with the jobs of several that are alike."""
    if len(drafts) == 1:
        return drafts[0]
    first = drafts[0]
    payloads = [payload for draft in drafts for payload in draft.payloads]
    return Draft(
        first.task, first.queue, payloads, first.priority, first.delay_s, first.run_at, first.special
    )


def merged(drafts: Sequence[Draft]) -> Iterator[Draft]:
    """Join neighbours that differ in their payloads alone, so that they share a statement."""
    waiting: list[Draft] = []
    for draft in drafts:
        if waiting and not alike(waiting[0], draft):
            yield joined(waiting)
            waiting = []
        waiting.append(draft)
    if waiting:
        yield joined(waiting)


def in_order(drafts: Iterable[Draft], first: JobId) -> list[tuple[JobId, Draft]]:
    """Give each draft its first id, in order; return them with the most urgent first."""
    placed: list[tuple[JobId, Draft]] = []
    for draft in drafts:
        placed.append((first, draft))
        first += len(draft.payloads)
    return sorted(placed, key=lambda pair: -pair[1].priority)


def cleared(outcome: Outcome) -> Outcome:
    """Make an outcome as new: nothing of the step was committed, and it is done again."""
    clean = Outcome()
    for name in outcome.__struct_fields__:
        setattr(outcome, name, getattr(clean, name))
    return outcome


def note_delays(work: Work, outcome: Outcome) -> None:
    """Say when somebody has to look for what this step left waiting."""
    delays = [ack.delay_s for ack in work.acks if ack.state is State.PENDING and ack.delay_s]
    delays += [draft.delay_s for draft in work.drafts if draft.delay_s is not None]
    delays += [0.0 for draft in work.drafts if draft.run_at is not None]
    if outcome.next_delay_s is not None:
        delays.append(outcome.next_delay_s)
    outcome.next_delay_s = min(delays, default=None)
    outcome.aside_s = _aside_s(work) if delays else None
    if any(ack.state is State.PENDING and not ack.delay_s for ack in work.acks):
        outcome.left_pending = True


def _aside_s(work: Work) -> float | None:
    """Return the soonest of the delays that are a key's or a limit's to end."""
    delays = [ack.delay_s for ack in work.acks if ack.special and ack.state is State.PENDING and ack.delay_s]
    special = [draft for draft in work.drafts if draft.special is not None]
    delays += [draft.delay_s for draft in special if draft.delay_s is not None]
    delays += [0.0 for draft in special if draft.run_at is not None]
    return min(delays, default=None)


def before_commit(work: Work) -> None:
    """Pass the crash points before a step is committed."""
    if work.acks or work.completed:
        crashpoint("ack.before_commit")
    if work.drafts:
        crashpoint("send.before_commit")


def after_commit(work: Work, outcome: Outcome) -> None:
    """Pass those after it."""
    if work.acks or work.completed:
        crashpoint("ack.after_commit")
    if work.drafts:
        crashpoint("send.after_commit")
    elif outcome.claims:
        crashpoint("claim.after_commit")
