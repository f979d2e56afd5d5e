"""
Which of the jobs that were found are taken, when queues take turns or old jobs have a share.

What stores share; the usual case, one line by priority, is theirs, and does not come here.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct, field

from dutiful.core.turns import Turns
from dutiful.job import Claim


class Found(Struct):
    """What was found of a queue: suspects, jobs that have waited long, and the others, each in order."""

    suspects: list[Claim] = field(default_factory=list[Claim])
    aged: list[Claim] = field(default_factory=list[Claim])
    others: list[Claim] = field(default_factory=list[Claim])


class Chosen(Struct):
    """What is taken: how many of it because they are old, and whose turn it is then; and if that is all."""

    claims: list[Claim]
    aged: int
    turns: Turns | None
    is_all: bool


def choose(
    found: Mapping[str, Found], turns: Turns | None, *, limit: int, suspects: int, aged: int
) -> Chosen:
    """Choose at most `limit`: suspects first, at most `suspects`, then old ones, then the others."""
    guilty = sorted((claim for each in found.values() for claim in each.suspects), key=urgency)
    chosen = guilty[: min(suspects, limit)]
    old, others = _apart(found)
    count = len(guilty) + sum(map(len, old.values())) + sum(map(len, others.values()))
    room = limit - len(chosen)
    if turns is None:
        first = sorted((claim for claims in old.values() for claim in claims), key=age)
        rest = sorted(
            [*(claim for claims in others.values() for claim in claims), *first[aged:]], key=urgency
        )
        chosen += (first[:aged] + rest)[:room]
        had = min(len(first), aged, room)
    else:
        # Of each queue at most so many: its other old ones have no precedence.
        surplus = {queue: claims[aged:] for queue, claims in old.items()}
        old = {queue: claims[:aged] for queue, claims in old.items()}
        lines = {queue: old[queue] + _merged(others[queue], surplus[queue]) for queue in found}
        order, turns = turns.pick({queue: len(line) for queue, line in lines.items()}, room)
        chosen += _in_turn(lines, order)
        had = sum(min(order.count(queue), len(claims)) for queue, claims in old.items() if claims)
    return Chosen(chosen, had, turns, len(chosen) == count)


def _apart(found: Mapping[str, Found]) -> tuple[dict[str, list[Claim]], dict[str, list[Claim]]]:
    """Return the old ones and the others by queue; an old one may have been found as another, too."""
    old = {queue: each.aged for queue, each in found.items()}
    ids = {claim.id for claims in old.values() for claim in claims}
    if not ids:
        return old, {queue: each.others for queue, each in found.items()}
    others = {queue: [claim for claim in each.others if claim.id not in ids] for queue, each in found.items()}
    return old, others


def _merged(others: list[Claim], surplus: list[Claim]) -> list[Claim]:
    return sorted([*others, *surplus], key=urgency) if surplus else others


def _in_turn(lines: Mapping[str, Sequence[Claim]], order: Sequence[str]) -> list[Claim]:
    heads = {queue: iter(line) for queue, line in lines.items()}
    return [next(heads[queue]) for queue in order]


def urgency(claim: Claim) -> tuple[int, int, int]:
    """Sort by this for the most urgent first."""
    return (-claim.priority, claim.due_at, claim.id)


def age(claim: Claim) -> tuple[int, int]:
    """Sort by this for the one first that has been due longest."""
    return (claim.due_at, claim.id)
