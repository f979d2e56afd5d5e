"""What a worker was sent, for assertions."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, overload

from dutiful import Record, Task, Worker
from dutiful.errors import ConfigError
from dutiful.payload import decode_plain, decoder

T = TypeVar("T")

_PAGE_JOBS = 1000
_SHOWN_MAX = 10  # payloads in a message


class Sent(list[T]):
    """
    The payloads of jobs, decoded, oldest first: a list.

    Attributes:
        records: Their jobs, in the same order.
    """

    def __init__(self, payloads: Sequence[T], records: Sequence[Record]) -> None:
        super().__init__(payloads)
        self.records = list(records)

    def one(self) -> T:
        """
        Return the only one.

        Raises:
            AssertionError: There are none, or several.
        """
        if len(self) != 1:
            raise AssertionError(f"{len(self)} jobs, not one: {_shown(self.records, list(self))}")
        return self[0]


@overload
def sent(worker: Worker, what: type[T], /, *, queue: str | None = None, **fields: object) -> Sent[T]: ...
@overload
def sent(
    worker: Worker,
    what: str | Task[..., Any, Any] | Callable[..., Any] | None = None,
    /,
    *,
    queue: str | None = None,
    **fields: object,
) -> Sent[Any]: ...
def sent(worker: Worker, what: Any = None, /, *, queue: str | None = None, **fields: object) -> Sent[Any]:
    """
    Return the payloads of the jobs in a worker's store, oldest first, whatever has become of them.

    Those that handlers have sent and that schedules have fired too.

    Args:
        worker: The worker; with several on one store, any of them.
        what: A payload type, a task's name, a `@worker.task`, or a handler. None: all.
        queue: Only those of this queue.
        **fields: Only those whose payload has these fields (or keys) with these values.

    Returns:
        A list; a payload is of its type as far as this worker knows it, and else plain JSON values.

    Raises:
        ConfigError: `what` is none of these. NotDecodable: A payload does not fit its type.
    """
    records = _stored(worker, what, queue)
    payloads = [_decoded(worker, record, what) for record in records]
    pairs = [
        (payload, record) for payload, record in zip(payloads, records, strict=True) if _fits(payload, fields)
    ]
    return Sent([payload for payload, _ in pairs], [record for _, record in pairs])


@overload
def assert_sent(
    worker: Worker, what: type[T], /, *, times: int | None = None, queue: str | None = None, **fields: object
) -> Sent[T]: ...
@overload
def assert_sent(
    worker: Worker,
    what: str | Task[..., Any, Any] | Callable[..., Any],
    /,
    *,
    times: int | None = None,
    queue: str | None = None,
    **fields: object,
) -> Sent[Any]: ...
def assert_sent(
    worker: Worker,
    what: Any,
    /,
    *,
    times: int | None = None,
    queue: str | None = None,
    **fields: object,
) -> Sent[Any]:
    """
    Return what `sent` returns, if it was sent so many times.

    Args:
        worker: As for `sent`, like the others.
        what: What should have been sent.
        times: How often; 0: never. Default: once or more.
        queue: To which queue.
        **fields: With which fields.

    Raises:
        AssertionError: It was not; the message says what was sent instead. Others as `sent`.
    """
    __tracebackhide__ = True  # pytest shows the line of the test
    found = sent(worker, what, queue=queue, **fields)
    if (len(found) != times) if times is not None else not found:
        raise AssertionError(_why(worker, what, queue, fields, len(found), times))
    return found


def _stored(worker: Worker, what: Any, queue: str | None) -> list[Record]:
    found: list[Record] = []
    for task in _tasks(worker, what):
        before: int | None = None
        while page := worker.jobs(task=task, queue=queue, before=before, limit=_PAGE_JOBS):
            found += page
            before = page[-1].id
    return sorted(found, key=lambda record: record.id)


def _tasks(worker: Worker, what: Any) -> Sequence[str | None]:
    """Return the names of the tasks that are meant; [None] for all."""
    if what is None:
        return [None]
    if isinstance(what, Task):
        return [cast("Task[..., Any, Any]", what).task]
    if isinstance(what, type | str):
        return [worker.handlers.resolve_task(what)]
    names = [task for task in worker.handlers.tasks() if _handles(worker, task, what)]
    if not names:
        raise ConfigError(
            f"{what!r} is no handler of this worker. Give a payload type, a task's name, a task or a handler."
        )
    return sorted(names)


def _handles(worker: Worker, task: str, fn: object) -> bool:
    entry = worker.handlers.entry(task)
    return entry is not None and entry.fn is fn


def _decoded(worker: Worker, record: Record, what: Any = None) -> Any:
    text = record.payload or "null"
    kind: Any = what if isinstance(what, type) else None
    if kind is None:
        entry = worker.handlers.entry(record.task)
        kind = Any if entry is None else entry.payload_type
    return decode_plain(text) if kind is Any else decoder(kind, record.task)(text)


def _fits(payload: Any, fields: dict[str, object]) -> bool:
    for name, value in fields.items():
        if isinstance(payload, dict):
            has = cast("dict[str, Any]", payload).get(name, _NOTHING)
        else:
            has = getattr(payload, name, _NOTHING)
        if has != value:
            return False
    return True


_NOTHING = object()


# --- what a failure says ----------------------------------------------------------------------------


def _why(
    worker: Worker, what: Any, queue: str | None, fields: dict[str, object], count: int, times: int | None
) -> str:
    asked = [f"{name}={value!r}" for name, value in fields.items()]
    asked += [] if queue is None else [f"queue={queue!r}"]
    names = ", ".join(str(task) for task in _tasks(worker, what))
    which = f" with {', '.join(asked)}" if asked else ""
    wanted = "once or more" if times is None else "never" if times == 0 else f"{times} times"
    lines = [f"{names} was sent {count} times{which}, and should have been {wanted}."]
    same = sent(worker, what)
    if same:
        lines.append(f"Sent of it: {_shown(same.records, same)}")
    others = Counter(
        record.task for record in _stored(worker, None, None) if record.task not in names.split(", ")
    )
    if others:
        lines.append("Others: " + ", ".join(f"{task} ({number})" for task, number in others.items()))
    elif not same:
        lines.append("Nothing was sent at all.")
    return "\n".join(lines)


def _shown(records: Sequence[Record], payloads: Sequence[Any]) -> str:
    pairs = zip(payloads[:_SHOWN_MAX], records, strict=False)
    shown = ", ".join(
        f"{payload!r} (job {record.id}, {record.state}, queue {record.queue})" for payload, record in pairs
    )
    more = len(payloads) - _SHOWN_MAX
    return f"{shown}, and {more} more" if more > 0 else shown or "none"
