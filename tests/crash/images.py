"""
Rebuild the database files as a power cut could have left them, and look for what was promised.

A recording (see `recorder`) gives writes, syncs and promises in one order. At a cut:

- a write is *durable* if it had ended before a sync of its file began, and that sync had ended;
- any other write that had begun may be there, wholly, in part (torn at 512-byte sectors) or not at
  all, independently of its neighbours and of their order, and so may a truncation;
- a name that was created, removed or renamed is durable after a later sync of the directory;
  until then the disk may have the old state or the new, name by name.

A *fate* chooses among the writes that are not durable: none, all, the first few, any few, single
sectors, the last one torn, the last one only. This is harsher than most disks, and what SQLite's own
documentation assumes; `synchronous=FULL` is meant to survive all of it.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.recorder import Create, Event, Mark, Rename, Sync, Truncate, Unlink, Write

SECTOR_BYTES = 512

Change = Write | Truncate
Fate = Callable[[Sequence[Change], random.Random], Sequence[Change]]


def _none(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return ()


def _all(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return changes


def _first_few(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return changes[: chance.randint(0, len(changes))]


def _last_few(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return changes[chance.randint(0, len(changes)) :]


def _any_few(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return [change for change in changes if chance.random() < 0.5]


def _any_sectors(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return [part for change in changes for part in _sectors(change) if chance.random() < 0.5]


def _last_torn(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    parts = [part for change in changes[-1:] for part in _sectors(change)]
    return [*changes[:-1], *parts[: chance.randint(0, len(parts))]]


def _last_only(changes: Sequence[Change], chance: random.Random) -> Sequence[Change]:
    return changes[-1:]


FATES: Mapping[str, Fate] = {
    "none": _none,
    "all": _all,
    "first few": _first_few,
    "last few": _last_few,
    "any few": _any_few,
    "any sectors": _any_sectors,
    "last torn": _last_torn,
    "last only": _last_only,
}


def _sectors(change: Change) -> Iterator[Change]:
    if isinstance(change, Truncate):
        yield change
        return
    position, end = change.offset, change.offset + len(change.data)
    while position < end:
        edge = min(end, (position // SECTOR_BYTES + 1) * SECTOR_BYTES)
        part = change.data[position - change.offset : edge - change.offset]
        yield Write(change.begin, change.end, change.name, position, part)
        position = edge


@dataclass(slots=True)
class _File:
    """One file, whatever its name: what was done to it, and when it was synced."""

    changes: list[Change] = field(default_factory=list)
    syncs: list[Sync] = field(default_factory=list)

    def content(self, cut: int, fate: Fate, chance: random.Random) -> bytes:
        safe = _synced(self.syncs, cut)
        begun = [change for change in self.changes if change.begin <= cut]
        durable = [change for change in begun if change.end is not None and change.end < safe]
        loose = [change for change in begun if change.end is None or change.end >= safe]
        content = bytearray()
        for change in (*durable, *fate(loose, chance)):
            _apply(content, change)
        return bytes(content)


def _synced(syncs: Sequence[Sync], cut: int) -> int:
    """Return the line before which everything is durable at `cut`."""
    return max((sync.begin for sync in syncs if sync.end is not None and sync.end <= cut), default=-1)


def _apply(content: bytearray, change: Change) -> None:
    size = change.size if isinstance(change, Truncate) else change.offset + len(change.data)
    if len(content) < size:
        content.extend(bytes(size - len(content)))
    if isinstance(change, Truncate):
        del content[size:]
    else:
        content[change.offset : size] = change.data


@dataclass(frozen=True, slots=True)
class _Entry:
    """From `begin`, perhaps, and from `end` on, surely, the name meant this file (None: no file)."""

    begin: int
    end: int | None
    file: _File | None


class Disk:
    """All that a recording did, ready to be cut at any line."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._names: dict[str, list[_Entry]] = {}
        self._directory_syncs: list[Sync] = []
        self.marks: list[Mark] = []
        self.syncs: list[Sync] = []
        self.last = max((event.end or event.begin for event in events), default=0)
        for event in events:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Mark():
                self.marks.append(event)
            case Sync(name=""):
                self._directory_syncs.append(event)
            case Sync(name=name):
                self.syncs.append(event)
                if (file := self._file(name)) is not None:
                    file.syncs.append(event)
            case Create(name=name) if self._file(name) is None:
                self._point(name, event, _File())
            case Unlink(name=name):
                self._point(name, event, None)
            case Rename(name=name, new_name=new_name):
                self._point(new_name, event, self._file(name))
                self._point(name, event, None)
            case Write(name=name) | Truncate(name=name):
                if (file := self._file(name)) is not None:
                    file.changes.append(event)

    def _file(self, name: str) -> _File | None:
        entries = self._names.get(name)
        return entries[-1].file if entries else None

    def _point(self, name: str, event: Event, file: _File | None) -> None:
        first = [_Entry(-1, -1, None)]
        self._names.setdefault(name, first).append(_Entry(event.begin, event.end, file))

    def image(self, cut: int, fate: str, chance: random.Random) -> dict[str, bytes]:
        """Return the files, name → content, as a cut after line `cut` could leave them."""
        content: dict[str, bytes] = {}
        for name in self._names:
            file = self._named(name, cut, fate, chance)
            if file is not None:
                content[name] = file.content(cut, FATES[fate], chance)
        return content

    def _named(self, name: str, cut: int, fate: str, chance: random.Random) -> _File | None:
        safe = _synced(self._directory_syncs, cut)
        begun = [entry for entry in self._names[name] if entry.begin <= cut]
        first = max(
            i for i, entry in enumerate(begun) if entry.end is not None and entry.end <= max(safe, -1)
        )
        possible = begun[first:]
        match fate:
            case "none":
                return possible[0].file
            case "all":
                return possible[-1].file
            case _:
                return chance.choice(possible).file

    def promised(self, cut: int, word: str) -> list[str]:
        """Return the rest of each mark "WORD rest" that had been made, or begun, by `cut`."""
        texts = (mark.text for mark in self.marks if mark.begin <= cut)
        return [rest for text in texts for first, _, rest in [text.partition(" ")] if first == word]

    def cuts(self, count: int, chance: random.Random) -> list[int]:
        """Return `count` lines: just before and just after syncs end, after promises, and any."""
        ends = [sync.end for sync in self.syncs if sync.end is not None]
        edges = [*ends, *(end - 1 for end in ends)]
        chance.shuffle(edges)
        others = [*(mark.begin for mark in self.marks)] + [chance.randint(0, self.last) for _ in range(count)]
        chance.shuffle(others)
        share = min(len(edges), count * 2 // 3)
        return [*edges[:share], *others[: count - share]]


@dataclass(frozen=True, slots=True)
class Case:
    """One image: enough to make it again."""

    seed: str
    cut: int
    fate: str

    def image(self, disk: Disk) -> dict[str, bytes]:
        return disk.image(self.cut, self.fate, random.Random(self.seed))


def cases(disk: Disk, *, seed: int, count: int) -> list[Case]:
    """Choose `count` cuts, each with a fate; the same seed chooses the same."""
    chance = random.Random(seed)
    fates = list(FATES)
    return [
        Case(f"{seed}/{number}", cut, fates[number % len(fates)])
        for number, cut in enumerate(disk.cuts(count, chance))
    ]


def put(image: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of an image into a fresh folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in image.items():
        (folder / name).write_bytes(content)


def problems(case: Case, disk: Disk, folder: Path, *, name: str) -> list[str]:
    """Put the image in `folder`, open it with plain sqlite3, and return what is wrong with it."""
    put(case.image(disk), folder)
    acked = [line.split() for line in disk.promised(case.cut, "ACK")]
    done = {int(line.split()[0]) for line in disk.promised(case.cut, "DONE")}
    found = verify(folder / name, {int(i): int(n) for i, n in acked}, done)
    return [f"{case}: {problem}" for problem in found]


def verify(db: Path, acked: Mapping[int, int], done: set[int]) -> list[str]:
    """Look into a database for each acked job (id → the n of its payload) and each finished one."""
    try:
        rows, integrity = _read(db)
    except sqlite3.DatabaseError as error:
        return [f"{len(acked)} jobs were acked and the file cannot be read: {error}"] if acked else []
    wrong = [] if integrity == "ok" else [f"integrity_check: {integrity}"]
    for job_id, number in acked.items():
        state, payload = rows.get(job_id, ("", ""))
        if not state:
            wrong.append(f"job {job_id} was acked and is lost")
        elif _number(payload) != number:
            wrong.append(f"job {job_id} has the payload {payload!r}, not n={number}")
        elif job_id in done and state != "completed":
            wrong.append(f"job {job_id} was seen completed and is {state}")
    return wrong


def _read(db: Path) -> tuple[dict[int, tuple[str, str]], str]:
    with closing(sqlite3.connect(db)) as connection:
        integrity: str = connection.execute("PRAGMA integrity_check").fetchone()[0]
        found = connection.execute("SELECT id, state, payload FROM dutiful_job").fetchall()
    return {job_id: (state, payload) for job_id, state, payload in found}, integrity


def _number(payload: str) -> int | None:
    try:
        number: int = json.loads(payload)["n"]
    except (ValueError, KeyError, TypeError):
        return None
    return number
