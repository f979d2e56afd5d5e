"""What a special job carries for its worker: the column `extra`."""

import msgspec
from msgspec import Struct, field

from dutiful.store.contract import Special


class Extra(Struct, frozen=True, omit_defaults=True):
    """
    Written with the job, read by whoever runs it.

    Args:
        deadline_at: When all attempts together end, in ms by the store's clock.
        left_s: Filled in at the claim: seconds until then.
        key_skips: While it waits for a retry, the next of its key may run.
        frees_at_start: Its unique key stands in nobody's way once it has started.
        follows: It has waited for other jobs (`after`), or for those of a group.
        members: How many those of its group are; -1: they are not all there yet.
        on_dead: What becomes of it when one of those did not complete.
        headers: What travels with the job.
    """

    deadline_at: int | None = None
    left_s: float | None = None
    key_skips: bool = False
    frees_at_start: bool = False
    follows: bool = False
    members: int | None = None
    on_dead: str = "cancel"
    headers: dict[str, str] = field(default_factory=dict[str, str])


_decode = msgspec.json.Decoder(Extra).decode
_encode = msgspec.json.Encoder().encode


def read(text: str) -> Extra:
    """Return what was written."""
    return _decode(text)


def write(extra: Extra) -> str:
    """Return the text to store."""
    return _encode(extra).decode()


def of(special: Special, now: int) -> Extra:
    """Return what a new job carries."""
    unique = special.unique
    return Extra(
        deadline_at=None if special.deadline_s is None else now + round(special.deadline_s * 1000),
        key_skips=special.key_skips,
        frees_at_start=unique is not None and "running" not in unique.states,
        follows=bool(special.after) or special.gathers,
        members=-1 if special.gathers else None,
        on_dead=special.on_dead,
        headers=special.headers,
    )
