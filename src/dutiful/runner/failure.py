"""How attempts fail: exceptions as text, deaths, and time that ran out."""

import inspect
import traceback
from pathlib import Path
from types import TracebackType

from dutiful.core.retry import Retry
from dutiful.core.values import DELAY_S_MAX, escaped
from dutiful.job import Cancel, Claim, Crashed, Discard, ErrorInfo, Failed, Result, Snooze

TEXT_BYTES_MAX = 16 * 1024  # of a message, and of a traceback: its end says most
_OURS = str(Path(__file__).parent)


def error_info(error: BaseException) -> ErrorInfo:
    """Put `error` into text, without local variables, and bounded."""
    try:
        message = str(error)
    except BaseException as failure:  # noqa: BLE001 - a __str__ of a stranger may raise anything
        message = f"<its str() raised {type(failure).__name__}>"
    lines = traceback.format_exception(type(error), error, _theirs(error.__traceback__))
    return ErrorInfo(type(error).__qualname__, _bounded(message), _bounded("".join(lines)))


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """Skip our own frames at the top: they say nothing to the handler's author."""
    first = trace
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace or first


def _bounded(text: str) -> str:
    data = escaped(text).encode()
    cut = data[-TEXT_BYTES_MAX:].decode(errors="ignore")
    return cut if len(data) <= TEXT_BYTES_MAX else f"…{cut}"


def failed(claim: Claim, error: BaseException, retry: Retry, info: ErrorInfo | None = None) -> Result:
    """Return the result of an attempt that failed with `error`, by its policy; `info` is its text."""
    try:
        after_s = retry.after_s(error, claim.failures + 1)
    except Exception as policy_error:  # noqa: BLE001  # the user's function; the backoff decides instead
        policy_error.__cause__ = error
        return Failed(error_info(policy_error))
    return Failed(info or error_info(error), after_s)


def crashed(what: str) -> Result:
    """Return the result of an attempt whose process died."""
    return Crashed(ErrorInfo("WorkerDied", f"worker died while running the job: {what}"))


def timed_out(claim: Claim, timeout_s: float | None, retry: Retry) -> Result:
    """Return the result of an attempt that ran out of time, by its policy."""
    return failed(claim, TimeoutError(f"the handler ran longer than its timeout of {timeout_s} s"), retry)


def check_ran(value: object) -> None:
    """
    Raises:
        TypeError: What a handler returned is a call that never ran, as of an async function without await.
    """
    if value is None or isinstance(value, str | int | float | dict | list):  # nearly all
        return
    if inspect.iscoroutine(value):
        value.close()  # else Python warns of it, at any time
        hint = "make it async def, and await what it calls"
    elif inspect.isgenerator(value) or inspect.isasyncgen(value):
        hint = "a handler returns a value: run the loop in it, without yield"
    elif inspect.isawaitable(value):
        hint = "make it async def, and await what it returns"
    else:
        return
    raise TypeError(f"the handler returned a {type(value).__name__}, which never ran; {hint}")


def checked(value: Snooze | Cancel | Discard) -> Snooze | Cancel | Discard:
    """
    Return what a handler returned to steer its job, if it makes sense.

    Raises:
        ValueError: It does not; a handler's mistake, so the attempt fails.
    """
    if isinstance(value, Snooze):
        seconds: object = value.seconds
        is_number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if not is_number or not 0 <= value.seconds <= DELAY_S_MAX:
            raise ValueError(
                f"the handler returned {value!r}; seconds must be a number from 0 to {DELAY_S_MAX:.0f}"
            )
        return value
    return type(value)(_bounded(str(value.reason)))
