"""Log lines on standard error, for people or (`--log-json`) for programs."""

import json
import logging
import os
from datetime import UTC, datetime

from dutiful.cli.text import clean

log = logging.getLogger("dutiful.cli")

LEVELS = ("debug", "info", "warning", "error")


def set_up(level: str, *, as_json: bool, with_pid: bool = False) -> None:
    """Log to standard error, before the user's module is imported: what it sets up itself goes on top."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if as_json else _Plain(with_pid=with_pid))
    logging.basicConfig(level=level.upper(), handlers=[handler])


class _Plain(logging.Formatter):
    """One line a fact. Messages hold what handlers raised: it must not reach the terminal raw."""

    def __init__(self, *, with_pid: bool) -> None:
        super().__init__()
        self._pid = f"[{os.getpid()}] " if with_pid else ""

    def format(self, record: logging.LogRecord) -> str:
        moment = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        line = f"{moment} {record.levelname:<7} {self._pid}{clean(record.getMessage())}"
        if record.exc_info:
            line += "\n" + clean(self.formatException(record.exc_info), lines=True)
        return line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields)
