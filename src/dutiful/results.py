"""The results of the jobs that a job was sent after: `ctx.after`."""

from collections.abc import Iterator, Sequence
from typing import Any, cast, overload

from dutiful.errors import JobNotFound
from dutiful.job import JobId
from dutiful.payload import decode_plain
from dutiful.sealing import Cover
from dutiful.store.contract import Sql, Store

PAGE_ROWS = 1000
FIRST_ROWS = 16  # results may be large: how large, the first ones tell
PAGE_BYTES = 1024 * 1024

Row = tuple[int, str | None, str | None, JobId]  # place, outcome, result, whose


class Results(Sequence[Any]):
    """
    Results in order, as plain JSON values; None for one without.

    Read a page at a time, so that a hundred thousand take no more memory than a thousand. Iterating is
    cheap; asking for one in the middle walks to it in the index.
    """

    __slots__ = ("_count", "_cover", "_head", "_job_id", "_store")

    def __init__(self, store: Store, job_id: JobId, cover: Cover) -> None:
        self._store = store
        self._cover = cover
        self._job_id = job_id
        self._count: int | None = None
        self._head: list[Row] | None = None  # the first page: most often it is all

    def __len__(self) -> int:
        head = self._first()
        if len(head) < FIRST_ROWS:
            return len(head)
        if self._count is None:
            with self._store.sql_look() as look:  # by index after_job
                rows = look.rows("SELECT count(*) FROM {after} WHERE job_id = ?", self._job_id)
            self._count = int(rows[0][0])
        return self._count

    def __iter__(self) -> Iterator[Any]:
        page = self._first()
        size, left = FIRST_ROWS, len(self)
        while page:
            yield from map(self._value, page)
            left -= len(page)
            if len(page) < size:
                break
            size = _next_size(page)
            page = self._page(page[-1][0], size)
        if left > 0:  # its own transaction has completed the job, and it was pruned meanwhile
            raise JobNotFound(self._job_id)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = index + len(self) if index < 0 else index
        head = self._first()
        if 0 <= at < len(head):
            return self._value(head[at])
        if not 0 <= at < len(self):
            raise IndexError(index)
        with self._store.sql_look() as look:
            return self._value(_rows(look, self._job_id, -1, 1, skip=at)[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Results | tuple | list):
            return NotImplemented
        theirs = cast("Sequence[Any]", other)
        return len(self) == len(theirs) and all(mine == its for mine, its in zip(self, theirs, strict=True))

    __hash__ = None  # type: ignore[assignment]  # it has no value of its own, as a list

    def __repr__(self) -> str:
        return f"<the results of {len(self)} jobs>"

    def _first(self) -> list[Row]:
        if self._head is None:
            self._head = self._page(-1, FIRST_ROWS)
        return self._head

    def _value(self, row: Row) -> Any:
        _place, outcome, result, parent = row
        if outcome != "completed" or result is None:
            return None
        return decode_plain(self._cover.get(result, "result", parent))

    def _page(self, after: int, size: int) -> list[Row]:
        with self._store.sql_look() as look:
            return _rows(look, self._job_id, after, size)


def _rows(look: Sql, job_id: JobId, after: int, size: int, *, skip: int = 0) -> list[Row]:
    return [
        (row[0], row[1], row[2], row[3])
        for row in look.rows(  # by index after_job
            "SELECT place, outcome, result, parent_id FROM {after} WHERE job_id = ? AND place > ?"
            " ORDER BY place LIMIT ? OFFSET ?",
            job_id,
            after,
            size,
            skip,
        )
    ]


def _next_size(page: list[Row]) -> int:
    size = sum(len(row[2] or "") for row in page) / len(page)
    return max(1, min(PAGE_ROWS, int(PAGE_BYTES / max(size, 1))))
