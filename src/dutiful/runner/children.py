"""What an attempt in a child process came to, as a Result."""

from dutiful.config import Config
from dutiful.core.retry import Retry
from dutiful.errors import NotDecodable
from dutiful.job import Cancel, Claim, Completed, Discard, ErrorInfo, Failed, Interrupted, Result
from dutiful.registry import Entry
from dutiful.runner import processes
from dutiful.runner.failure import crashed, timed_out


def run_in_child(
    pool: processes.ChildPool,
    claim: Claim,
    entry: Entry,
    ref: processes.HandlerRef,
    config: Config,
    retry: Retry,
) -> tuple[Result, str | None]:
    """Run an attempt in a child process; return its result, and why its value was not kept, if so."""
    job = processes.ChildJob(
        claim.id, claim.attempt, claim.task, claim.queue, claim.payload or "", config.result_bytes_max
    )
    outcome = pool.run(ref, job, timeout_s=entry.timeout_s)
    match outcome:
        case processes.Returned(value, unencodable):
            return Completed(value), unencodable
        case processes.Raised(exception, error):
            return _raised(exception, error, retry, claim.failures + 1), None
        case processes.Died(description):
            verb = "was " if description.startswith("killed") else ""
            return crashed(f"its child process {verb}{description}"), None
        case processes.Killed(reason):
            return _killed(reason, entry), None
        case _:
            return outcome, None


def _raised(exception: BaseException, error: ErrorInfo, retry: Retry, failures: int) -> Result:
    if isinstance(exception, NotDecodable):
        return Discard(str(exception))
    return Failed(error, retry.after_s(exception, failures))


def _killed(reason: processes.Reason, entry: Entry) -> Result:
    if reason == "cancel":
        return Cancel("cancelled while it ran")
    if reason == "stop":
        return Interrupted()
    return timed_out(entry.timeout_s)
