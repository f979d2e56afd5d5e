"""`dutiful doctor`: what somebody should look at, in the jobs and in the files."""

from __future__ import annotations

import shutil
import stat
from typing import TYPE_CHECKING, NamedTuple

from dutiful.cli import codes, options, pause, show, text
from dutiful.cli.store import label_of, opened, path_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

    from dutiful import Counts, Paused, WorkerInfo

# The log alone grows to tens of MiB in a burst; below this a full disk is a matter of minutes.
FREE_BYTES_MIN = 256 * 1024 * 1024

_EPILOG = """\
examples:
  dutiful doctor jobs.db
  dutiful doctor jobs.db --json | jq '.findings[] | select(.is_well | not)'

Nothing is changed. The exit code is 1 if there is something to look at. It does not read the whole
file: for damage on the disk, see `PRAGMA integrity_check` of SQLite."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    what: str
    is_well: bool
    says: str


def add_to(parser: argparse.ArgumentParser) -> None:
    options.store(parser)
    options.as_json(parser, "one document")
    parser.set_defaults(command=command)
    parser.epilog = _EPILOG


def command(args: argparse.Namespace) -> int:
    with opened(args.store) as worker:
        counts, workers, paused = worker.counts(), worker.workers(), worker.paused()
        store = label_of(args.store, worker)
    findings = [*_of_work(store, counts, workers, paused), *_of_files(path_of(args.store))]
    is_well = all(finding.is_well for finding in findings)
    if args.json:
        show.document({"store": store, "is_well": is_well, "findings": [one._asdict() for one in findings]})
    else:
        for finding in findings:
            _show(finding)
    return codes.OK if is_well else codes.FAILED


def _show(finding: Finding) -> None:
    verdict = ("ok  ", "green") if finding.is_well else ("look", "yellow")
    show.line("  ", verdict, f"  {finding.what:<8}  ", text.clean(finding.says))


def _of_work(
    store: str, counts: Counts, workers: list[WorkerInfo], paused: list[Paused]
) -> Iterator[Finding]:
    alive = sum(worker.is_alive for worker in workers)
    dead = len(workers) - alive
    rescue = "; the next worker that lives or starts takes over its jobs" if dead else ""
    yield Finding("workers", dead == 0, f"{alive} alive, {dead} dead{rescue}")
    yield Finding("due", not counts.due or alive > 0, _due(counts, alive))
    hint = f"; dutiful resume {store} --…, when it may go on" if paused else ""
    yield Finding("paused", not paused, (pause.names(paused) or "nothing") + hint)
    hint = (
        ": no worker knew their task, or it is paused; start one that has its handler (and key), or resume it"
    )
    hint = hint if counts.parked else ""
    yield Finding("parked", not counts.parked, text.jobs(counts.parked) + hint)
    count = {str(state): count for state, count in counts.by_state.items()}["dead"]
    hint = f": dutiful jobs {store} --state dead; then retry or delete them" if count else ""
    yield Finding("dead", not count, text.jobs(count) + hint)


def _due(counts: Counts, alive: int) -> str:
    age = "" if counts.oldest_due_s is None else f", the oldest for {text.duration(counts.oldest_due_s)}"
    return text.jobs(counts.due) + age + ("" if alive or not counts.due else ", and nobody takes them")


def _of_files(path: Path | None) -> Iterator[Finding]:
    if path is None:
        return
    mode = stat.S_IMODE(path.stat().st_mode)
    is_private = not mode & (stat.S_IRWXG | stat.S_IRWXO)
    hint = "" if is_private else f": others may get at payloads and results; chmod 600 {path}"
    yield Finding("file", is_private, f"mode {mode:04o}{hint}")
    folder = path.resolve().parent
    mode = stat.S_IMODE(folder.stat().st_mode)
    # With the sticky bit, as in /tmp, nobody can replace what belongs to somebody else.
    is_safe = not mode & stat.S_IWOTH or bool(mode & stat.S_ISVTX)
    hint = "" if is_safe else f": everybody can replace the file; chmod o-w {folder}"
    yield Finding("folder", is_safe, f"mode {mode:04o}{hint}")
    free = shutil.disk_usage(folder).free
    yield Finding("disk", free >= FREE_BYTES_MIN, f"{text.size(free)} free")
