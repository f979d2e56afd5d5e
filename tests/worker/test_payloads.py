"""Every kind of payload, sent by one worker and run by another on the same file."""

import json
import sqlite3
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import NamedTuple, TypedDict
from uuid import UUID

import attrs
import msgspec
import pydantic
import pytest

from dutiful import NotEncodable, State
from tests.worker.tools import Seen, finished, result


class Colour(Enum):
    RED = "red"


@dataclass
class Part:
    name: str
    count: int = 1


@dataclass
class Plain:
    at: datetime
    key: UUID
    price: Decimal
    data: bytes
    colour: Colour
    parts: list[Part] = field(default_factory=list)
    note: str | None = None
    wait: timedelta = timedelta(seconds=3)


class Quick(msgspec.Struct):
    path: str
    sizes: dict[str, int]
    part: Part | None = None


@attrs.define
class Made:
    left: int
    right: tuple[int, str]


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(min_length=1)
    part: Part


class Pair(NamedTuple):
    left: int
    right: str


class Movie(TypedDict):
    title: str
    year: int


PLAIN = Plain(
    at=datetime(2026, 11, 24, 3, 45, tzinfo=UTC),
    key=UUID(int=5),
    price=Decimal("12.30"),
    data=b"\x00\xff",
    colour=Colour.RED,
    parts=[Part("ä"), Part("b", 2)],
)
PAYLOADS = [
    PLAIN,
    Quick("a.png", {"x": 1}, Part("p")),
    Made(1, (2, "b")),
    Model(name="m", part=Part("p")),
    Pair(1, "b"),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda payload: type(payload).__name__)
@pytest.mark.parametrize("many", [False, True])
def test_a_typed_payload_is_equal_in_the_handler(make, started, payload, many):
    kind, seen = type(payload), Seen()
    client = make(handlers={kind: print})
    if many:
        client.send_many([payload])
    else:
        client.send(payload)

    started(handlers={kind: seen.add})

    assert seen.wait() == [payload]
    assert type(seen.all[0]) is kind


def test_a_typed_dict_is_sent_by_its_type(make, started, seen):
    movie: Movie = {"title": "Z", "year": 1969}
    make().send(movie, task=Movie)
    worker = started()

    @worker.handler
    def on_movie(it: Movie) -> None:
        seen.add(it)

    assert seen.wait() == [movie]


@pytest.mark.parametrize("value", [None, 0, -(2**70), 1.5, "", "\x00\U0001f600", [], [{"a": [None]}], True])
def test_plain_json_is_equal_in_the_handler(make, started, seen, value):
    make().send(value, task="same")

    started(handlers={"same": seen.add})

    assert seen.wait() == [value]


def test_what_is_stored_is_json_and_nothing_else(make, path):
    make(handlers={Plain: print}).send(PLAIN)

    with sqlite3.connect(path) as db:
        (text,) = db.execute("SELECT payload FROM dutiful_job").fetchone()
    db.close()
    assert json.loads(text)["parts"] == [{"name": "ä", "count": 1}, {"name": "b", "count": 2}]


@pytest.mark.parametrize(
    "stored",
    ['{"name": 5}', '{"nam": "a"}', "[]", "null", "5", '{"name": "a", "count": "many"}'],
)
def test_a_payload_that_does_not_fit_makes_the_job_dead_at_once(make, started, seen, stored):
    job = make().send(json.loads(stored), task="Part")

    worker = started(handlers={Part: seen.add, "fine": seen.add})

    record = finished(worker.job(job.id))
    assert (record.state, record.failures, seen.all) == (State.DEAD, 0, [])
    assert [error.type for error in record.errors] == ["NotDecodable"]
    assert record.payload == stored.replace(": ", ":").replace(", ", ",")
    worker.send(1, task="fine")
    assert seen.wait() == [1]


@pytest.mark.parametrize("damage", ["'{broken'", "x'ff00'", "NULL", "17"])
def test_a_payload_damaged_in_the_store_makes_the_job_dead_at_once(make, started, path, seen, damage):
    client = make()
    bad, good = client.send({"name": "a"}, task="Part"), client.send({"name": "b"}, task="Part")
    client.stop()
    with sqlite3.connect(path) as db:
        try:
            db.execute(f"UPDATE dutiful_job SET payload = {damage} WHERE id = {bad.id}")
        except sqlite3.IntegrityError:
            pytest.skip("the schema does not let it in")
        finally:
            db.commit()
    db.close()

    worker = started(handlers={Part: seen.add})

    assert finished(worker.job(bad.id)).state is State.DEAD
    assert finished(worker.job(good.id)).state is State.COMPLETED
    assert seen.all == [Part("b")]


def test_an_error_in_post_init_is_a_payload_that_cannot_be_read(make, started, seen):
    @dataclass
    class Checked:
        size: int

        def __post_init__(self) -> None:
            if self.size < 0:
                raise ValueError("negative")

    make().send({"size": -1}, task="Checked")
    worker = started(handlers={Checked: seen.add})

    record = finished(worker.job(1))

    assert record.state is State.DEAD
    assert "negative" in record.errors[0].message


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    "payload", [float("nan"), {1, 2}, {1: "a"}, "\ud800", object(), [float("inf")], b"x" * 2_000_000]
)
def test_what_cannot_be_stored_is_refused_and_nothing_is_stored(make, payload, many):
    worker = make()

    with pytest.raises(NotEncodable, match="Nothing was stored"):
        if many:
            worker.send_many([1, payload], task="any")
        else:
            worker.send(payload, task="any")

    assert worker.jobs() == []


def test_a_result_is_what_the_handler_says_that_it_returns(started, store):
    worker = started(store)

    @worker.handler
    def on_part(it: Part) -> Plain:
        return PLAIN

    assert result(worker.send(Part("a"))) == PLAIN


def test_without_such_an_annotation_a_result_is_plain_json(started, store):
    worker = started(store)

    @worker.handler
    def on_part(it: Part):
        return PLAIN

    back = result(worker.send(Part("a")))
    assert (back["colour"], back["parts"]) == ("red", [{"name": "ä", "count": 1}, {"name": "b", "count": 2}])
