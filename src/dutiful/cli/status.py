"""`dutiful status`: how a store stands."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from dutiful.cli import codes, options, show, text
from dutiful.cli.store import opened, path_of

if TYPE_CHECKING:
    import argparse
    from pathlib import Path

    from dutiful import Counts, WorkerInfo

# A worker says every 10 s that it lives; after three times that it is silent.
SILENT_S = 30.0

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
    now_ms = round(time.time() * 1000)
    if args.json:
        show.document(_document(args.store, counts, workers, size, now_ms))
    else:
        _head(args.store, size)
        _counts(args.store, counts)
        _workers(counts, workers, now_ms)
    return codes.OK


def _size(path: Path | None) -> int | None:
    """Return the bytes on disk: the file, and the log that belongs to it."""
    if path is None:
        return None
    files = (path, path.with_name(path.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


def _document(
    store: str, counts: Counts, workers: list[WorkerInfo], size: int | None, now_ms: int
) -> dict[str, Any]:
    return {
        "store": store,
        "bytes": size,
        "jobs": {str(state): count for state, count in counts.by_state.items()},
        "due": counts.due,
        "oldest_due_s": counts.oldest_due_s,
        "workers": [_worker_document(worker, now_ms) for worker in workers],
    }


def _worker_document(worker: WorkerInfo, now_ms: int) -> dict[str, Any]:
    return {
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "life": life(worker, now_ms),
        "queues": worker.queues,
        "concurrency": worker.concurrency,
        "started_at": text.iso(worker.started_at),
        "seen_at": text.iso(worker.seen_at),
    }


def life(worker: WorkerInfo, now_ms: int) -> str:
    """Return "alive", "silent" (it has not said so for long), or "gone" (no such process here)."""
    if worker.host == os.uname().nodename and not _runs(worker.pid):
        return "gone"
    return "silent" if now_ms - worker.seen_at > SILENT_S * 1000 else "alive"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def _head(store: str, size: int | None) -> None:
    show.line((text.clean(store), show.BOLD), ("" if size is None else f"  {text.size(size)}", show.DIM))
    show.line()


def _counts(store: str, counts: Counts) -> None:
    numbers = {str(state): f"{count:,}" for state, count in counts.by_state.items()}
    width = max(6, *map(len, numbers.values()))
    notes = {"pending": _due(counts)}
    if counts.by_state and numbers.get("dead", "0") != "0":
        notes["dead"] = f"see: dutiful jobs {text.clean(store)} --state dead"
    for name, number in numbers.items():
        styled = show.state(name) if number != "0" else (name, show.DIM)
        show.line(
            "  ",
            (f"{styled[0]:<10}", styled[1]),
            f"{number:>{width}}",
            (f"   {notes.get(name, '')}".rstrip(), show.DIM),
        )
    show.line()


def _due(counts: Counts) -> str:
    if not counts.due:
        return ""
    age = "" if counts.oldest_due_s is None else f", the oldest for {text.duration(counts.oldest_due_s)}"
    return f"{counts.due:,} due now{age}"


def _workers(counts: Counts, workers: list[WorkerInfo], now_ms: int) -> None:
    lives = [life(worker, now_ms) for worker in workers]
    if workers:
        rows = [_row(worker, alive, now_ms) for worker, alive in zip(workers, lives, strict=True)]
        heads = ("WORKER", "LIFE", "HOST", "PID", "AT ONCE", "QUEUES", "STARTED", "SEEN")
        show.columns(heads, rows, right=frozenset({3, 4}))
    else:
        show.line(("  no worker runs on this store", show.DIM))
    if "gone" in lives:
        show.line()
        show.line("  what a worker that is gone was running goes to the next worker that lives or starts")
    if counts.due and "alive" not in lives:
        show.line()
        show.line(
            "  ",
            (f"{text.jobs(counts.due)} due and nobody takes them", "yellow"),
            "; start one: dutiful run module:worker",
        )


def _row(worker: WorkerInfo, alive: str, now_ms: int) -> list[show.Part]:
    style = {"alive": "green", "silent": "yellow", "gone": "red"}[alive]
    return [
        text.clean(worker.name),
        (alive, style),
        text.clean(worker.host),
        str(worker.pid),
        str(worker.concurrency),
        text.clean(worker.queues),
        text.from_now(worker.started_at, now_ms),
        text.from_now(worker.seen_at, now_ms),
    ]
