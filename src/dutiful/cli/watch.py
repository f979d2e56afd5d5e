"""`dutiful watch`: one job, live, until it ends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from dutiful.cli import codes, options, show, text
from dutiful.cli.jobs import summary, when
from dutiful.cli.live import Live
from dutiful.cli.store import opened

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from dutiful import AttemptError, Job, Record, Step

# Its end wakes us; how far it has come is written twice a second at most.
LOOK_S = 0.25

_EPILOG = """\
examples:
  dutiful watch jobs.db 42
  dutiful watch jobs.db 42 --json | jq .progress
  dutiful watch jobs.db 42 && echo done

It ends with the job: exit code 0 if it has completed, 1 if it is dead or cancelled, or was deleted.
Ctrl-C leaves, and changes nothing."""


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    parser.add_argument("id", type=options.count, metavar="ID", help="the job's id")
    options.as_json(parser, "a line for each change")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        views = _views(worker.job(args.id))
        record = _as_lines(views) if args.json else _for_people(views)
    return codes.OK if record.state == "completed" else codes.FAILED


class View(NamedTuple):
    """What is to be seen of a job."""

    record: Record
    steps: tuple[Step, ...]


def _views(job: Job) -> Iterator[View]:
    """Look at the job until it has finished; yield what has changed."""
    from dutiful import JobTimeout

    last: View | None = None
    while True:
        record = job.refresh()
        view = View(record, job.steps)
        if view != last:
            yield view
            last = view
        if record.state in ("completed", "dead", "cancelled"):
            return
        try:
            job.wait(timeout=LOOK_S)
        except JobTimeout:
            continue


# --- for programs ---------------------------------------------------------------------------------


def _as_lines(views: Iterator[View]) -> Record:
    record: Record | None = None
    for view in views:
        record = view.record
        show.record(_document(view))
    assert record is not None, "a job is there, or its absence was raised"
    return record


def _document(view: View) -> dict[str, Any]:
    record = view.record
    last = record.errors[-1] if record.errors else None
    return {
        **summary(record),
        "progress": _json(record.progress),
        "steps": [{"name": step.name, "kind": step.kind, "done": step.is_done} for step in view.steps],
        "result": _json(record.result),
        "error": last and {"attempt": last.attempt, "type": last.type, "message": last.message},
    }


def _json(stored: str | None) -> Any:
    try:
        return None if stored is None else text.value(stored)
    except ValueError:
        return stored


# --- for people -----------------------------------------------------------------------------------


def _for_people(views: Iterator[View]) -> Record:
    last: View | None = None
    before: str | None = None  # what an earlier attempt had said
    with Live() as live:
        for view in views:
            for parts in _news(last, view):
                live.line(*parts)
            record = view.record
            if last is not None and last.record.attempt != record.attempt:
                before = last.record.progress
            if record.state != "running" or record.progress is None or record.progress == before:
                live.clear()
            else:
                said = text.value(record.progress)
                live.bar(said["done"], said.get("total"), said.get("message", ""))
            last = view
    assert last is not None, "as above"
    _end(last.record)
    return last.record


def _news(last: View | None, view: View) -> Iterator[list[show.Part]]:
    """Return the lines that say what is new."""
    record = view.record
    if last is None:
        yield [(f"job {record.id}", show.BOLD), f"  {text.clean(record.task)}"]
    known: set[int] = set() if last is None else {error.attempt for error in last.record.errors}
    for error in record.errors:
        if error.attempt not in known:
            yield _failure(error)
    done: set[str] = set() if last is None else {step.name for step in last.steps if step.is_done}
    begun: set[str] = set() if last is None else {step.name for step in last.steps}
    for step in view.steps:
        if step.is_done and step.name not in done:
            yield _said("step", f"{text.clean(step.name)} done")
        elif not step.is_done and step.name not in begun:
            yield _said("step", _waiting(step))
    if last is None or _stands(last.record) != _stands(record):
        state, style = show.state(str(record.state))
        yield [(f"{state:<10}", style), _where(record)]


def _stands(record: Record) -> tuple[object, ...]:
    """Return what of a job makes a line of its own when it changes."""
    due_at = record.due_at if record.state == "pending" else None
    return (record.state, record.attempt, record.held, record.cancel_at, due_at)


def _where(record: Record) -> str:
    if record.state != "running":
        return when(record, round(time.time() * 1000), [])
    worker = f", worker {text.clean(record.worker)}" if record.worker else ""
    asked = ", asked to stop" if record.cancel_at is not None else ""
    return f"attempt {record.attempt}{worker}{asked}"


def _failure(error: AttemptError) -> list[show.Part]:
    head: list[show.Part] = [(f"{'failed':<10}", "red")]
    return [*head, f"attempt {error.attempt}: {text.clean(error.type)}: {text.clean(error.message)}"]


def _waiting(step: Step) -> str:
    if step.event is not None:
        return f"waits for the event {text.clean(step.event)}"
    return f"{text.clean(step.name)} until {text.local(step.at)}"


def _said(what: str, words: str) -> list[show.Part]:
    return [(f"{what:<10}", show.DIM), words]


def _end(record: Record) -> None:
    """Print what it came to."""
    if record.state == "completed":
        stored = record.result
    else:
        stored = record.errors[-1].traceback if record.errors else None
    if stored:
        shown = text.pretty(stored) if record.state == "completed" else text.clean(stored, lines=True)
        for line in shown.rstrip().split("\n"):
            show.line(line)
