"""An exception as text: what is kept of a failed attempt."""

import traceback
from pathlib import Path
from types import TracebackType

from dutiful.job import ErrorInfo

TEXT_BYTES_MAX = 16 * 1024  # of a message, and of a traceback: its end says most
_OURS = str(Path(__file__).parent)


def error_info(error: BaseException) -> ErrorInfo:
    """Put `error` into text, without local variables, and bounded."""
    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 - a __str__ of a stranger may raise anything
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
    # Surrogates cannot be stored as UTF-8; escaped they can, and still be read.
    data = text.encode(errors="backslashreplace")
    cut = data[-TEXT_BYTES_MAX:].decode(errors="ignore")
    return cut if len(data) <= TEXT_BYTES_MAX else f"…{cut}"
