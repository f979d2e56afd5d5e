"""JSON lines from a stream: as they come, in pieces of bounded size, each line with its number."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

# So much is read at once, if so much is there; what there is of a pipe's lines is sent as it comes.
READ_BYTES = 128 * 1024
LINE_BYTES_MAX = 16 * 1024 * 1024  # far above the largest payload; a stream without line ends has an end


class Line(NamedTuple):
    """One line that is not blank."""

    number: int
    data: bytes


class LineTooLong(Exception):
    """A line has no end within the limit; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    def __str__(self) -> str:
        return f"it is longer than {LINE_BYTES_MAX:,} bytes"


def batches(stream: BinaryIO) -> Iterator[tuple[list[Line], int]]:
    """
    Yield the lines that are there, and how many bytes they had; wait only when there are none.

    Raises:
        LineTooLong: After the lines before it were yielded.
    """
    number, rest = 1, b""
    while data := _read(stream):
        *whole, tail = data.split(b"\n")
        if whole:
            whole[0] = rest + whole[0]
            yield _numbered(whole, number), len(data)
            number, rest = number + len(whole), tail
        else:
            rest += tail
        if len(rest) > LINE_BYTES_MAX:
            raise LineTooLong(number)
    if rest:
        yield _numbered([rest], number), 0


def _read(stream: BinaryIO) -> bytes:
    read1 = getattr(stream, "read1", stream.read)
    data: bytes = read1(READ_BYTES)
    return data


def _numbered(lines: list[bytes], first: int) -> list[Line]:
    return [Line(number, line) for number, line in enumerate(lines, first) if line.strip()]
