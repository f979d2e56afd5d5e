"""`dutiful job`: all of one."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, show, text
from dutiful.cli.jobs import summary, when
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse

    from dutiful import AttemptError, Paused, Record

_EPILOG = """\
examples:
  dutiful job jobs.db 42
  dutiful job jobs.db 42 --json | jq .payload
  dutiful job jobs.db 42 --reveal                  secrets in clear

What is encrypted is shown if DUTIFUL_KEY has its key.
With --json, a payload or result that is no JSON is in payload_text or result_text."""
_WAITS_FOR = {
    "after": "the jobs that it was sent after",
    "group": "the rest of its group, which is still being sent",
    "key": "an earlier job of its key",
    "pool": "its limit",
    "end": "nothing; its completion is still to be told to those that wait for it",
}


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    parser.add_argument("id", type=options.count, metavar="ID", help="the job's id")
    parser.add_argument("--reveal", action="store_true", help="show what is secret, too")
    options.as_json(parser, "one document")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        record, paused = worker.job(args.id).refresh(reveal=args.reveal), worker.paused()
    if args.json:
        show.document(_document(record))
    else:
        _facts(record, paused)
        _section("payload", record.payload)
        _section("result", record.result)
        for error in record.errors:
            _attempt(error)
    return codes.OK


def _document(record: Record) -> dict[str, Any]:
    errors = [
        {
            "attempt": error.attempt,
            "at": text.iso(error.at),
            "worker": error.worker,
            "type": error.type,
            "message": error.message,
            "traceback": error.traceback,
        }
        for error in record.errors
    ]
    return {
        **summary(record),
        **_value("payload", record.payload),
        **_value("result", record.result),
        **_value("progress", record.progress),
        "errors": errors,
    }


def _value(name: str, stored: str | None) -> dict[str, Any]:
    if stored is None:
        return {name: None}
    try:
        return {name: text.value(stored)}
    except ValueError:
        return {name: None, f"{name}_text": stored}


def _facts(record: Record, paused: list[Paused]) -> None:
    now_ms = round(time.time() * 1000)
    show.line(
        (f"job {record.id}", show.BOLD),
        "  ",
        show.state(str(record.state)),
        (f"  {when(record, now_ms, paused)}", show.DIM),
    )
    show.line()
    _fact("task", text.task(record))
    _fact("queue", text.clean(record.queue))
    if record.priority:
        _fact("priority", str(record.priority))
    _fact("attempts", f"{record.attempt}{_ended(record)}")
    if record.progress is not None:
        _fact("progress", _progress(record.progress))
    if record.key is not None:
        _fact("key", text.clean(record.key))
    if record.held is not None:
        _fact("waits for", _WAITS_FOR.get(record.held, text.clean(record.held)))
    if record.worker:
        _fact("worker", text.clean(record.worker))
    for name, instant in (
        ("sent", record.created_at),
        ("due", record.due_at),
        ("expires", record.expires_at),
        ("started", record.started_at),
        ("stop asked", record.cancel_at),
        ("finished", record.finished_at),
    ):
        if instant is not None:
            _fact(name, text.local(instant), text.from_now(instant, now_ms))


def _progress(stored: str) -> str:
    said = text.value(stored)
    return text.progress(said["done"], said.get("total"), said.get("message", ""))


def _ended(record: Record) -> str:
    kinds = (("failures", record.failures), ("crashes", record.crashes))
    ended = ", ".join(f"{name} {number}" for name, number in kinds if number)
    return f" ({ended})" if ended else ""


def _fact(name: str, value: str, note: str = "") -> None:
    show.line("  ", (f"{name:<12}", show.DIM), value, (f"  {note}".rstrip(), show.DIM))


def _section(name: str, stored: str | None) -> None:
    if stored is None:
        return
    show.line()
    show.line((name, show.BOLD))
    _indented(text.pretty(stored))


def _attempt(error: AttemptError) -> None:
    show.line()
    show.line(
        (f"attempt {error.attempt}", show.BOLD),
        (f"  {text.local(error.at)}, worker {text.clean(error.worker)}", show.DIM),
    )
    show.line("  ", (text.clean(error.type), "red"), f": {text.clean(error.message)}")
    if error.traceback:
        _indented(text.clean(error.traceback.rstrip(), lines=True), show.DIM)


def _indented(lines: str, style: str = "") -> None:
    for line in lines.split("\n"):
        show.line((f"  {line}".rstrip(), style))
