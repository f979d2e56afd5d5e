"""What a sender or a handler may ask for a job, beyond its task, queue, priority and time."""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, cast

import msgspec

from dutiful.core.values import NOTHING_STORED, is_text, span_s, text, whole
from dutiful.errors import ConfigError
from dutiful.job import JobId, State
from dutiful.payload import check_name
from dutiful.store.contract import Special
from dutiful.store.contract import Unique as StoredUnique

KEY_CHARS_MAX = 200
POOL_CHARS_MAX = 1000
AFTER_JOBS_MAX = 1_000_000

_UNFINISHED = (State.PENDING, State.BLOCKED, State.RUNNING)
_STATES = {
    "waiting": (State.PENDING, State.BLOCKED),
    "unfinished": _UNFINISHED,
    "stored": tuple(State),
}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(\d*)\s*(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass(frozen=True, slots=True)
class Unique:
    """
    At most one such job: `send(…, unique=True)`, or `unique=Unique(…)` for other rules.

    A unique index of the store decides, so that no two senders can be first.

    Args:
        by: From the payload to what makes it the same job: any text or number. Default: the
            whole payload. Jobs of different tasks are never the same.
        within: Seconds (or a timedelta) for which an earlier one counts, whatever became of it.
        while_: Without `within`: an earlier one counts while it is "waiting", "unfinished" (it
            waits or runs), or "stored" (finished ones count until they are pruned).
            Default: "unfinished", or, if something is to be replaced, "waiting".
        on_conflict: "return" the earlier job; "replace" its payload, or its payload and its time
            ("reschedule": that is a debounce), if it still waits; or "raise" DuplicateJob.

    Raises:
        ConfigError: A value is none of these.
    """

    by: Callable[[Any], object] | None = None
    within: float | timedelta | None = None
    while_: Literal["waiting", "unfinished", "stored"] | None = None
    on_conflict: Literal["return", "replace", "reschedule", "raise"] = "return"

    def __post_init__(self) -> None:
        _one_of("while_", self.while_, (None, *_STATES))
        _one_of("on_conflict", self.on_conflict, ("return", "replace", "reschedule", "raise"))
        _function("Unique(by=)", self.by)
        if self.within is not None:
            span_s("within", self.within)

    def stored(
        self, task: str, payload: object, json: str, digest: Callable[[str], str] | None = None
    ) -> StoredUnique:
        """
        Return what the store is asked for this payload, of which `json` is the text.

        `digest` is the hash to use: one with a key, where payloads are encrypted.
        """
        made = json if self.by is None else _made_by(self.by, payload)
        replaces = self.on_conflict in ("replace", "reschedule")
        while_ = self.while_ or ("waiting" if replaces else "unfinished")
        hashed = (digest or _sha256)(f"{task}\n{made}")[:32]
        within_s = None if self.within is None else span_s("within", self.within)
        return StoredUnique(f"{task}:{hashed}", _STATES[while_], within_s, self.on_conflict)


@dataclass(frozen=True, slots=True)
class Limit:
    """
    How many jobs of a task may run at once, or begin in a time, over all workers together.

    Args:
        concurrency: So many at once; None: no bound.
        rate: So many in a time, as "100/m", "5/s" or "1/10s": smoothly, one after the other.
        burst: So many of a rate may begin at once after a rest.
        by: From the payload to a text: the limit holds for each text on its own.
        name: Handlers with limits of the same name share it. Default: the task.

    Raises:
        ConfigError: A value is out of range; or there is neither concurrency nor rate.
    """

    concurrency: int | None = None
    rate: str | None = None
    burst: int = 1
    by: Callable[[Any], str] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.concurrency is None and self.rate is None:
            raise ConfigError("a Limit without concurrency= and rate= limits nothing; give one of them.")
        hint = "Such a Limit is not made."
        if self.concurrency is not None:
            whole("Limit(concurrency=)", self.concurrency, 1, unchanged=hint)
        whole("Limit(burst=)", self.burst, 1, unchanged=hint)
        _function("Limit(by=)", self.by)
        if self.name is not None:
            text("Limit(name=)", self.name, chars_max=KEY_CHARS_MAX, unchanged=hint)
        _ = self.per_s

    @property
    def per_s(self) -> float:
        """The rate as starts per second; 0 for none."""
        if self.rate is None:
            return 0.0
        found = _RATE.fullmatch(self.rate.strip()) if isinstance(cast("object", self.rate), str) else None
        if found is None or float(found[1]) <= 0 or (found[2] and int(found[2]) == 0):
            raise ConfigError(f'Limit(rate={self.rate!r}); write it as "100/m", "5/s" or "1/10s".')
        return float(found[1]) / (float(found[2] or 1) * _SECONDS[found[3]])

    def pool(self, task: str, payload: object) -> str:
        """Return the name that the limit of this job has in the store."""
        name = self.name or task
        if self.by is None:
            return name
        return text("what Limit(by=) made", f"{name}:{self.by(payload)}", chars_max=POOL_CHARS_MAX)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class HasId(Protocol):
    """A job, as far as others can wait for it."""

    id: JobId


class Asking:
    """The checked options of one `send` that make its jobs special."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._key: str | Callable[[Any], str | None] | None = options.get("key")
        unique = options.get("unique")
        self._unique = Unique() if unique is True else unique or None
        if self._unique is not None and not isinstance(self._unique, Unique):
            raise ConfigError(f"unique is {unique!r}; it must be True or a Unique. Nothing was stored.")
        self._expires_s, self._expires_at = _expiry(options.get("expires"))
        deadline = options.get("deadline")
        self._deadline_s = None if deadline is None else span_s("deadline", deadline)
        self.after = _ids(options.get("after"))
        self._on_dead: Any = options.get("on_dead", "cancel")
        _one_of("on_dead", self._on_dead, ("cancel", "run", "wait"))
        self._on_failure = options.get("on_failure", "hold")
        _one_of("on_failure", self._on_failure, ("hold", "skip"))
        self._headers = _headers(options.get("headers"))

    @property
    def headers_bytes(self) -> int:
        """How many bytes the headers have as they are stored."""
        return len(msgspec.json.encode(self._headers)) if self._headers else 0

    @property
    def is_unique(self) -> bool:
        """Whether each payload is one of a kind."""
        return self._unique is not None

    def special(
        self,
        task: str,
        payload: object,
        json: str,
        limit: Limit | None,
        digest: Callable[[str], str] | None = None,
    ) -> Special:
        """Return what is stored beside this payload, of which `json` is the text; `digest` as of Unique."""
        key = self._key(payload) if callable(self._key) else self._key
        return Special(
            expires_s=self._expires_s,
            expires_at=self._expires_at,
            deadline_s=self._deadline_s,
            key=None if key is None else text("key", key, chars_max=KEY_CHARS_MAX),
            key_skips=self._on_failure == "skip",
            pool=None if limit is None else limit.pool(task, payload),
            pool_size=0 if limit is None else limit.concurrency or 0,
            per_s=0.0 if limit is None else limit.per_s,
            burst=1 if limit is None else limit.burst,
            unique=None if self._unique is None else self._unique.stored(task, payload, json, digest),
            after=self.after,
            on_dead=self._on_dead,
            headers=self._headers,
        )


NAMES = frozenset({"key", "unique", "expires", "deadline", "after", "on_dead", "on_failure", "headers"})


def _expiry(expires: object) -> tuple[float | None, int | None]:
    if expires is None:
        return None, None
    if isinstance(expires, datetime):
        if expires.tzinfo is None:
            raise ConfigError(f"expires is {expires!r}, without a time zone. Nothing was stored.")
        return None, round(expires.timestamp() * 1000)
    return span_s("expires", expires), None


def _function(name: str, by: object) -> None:
    if by is not None and not callable(by):
        raise ConfigError(f"{name} is {by!r}; it must be a function of the payload. {NOTHING_STORED}")


def _made_by(by: Callable[[Any], object], payload: object) -> str:
    made = by(payload)
    try:
        return msgspec.json.encode(made).decode()
    except Exception as error:  # half a surrogate pair, or what has no JSON
        raise ConfigError(
            f"what Unique(by=) made is {made!r:.300}; it must be text or a number ({error}). {NOTHING_STORED}"
        ) from error


def id_of(job: object, name: str = "the id of a job", unchanged: str = "Nothing was changed.") -> JobId:
    """
    Return the id of a job, or an id as it is.

    Raises:
        ConfigError: It is neither.
    """
    return whole(name, getattr(job, "id", job), 1, unchanged=unchanged)


def ids_of(name: str, jobs: Any, unchanged: str = "Nothing was changed.") -> list[JobId]:
    """
    Return the ids of jobs, which may be ids already; of several, or one.

    Raises:
        ConfigError: One is neither; `name` says of what.
    """
    if isinstance(jobs, str | bytes):
        raise ConfigError(f"{name} got {jobs!r:.300}; it takes jobs, or their ids. {unchanged}")
    given: Iterable[object] = jobs if hasattr(jobs, "__iter__") else [jobs]
    each = f"a job of {name}"
    return [id_of(job, each, unchanged) for job in given]


def _ids(after: Any) -> tuple[JobId, ...]:
    if after is None:
        return ()
    ids = tuple(dict.fromkeys(ids_of("after", after, NOTHING_STORED)))
    if len(ids) > AFTER_JOBS_MAX:
        raise ConfigError(
            f"after has {len(ids)} jobs; it can have {AFTER_JOBS_MAX} at most. {NOTHING_STORED}"
        )
    return ids


def _headers(headers: Any) -> dict[str, str]:
    if headers is None:
        return {}
    given: dict[Any, Any] = dict(headers) if hasattr(headers, "items") else {None: headers}
    if not all(is_text(name) and is_text(value) for name, value in given.items()):
        raise ConfigError(
            f"headers is {headers!r:.300}; it must be texts by name, with no NUL and no half of a surrogate "
            f"pair. {NOTHING_STORED}"
        )
    for name in given:
        check_name(name, "header")
    return given


def _one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    if value not in allowed:
        names = ", ".join(repr(each) for each in allowed)
        raise ConfigError(f"{name} is {value!r}; it must be one of {names}. Nothing was stored.")


NOTHING = Asking({})
