"""What an attempt in a child process came to: an end for each of its jobs."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from dutiful.core.retry import Retry
from dutiful.errors import LeaseLost, NotDecodable
from dutiful.job import Cancel, Claim, Completed, Discard, ErrorInfo, Interrupted, Result, Snooze
from dutiful.payload import decode_plain
from dutiful.runner import messages
from dutiful.runner.attempt import Attempt
from dutiful.runner.failure import checked, crashed, failed, timed_out
from dutiful.runner.processes import ChildPool
from dutiful.versions import task_of

# A job's headers, and the results of those it waited for.
Asked: TypeAlias = tuple[dict[str, str], tuple[Any, ...]]


class End(NamedTuple):
    """
    What one job came to.

    Attributes:
        result: What is written of it.
        unencodable: Why its value was not kept, if so.
        error: What middleware is told of an end that the handler did not choose.
    """

    result: Result
    unencodable: str | None = None
    error: BaseException | None = None

    @property
    def value(self) -> object:
        """What the handler answered, as plain values."""
        if self.error is not None:
            return self.error
        if not isinstance(self.result, Completed):
            return self.result
        return None if self.result.value is None else decode_plain(self.result.value)


class Came(NamedTuple):
    """
    What an attempt came to.

    Attributes:
        ends: Of its jobs, in their order.
        error: What the handler's call as a whole ended with; None: it returned.
    """

    ends: list[End]
    error: BaseException | None = None


def run_in_child(
    pool: ChildPool,
    attempt: Attempt,
    ref: messages.HandlerRef,
    result_bytes_max: int,
    retry: Retry,
    asked: Sequence[Asked],
) -> Came:
    """Run an attempt in a child process."""
    jobs = [
        messages.ChildJob(
            claim.id, claim.attempt, task_of(claim.task), claim.queue, text, result_bytes_max, headers, after
        )
        for claim, text, (headers, after) in zip(attempt.claims, attempt.texts, asked, strict=True)
    ]
    job = jobs[0] if attempt.entry.batch is None else messages.ChildBatch(jobs[0].id, tuple(jobs))
    outcome = pool.run(ref, job, timeout_s=attempt.timeout_s)
    if isinstance(outcome, messages.Together):
        pairs = zip(attempt.claims, outcome.answers, strict=True)
        return Came([_end(claim, messages.received(each), attempt, retry) for claim, each in pairs])
    ends = [_end(claim, outcome, attempt, retry) for claim in attempt.claims]
    return Came(ends, ends[0].error)


def run_around_child(
    around: Callable[[Callable[..., Any]], Callable[..., Any]],
    run: Callable[[], Came],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    of_end: Callable[[object, BaseException | None], Sequence[Result]],
    *,
    is_batch: bool,
) -> list[End]:
    """
    Run an attempt in a child process, with middleware around the wait for it.

    Args:
        around: Puts it around a function.
        run: Runs the attempt.
        args: What the handler is called with, as the middleware sees it.
        kwargs: That by name.
        of_end: The results of what the middleware made of it: a value, or an error.
        is_batch: Whether the handler answers with a list.
    """
    came: Came | None = None
    given: object = None

    def call(*_args: Any, **_kwargs: Any) -> object:
        nonlocal came, given
        came = run()
        if came.error is not None:
            raise came.error
        given = [end.value for end in came.ends] if is_batch else came.ends[0].value
        return given

    try:
        value = around(call)(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  # SystemExit too is the middleware's, not ours
        if came is not None and error is came.error:
            return came.ends
        return [End(result) for result in of_end(None, error)]
    # Its own, as it was stored: a value that cannot be kept has been told already.
    if came is not None and came.error is None and value is given:
        return came.ends
    return [End(result) for result in of_end(value, None)]


def _end(claim: Claim, outcome: messages.Outcome, attempt: Attempt, retry: Retry) -> End:
    match outcome:
        case messages.Returned(value, unencodable):
            return End(Completed(value), unencodable)
        case messages.Raised(exception, error):
            return End(_raised(claim, exception, error, retry), error=exception)
        case messages.Died(description):
            said = f"its child process {'was ' if description.startswith('killed') else ''}{description}"
            return End(crashed(said), error=RuntimeError(said))
        case messages.Killed(reason):
            why = TimeoutError("out of time") if reason == "timeout" else LeaseLost(claim.id)
            return End(_killed(claim, reason, attempt.timeout_s, retry), error=why)
        case messages.Together():
            raise AssertionError("one job has one answer")
        case _:
            return _steered(claim, outcome, retry)


def _raised(claim: Claim, exception: BaseException, error: ErrorInfo, retry: Retry) -> Result:
    if isinstance(exception, NotDecodable):
        return Discard(str(exception))
    return failed(claim, exception, retry, error)


def _steered(claim: Claim, value: Snooze | Cancel | Discard, retry: Retry) -> End:
    try:
        return End(checked(value))
    except ValueError as error:
        return End(failed(claim, error, retry), error=error)


def _killed(claim: Claim, reason: messages.Reason, timeout_s: float | None, retry: Retry) -> Result:
    if reason == "cancel":
        return Cancel("cancelled while it ran")
    if reason == "stop":
        return Interrupted()
    return timed_out(claim, timeout_s, retry)
