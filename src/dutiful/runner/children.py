"""What an attempt in a child process came to, as a Result."""

from dutiful.config import Config
from dutiful.context import Context
from dutiful.core.retry import Retry
from dutiful.errors import NotDecodable
from dutiful.handler import Entry
from dutiful.job import Cancel, Claim, Completed, Discard, ErrorInfo, Interrupted, Result, Snooze
from dutiful.runner import messages
from dutiful.runner.failure import checked, crashed, failed, timed_out
from dutiful.runner.processes import ChildPool


def run_in_child(
    pool: ChildPool,
    claim: Claim,
    entry: Entry,
    ref: messages.HandlerRef,
    config: Config,
    retry: Retry,
    ctx: Context | None,
) -> tuple[Result, str | None]:
    """
    Run an attempt in a child process; return its result, and why its value was not kept, if so.

    `ctx` is given for a handler that asks for one: what it can be asked is sent along.
    """
    job = messages.ChildJob(
        claim.id,
        claim.attempt,
        claim.task,
        claim.queue,
        claim.payload or "",
        config.result_bytes_max,
        {} if ctx is None else dict(ctx.headers),
        () if ctx is None else ctx.after,
    )
    outcome = pool.run(ref, job, timeout_s=entry.timeout_s)
    match outcome:
        case messages.Returned(value, unencodable):
            return Completed(value), unencodable
        case messages.Raised(exception, error):
            return _raised(claim, exception, error, retry), None
        case messages.Died(description):
            verb = "was " if description.startswith("killed") else ""
            return crashed(f"its child process {verb}{description}"), None
        case messages.Killed(reason):
            return _killed(claim, reason, entry, retry), None
        case _:
            return _steered(claim, outcome, retry), None


def _raised(claim: Claim, exception: BaseException, error: ErrorInfo, retry: Retry) -> Result:
    if isinstance(exception, NotDecodable):
        return Discard(str(exception))
    return failed(claim, exception, retry, error)


def _steered(claim: Claim, value: Snooze | Cancel | Discard, retry: Retry) -> Result:
    try:
        return checked(value)
    except ValueError as error:
        return failed(claim, error, retry)


def _killed(claim: Claim, reason: messages.Reason, entry: Entry, retry: Retry) -> Result:
    if reason == "cancel":
        return Cancel("cancelled while it ran")
    if reason == "stop":
        return Interrupted()
    return timed_out(claim, entry.timeout_s, retry)
