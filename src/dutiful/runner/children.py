"""What an attempt in a child process came to, as a Result."""

from collections.abc import Callable
from typing import Any, NamedTuple

from dutiful.config import Config
from dutiful.core.retry import Retry
from dutiful.errors import LeaseLost, NotDecodable
from dutiful.handler import Entry
from dutiful.job import (
    Cancel,
    Claim,
    Completed,
    Discard,
    ErrorInfo,
    Interrupted,
    Result,
    Snooze,
)
from dutiful.payload import decode_plain
from dutiful.runner import messages
from dutiful.runner.failure import checked, crashed, failed, timed_out
from dutiful.runner.processes import ChildPool


class Ran(NamedTuple):
    """
    What an attempt in a child came to.

    Attributes:
        result: What is written of it.
        unencodable: Why its value was not kept, if so.
        error: What middleware is told of an end that the handler did not choose.
    """

    result: Result
    unencodable: str | None = None
    error: BaseException | None = None


def run_in_child(
    pool: ChildPool,
    claim: Claim,
    entry: Entry,
    ref: messages.HandlerRef,
    config: Config,
    retry: Retry,
) -> Ran:
    """Run an attempt in a child process."""
    job = messages.ChildJob(
        claim.id, claim.attempt, claim.task, claim.queue, claim.payload or "", config.result_bytes_max
    )
    outcome = pool.run(ref, job, timeout_s=entry.timeout_s)
    match outcome:
        case messages.Returned(value, unencodable):
            return Ran(Completed(value), unencodable)
        case messages.Raised(exception, error):
            return Ran(_raised(claim, exception, error, retry), error=exception)
        case messages.Died(description):
            verb = "was " if description.startswith("killed") else ""
            result = crashed(f"its child process {verb}{description}")
            return Ran(result, error=RuntimeError(f"its child process {verb}{description}"))
        case messages.Killed(reason):
            why = TimeoutError("out of time") if reason == "timeout" else LeaseLost(claim.id)
            return Ran(_killed(claim, reason, entry, retry), error=why)
        case _:
            return _steered(claim, outcome, retry)


def run_around_child(
    around: Callable[[Callable[..., Any]], Callable[..., Any]],
    run: Callable[[], Ran],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    of_end: Callable[[object, BaseException | None], Result],
) -> Ran:
    """
    Run an attempt in a child process, with middleware around the wait for it.

    Args:
        around: Puts it around a function.
        run: Runs the attempt.
        args: What the handler is called with, as the middleware sees it.
        kwargs: That by name.
        of_end: The result of what the middleware made of it: a value, or an error.
    """
    came: Ran | None = None
    given: object = None

    def call(*_args: Any, **_kwargs: Any) -> object:
        nonlocal came, given
        came = run()
        if came.error is not None:
            raise came.error
        if isinstance(came.result, Completed):
            given = None if came.result.value is None else decode_plain(came.result.value)
        else:
            given = came.result
        return given

    try:
        value = around(call)(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  # SystemExit too is the middleware's, not ours
        return came if came is not None and error is came.error else Ran(of_end(None, error))
    # Its own, as it was stored: a value that cannot be kept has been told already.
    return came if came is not None and came.error is None and value is given else Ran(of_end(value, None))


def _raised(claim: Claim, exception: BaseException, error: ErrorInfo, retry: Retry) -> Result:
    if isinstance(exception, NotDecodable):
        return Discard(str(exception))
    return failed(claim, exception, retry, error)


def _steered(claim: Claim, value: Snooze | Cancel | Discard, retry: Retry) -> Ran:
    try:
        return Ran(checked(value))
    except ValueError as error:
        return Ran(failed(claim, error, retry), error=error)


def _killed(claim: Claim, reason: messages.Reason, entry: Entry, retry: Retry) -> Result:
    if reason == "cancel":
        return Cancel("cancelled while it ran")
    if reason == "stop":
        return Interrupted()
    return timed_out(claim, entry.timeout_s, retry)
