"""One frozen Config: every default once, each checked once, with its reason."""

from dataclasses import dataclass, field
from typing import Literal

from dutiful.core.retry import Retry
from dutiful.core.turns import Turns
from dutiful.core.values import DELAY_S_MAX, number, whole
from dutiful.errors import ConfigError
from dutiful.payload import check_name
from dutiful.sealing import Keyring

MIB = 1024 * 1024
DAY_S = 86_400.0
_HINT = "Nothing was changed."
_KEEP = "See keep_completed."
CONCURRENCY_MAX = 4096  # marks of running jobs in a worker's lock file (store/liveness.py)


@dataclass(frozen=True, slots=True)
class Keep:
    """
    How long completed (and cancelled) jobs stay in the store.

    Args:
        count: At most this many; the newest stay. 0 keeps none.
        age_s: At most this long, in seconds.
    """

    count: int = 10_000
    age_s: float = DAY_S

    def __post_init__(self) -> None:
        whole("Keep(count=)", self.count, 0, unchanged=_KEEP)
        wanted = "seconds, 0 or more, and a century at most"
        number("Keep(age_s=)", self.age_s, 0, DELAY_S_MAX, wanted=wanted, unchanged=_KEEP)


@dataclass(frozen=True, slots=True)
class Config:
    """
    The settings of one worker. `Worker(...)` takes them as keywords.

    Args:
        name: What this worker is called in logs and in a job's history.
        queues: The queues that it takes jobs from.
        turns: How those take turns; None: they are one line, by priority.
        age_s: Seconds after which due jobs get a share of the starts whatever their priority; None: never.
        concurrency: Handlers that run at once, of all kinds together; 1 keeps order.
        buffer: Bound on unfinished jobs in the store, or None for no bound.
        retry: The policy of handlers that have none of their own.
        durability: "full": `send` returns when the job is on disk. "normal": a
            power cut may lose the last moments' jobs; a crash of the process does not.
        keep_completed: How many finished jobs stay to be looked at, and how long.
        max_crashes: Deaths of the process in a row after which a running job is dead.
        grace_s: Seconds that `stop()` gives to running handlers.
        busy_s: Seconds to wait for another process's or connection's write lock.
        park_s: Seconds after which a job of an unknown task is looked at again.
        lease_s: Seconds after which a stuck thread's job is given to another attempt,
            and a worker whose lock file is gone counts as dead.
        payload_bytes_max: Largest payload, as JSON.
        result_bytes_max: Largest result, as JSON.
        keyring: What encrypts what is stored; None: nothing does.
    """

    name: str = "worker"
    queues: tuple[str, ...] = ("default",)
    turns: Turns | None = None
    age_s: float | None = 300.0
    concurrency: int = 8
    buffer: int | None = None
    retry: Retry = field(default_factory=Retry)
    durability: Literal["full", "normal"] = "full"
    keep_completed: Keep = field(default_factory=Keep)
    max_crashes: int = 3
    grace_s: float = 30.0
    busy_s: float = 10.0
    park_s: float = 60.0
    lease_s: float = 60.0
    payload_bytes_max: int = MIB
    result_bytes_max: int = MIB
    keyring: Keyring | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_name(self.name, "worker name")
        if isinstance(self.queues, str) or not self.queues:
            raise ConfigError(f"queues is {self.queues!r}; it must name one or more, as a tuple.")
        if not isinstance(self.retry, Retry):
            raise ConfigError(f"retry is {self.retry!r}; it must be a Retry.")
        for queue in self.queues:
            check_name(queue, "queue")
        whole("concurrency", self.concurrency, 1, CONCURRENCY_MAX, unchanged=_HINT)
        for name in ("max_crashes", "payload_bytes_max", "result_bytes_max"):
            whole(name, getattr(self, name), 1, unchanged=_HINT)
        number("grace_s", self.grace_s, 0, wanted="seconds, 0 or more", unchanged=_HINT)
        for name in ("busy_s", "park_s", "lease_s"):
            wanted = "seconds, 0 or more, and a century at most"
            number(name, getattr(self, name), 0, DELAY_S_MAX, wanted=wanted, unchanged=_HINT)
        if self.age_s is not None:
            number("age_s", self.age_s, 0, wanted="seconds, 0 or more, or None", unchanged=_HINT)
        if self.buffer is not None:
            whole("buffer", self.buffer, 1, unchanged=_HINT)
        if self.durability not in ("full", "normal"):
            raise ConfigError(f'durability is {self.durability!r}; it must be "full" or "normal".')


def keep(setting: Keep | int | bool | None) -> Keep:
    """Read `keep_completed=`: a Keep, a count, False for none, None or True for the default."""
    if isinstance(setting, Keep):
        return setting
    if setting is None or setting is True:
        return Keep()
    if not isinstance(setting, int):
        raise ConfigError(f"keep_completed is {setting!r}; it must be a Keep, a count, True or False.")
    return Keep(count=int(setting))
