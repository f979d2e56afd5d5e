"""`dutiful status`: how a store stands."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, pause, show, text
from dutiful.cli.store import label_of, opened, path_of

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from dutiful import Counts, Paused, WorkerInfo

_EPILOG = """\
examples:
  dutiful status jobs.db
  dutiful status jobs.db --json | jq .jobs.dead"""


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    options.as_json(parser, "one document")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        counts, workers, size = worker.counts(), worker.workers(), _size(path_of(args.store))
        paused = worker.paused()
        store = label_of(args.store, worker)
    if args.json:
        document = _document(store, counts, workers, size)
        show.document(document | {"paused": [pause.document(each) for each in paused]})
    else:
        _head(store, size)
        _counts(store, counts)
        _paused(store, paused)
        _workers(counts, workers)
    return codes.OK


def _size(path: Path | None) -> int | None:
    """Return the bytes on disk: the file, and the log that belongs to it."""
    if path is None:
        return None
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def _document(store: str, counts: Counts, workers: list[WorkerInfo], size: int | None) -> dict[str, Any]:
    return {
        "store": store,
        "bytes": size,
        "jobs": {str(state): count for state, count in counts.by_state.items()},
        "due": counts.due,
        "oldest_due_s": counts.oldest_due_s,
        "parked": counts.parked,
        "workers": [_worker_document(worker) for worker in workers],
    }


def _worker_document(worker: WorkerInfo) -> dict[str, Any]:
    return {
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "is_alive": worker.is_alive,
        "queues": worker.queues,
        "concurrency": worker.concurrency,
        "started_at": text.iso(worker.started_at),
        "seen_at": text.iso(worker.seen_at),
    }


def _head(store: str, size: int | None) -> None:
    show.line((text.clean(store), show.BOLD), ("" if size is None else f"  {text.size(size)}", show.DIM))
    show.line()


def _counts(store: str, counts: Counts) -> None:
    numbers = {str(state): f"{count:,}" for state, count in counts.by_state.items()}
    width = max(6, *map(len, numbers.values()))
    notes = {"pending": _pending(counts), "blocked": "wait for a key, a limit or other jobs"}
    if counts.by_state and numbers.get("dead", "0") != "0":
        notes["dead"] = f"see: dutiful jobs {text.clean(store)} --state dead"
    for name, number in numbers.items():
        styled = show.state(name) if number != "0" else (name, show.DIM)
        show.line(
            "  ",
            (f"{styled[0]:<10}", styled[1]),
            f"{number:>{width}}",
            (f"   {notes.get(name, '') if number != '0' else ''}".rstrip(), show.DIM),
        )
    show.line()


def _paused(store: str, paused: list[Paused]) -> None:
    if paused:
        names = text.clean(pause.names(paused))
        hint = f"; no worker begins jobs of it, until: dutiful resume {text.clean(store)} --…"
        show.line("  ", ("paused", "yellow"), f"       {names}", (hint, show.DIM))
        show.line()


def _pending(counts: Counts) -> str:
    notes: list[str] = []
    if counts.due:
        age = "" if counts.oldest_due_s is None else f", the oldest for {text.duration(counts.oldest_due_s)}"
        notes.append(f"{counts.due:,} due now{age}")
    if counts.parked:
        notes.append(f"{counts.parked:,} parked: no worker knew the task, or it is paused")
    return "; ".join(notes)


def _workers(counts: Counts, workers: list[WorkerInfo]) -> None:
    if workers:
        now_ms = round(time.time() * 1000)
        heads = ("WORKER", "LIFE", "HOST", "PID", "AT ONCE", "QUEUES", "STARTED", "SEEN")
        show.columns(heads, [_row(worker, now_ms) for worker in workers], right=frozenset({3, 4}))
    else:
        show.line(("  no worker runs on this store", show.DIM))
    if not all(worker.is_alive for worker in workers):
        show.line()
        show.line("  what a dead worker was running goes to the next worker that lives or starts")
    if counts.due and not any(worker.is_alive for worker in workers):
        show.line()
        show.line(
            "  ",
            (f"{text.jobs(counts.due)} due and nobody takes them", "yellow"),
            "; start one: dutiful run module:worker",
        )


def _row(worker: WorkerInfo, now_ms: int) -> list[show.Part]:
    return [
        text.clean(worker.name),
        ("alive", "green") if worker.is_alive else ("dead", "red"),
        text.clean(worker.host),
        str(worker.pid),
        str(worker.concurrency),
        text.clean(", ".join(worker.queues)),
        text.from_now(worker.started_at, now_ms),
        text.from_now(worker.seen_at, now_ms),
    ]
