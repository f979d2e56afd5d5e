"""
Whose turn it is, of several queues: by weight, or strictly one before the other.

Pure. A queue's place in line says how much it has had beyond what is due to it; whoever has
had least is next, and each turn moves it back by its stride, the inverse of its weight. A
queue that had no work is not owed for that: when it comes back, it stands with the first.
With strides of zero nobody ever moves back: the first that has work is next, always.

Source: Goyal, Vin, Cheng, "Start-time Fair Queuing" (SIGCOMM 1996): of two queues that have
work all the time, what each has had by its weight differs by one turn of each at most.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm
from typing import Self, cast

from dutiful.errors import ConfigError

WEIGHT_MAX = 1_000_000


@dataclass(frozen=True, slots=True, init=False)
class Strict:
    """
    For `Worker(queues=…)`: take jobs of the first queue before any of the second, and so on.

    Args:
        queues: Their names, the most urgent first.

    >>> Strict("critical", "default").queues
    ('critical', 'default')
    """

    queues: tuple[str, ...]

    def __init__(self, *queues: str) -> None:
        object.__setattr__(self, "queues", queues)


@dataclass(frozen=True, slots=True)
class Turns:
    """
    The queues' places in line. A value: `pick` returns what it is afterwards.

    Args:
        strides: What a turn costs each queue, in the order in which they go first when all stand alike.
        behind: How far each is behind the first.
    """

    strides: Mapping[str, int]
    behind: Mapping[str, int]

    @classmethod
    def by_weight(cls, weights: Mapping[str, int]) -> Self:
        """
        Return turns in proportion to the weights.

        Raises:
            ConfigError: A weight is no whole number from 1 to 1,000,000.
        """
        for queue, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int) or not 1 <= weight <= WEIGHT_MAX:
                raise ConfigError(
                    f"the weight of queue {queue!r} is {weight!r}; it must be a whole number from 1 to "
                    f"{WEIGHT_MAX:,}. To take nothing of a queue, leave it out."
                )
        whole = lcm(*weights.values())
        return cls({queue: whole // weight for queue, weight in weights.items()}, dict.fromkeys(weights, 0))

    @classmethod
    def strictly(cls, queues: Sequence[str]) -> Self:
        """Return turns that always go to the first queue that has work."""
        return cls(dict.fromkeys(queues, 0), dict.fromkeys(queues, 0))

    @property
    def is_strict(self) -> bool:
        """Whether the first queue that has work always comes first."""
        return not any(self.strides.values())

    def pick(self, found: Mapping[str, int], limit: int) -> tuple[list[str], Self]:
        """
        Return the queues to take from, one for each job, and the turns afterwards.

        Args:
            found: How many jobs each queue has. A queue that is left out has none.
            limit: How many to take at most.
        """
        left = {queue: found[queue] for queue in self.strides if found.get(queue)}
        behind = dict(self.behind)
        order: list[str] = []
        first = 0
        while left and len(order) < limit:
            queue = min(left, key=behind.__getitem__)
            first = behind[queue]
            behind[queue] = first + self.strides[queue]
            order.append(queue)
            left[queue] -= 1
            if not left[queue]:
                del left[queue]
        # Counted from the first, so that the numbers stay small; and whoever had no work comes up to it.
        return order, replace(self, behind={queue: max(0, at - first) for queue, at in behind.items()})


def names(setting: str | Sequence[str] | Mapping[str, int] | Strict) -> tuple[str, ...]:
    """
    Return the queues that a `queues=` names, each once.

    Raises:
        ConfigError: It names none in any way that is known.
    """
    if isinstance(setting, str):
        return (setting,)
    if not isinstance(cast("object", setting), Iterable | Strict) or isinstance(setting, bytes):
        raise ConfigError(
            f"queues is {setting!r}; it must be a name, several, a dict of names and weights, or a Strict."
        )
    return tuple(dict.fromkeys(setting.queues if isinstance(setting, Strict) else setting))


def turns(setting: str | Sequence[str] | Mapping[str, int] | Strict) -> Turns | None:
    """
    Return the turns that a `queues=` asks for; None: all are one line.

    Raises:
        ConfigError: A weight is wrong.
    """
    if isinstance(setting, Strict):
        return Turns.strictly(names(setting))
    return Turns.by_weight(setting) if isinstance(setting, Mapping) and setting else None
