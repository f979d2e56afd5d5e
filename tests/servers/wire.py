"""
What is said on one connection to PostgreSQL: just enough to know when a COMMIT passes and is answered.

Each message of the client is a byte for its kind, four for its length, and the rest; only the first has no
kind. The server ends its answer to each Query, and to each Sync (which closes a batch of Parse, Bind,
Execute), with ReadyForQuery. So the n-th question is answered when the n-th ReadyForQuery has passed.

Source: https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import re
import struct
from dataclasses import dataclass

PROTOCOL_MAJOR = 3
HELLO_MAX = 10_000  # bytes; PostgreSQL's own limit
SSL_REQUEST, GSS_REQUEST = 80877103, 80877104  # "may we encrypt?": answered by one byte, "N" if not
COMMIT = re.compile(r"(?:^|;)\s*(?:COMMIT|END)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Message:
    """
    One whole message of the client.

    Attributes:
        raw: Its bytes.
        sql: What the server executes because of it; a prepared one's is known from when it was prepared.
        answer: Which ReadyForQuery will say that this has been done, counted from 1.
    """

    raw: bytes
    sql: str | None = None
    answer: int = 0


class Conversation:
    """
    One connection, both ways; it is fed the bytes that pass, cut anywhere.

    Attributes:
        readable: False once it is no PostgreSQL, or encrypted: then all bytes are messages without meaning.
        statements: How many the client has had executed.
        asked: How many answers the client has a right to: that to its hello, and one for each Query and Sync.
        answered: How many of these have been given.
    """

    def __init__(self) -> None:
        self.readable = True
        self.statements = self.asked = self.answered = 0
        self._hello = True  # the client's next message is one without a kind
        self._encryption = 0  # one-byte answers that the server owes
        self._to_server = bytearray()
        self._to_client = bytearray()
        self._prepared: dict[bytes, str] = {}
        self._bound: dict[bytes, str] = {}
        self._unsynced = self._flushed = False  # an Execute, and a Flush after it, since the last Sync

    def from_client(self, data: bytes) -> list[Message]:
        """Return the messages that `data` completes; the rest waits for more."""
        self._to_server += data
        messages: list[Message] = []
        while self.readable and (message := self._next()) is not None:
            messages.append(message)
        if not self.readable:
            messages.append(Message(bytes(self._to_server)))
            self._to_server.clear()
        return messages

    def from_server(self, data: bytes) -> None:
        """Count the answers that `data` completes."""
        if not self.readable:
            return
        self._to_client += data
        at = 0
        while self._encryption and at < len(self._to_client):
            self.readable = self.readable and self._to_client[at : at + 1] == b"N"
            self._encryption -= 1
            at += 1
        while len(self._to_client) - at >= 5:
            end = at + 1 + int.from_bytes(self._to_client[at + 1 : at + 5])
            if end > len(self._to_client):
                break
            self.answered += self._to_client[at : at + 1] == b"Z"
            at = end
        del self._to_client[:at]

    def _next(self) -> Message | None:
        at = 0 if self._hello else 1  # where the length is
        if len(self._to_server) < at + 4:
            return None
        size = at + int.from_bytes(self._to_server[at : at + 4])
        if self._hello and not 8 <= size <= HELLO_MAX:
            self.readable = False
            return None
        if len(self._to_server) < size:
            return None
        raw = bytes(self._to_server[:size])
        del self._to_server[:size]
        return self._greet(raw) if self._hello else self._understand(raw, raw[5:])

    def _greet(self, raw: bytes) -> Message:
        (code,) = struct.unpack_from("!i", raw, 4)
        if code in {SSL_REQUEST, GSS_REQUEST}:
            self._encryption += 1
        else:
            self._hello = False
            self.readable = code >> 16 == PROTOCOL_MAJOR  # if not: a request to cancel, or a stranger
            self.asked += 1
        return Message(raw)

    def _understand(self, raw: bytes, body: bytes) -> Message:
        """Keep the books of what is prepared and asked."""
        match raw[:1]:
            case b"Q":
                self.asked += 1
                self.statements += 1
                return Message(raw, text(body.split(b"\0", 1)[0]), self.asked)
            case b"E":
                self._unsynced = True
                self.statements += 1
                return Message(raw, self._bound.get(body.split(b"\0", 1)[0], ""), self.asked + 1)
            case b"P":
                name, sql, _ = body.split(b"\0", 2)
                self._prepared[name] = text(sql)
            case b"B":
                portal, name, _ = body.split(b"\0", 2)
                self._bound[portal] = self._prepared.get(name, "")
            case b"H":
                self._flushed = self._unsynced
            case b"S":
                self.asked += 1
                # After a Flush the client has its rows, and a Sync only ends, and commits, the transaction.
                flushed, self._flushed, self._unsynced = self._flushed, False, False
                return Message(raw, "COMMIT" if flushed else None, self.asked)
            case b"F":
                self.asked += 1
            case _:
                pass
        return Message(raw)


def text(sql: bytes) -> str:
    return sql.decode(errors="replace")
