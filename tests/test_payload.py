"""Payloads come back as they were sent, or are refused when they are sent."""

import contextlib
import datetime as dt
import decimal
import enum
import math
import uuid
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypedDict, TypeVar

import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dutiful.errors import ConfigError, NotDecodable, NotEncodable
from dutiful.payload import (
    DEPTH_MAX,
    check_name,
    decode_plain,
    decoder,
    encode,
    encode_result,
    is_payload_type,
    task_name,
)

MIB = 1 << 20


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Inner:
    tags: set[str]
    ratio: float | None = None


@dataclass
class Order:
    id: int
    at: dt.datetime
    price: decimal.Decimal
    key: uuid.UUID
    raw: bytes = b"\x00\xff"
    colour: Colour = Colour.RED
    inner: Inner = field(default_factory=lambda: Inner({"a"}))
    by_id: dict[int, str] = field(default_factory=dict)


class Page(msgspec.Struct, frozen=True):
    number: int
    words: tuple[str, ...] = ()


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Drawing(msgspec.Struct):
    shapes: list[Circle | Square]


class Login(TypedDict):
    user: str
    roles: list[str]


@attrs.define
class Parcel:
    weight: float
    notes: list[str] = attrs.Factory(list)


class Point(NamedTuple):
    x: int
    y: int


class User(pydantic.BaseModel, extra="forbid"):
    id: int = pydantic.Field(alias="userId")
    born: dt.date | None = None
    raw: bytes = b"x"

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.id * 2


class Reading(pydantic.BaseModel):
    value: float
    note: str | None = None


@dataclass
class Team:
    lead: User
    members: list[User]


T = TypeVar("T")


class Box(msgspec.Struct, Generic[T]):
    value: T


ORDER = Order(
    7,
    dt.datetime(2024, 2, 29, tzinfo=dt.UTC),
    decimal.Decimal("1.10"),
    uuid.UUID(int=5),
    by_id={1: "x"},
)
ANN = User(userId=1, born=dt.date(2000, 1, 1))

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def nested(levels: int) -> Any:
    value: Any = 0
    for level in range(levels):
        value = [value] if level % 2 else {"a": value}
    return value


def refused(value: Any, bytes_max: int = MIB) -> str:
    with pytest.raises(NotEncodable) as error:
        encode(value, "t", bytes_max)
    assert error.value.task == "t"
    return error.value.reason


# What comes back.


@given(plain)
def test_plain_json_comes_back_equal(value):
    assert decode_plain(encode(value, "t", MIB)) == value


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (ORDER, Order),
        (Page(1, ("a", "b")), Page),
        (Drawing([Circle(1.0), Square(2.0)]), Drawing),
        (Circle(1.5), Circle | Square),
        ({"user": "ann", "roles": ["x"]}, Login),
        (Parcel(1.5, ["fragile"]), Parcel),
        (Point(1, 2), Point),
        (ANN, User),
        (Team(ANN, [ANN, ANN]), Team),
        (Box(3), Box[int]),
    ],
)
def test_a_typed_payload_comes_back_as_its_type(value, kind):
    back = decoder(kind, "t")(encode(value, "t", MIB))

    assert back == value
    assert type(back) is type(value)


@given(st.builds(Inner, st.sets(st.text()), st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_fields_come_back_by_annotation(value):
    """A set is no JSON, but a field that says `set` reads the list as one."""
    assert decoder(Inner)(encode(value, "t", MIB)) == value


@given(st.integers())
def test_integers_of_any_size_come_back(value):
    assert decode_plain(encode([value], "t", MIB)) == [value]


def test_a_pydantic_model_can_be_read_by_field_name_and_by_alias():
    assert decoder(User)('{"userId": 3}') == decoder(User)('{"id": 3}')


def test_none_is_a_payload_and_no_result():
    assert encode(None, "t", MIB) == "null"
    assert encode_result(None, MIB) is None
    assert encode_result([ANN.id], MIB) == "[1]"


# What is refused.


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("wrap", "place"),
    [
        (lambda n: n, "$"),
        (lambda n: [None, n], "$[1]"),
        (lambda n: {"a": {"b": (1, n)}}, "$.a.b[1]"),
        (lambda n: Inner(set(), n), "$.ratio"),
        (Circle, "$.radius"),
        (Parcel, "$.weight"),
        (lambda n: Drawing([Circle(1.0), Square(n)]), "$.shapes[1].side"),
        (lambda n: Box([Reading(value=n)]), "$.value[0].value"),
    ],
)
def test_a_number_that_json_lacks_is_refused_with_its_place(number, wrap, place):
    """Encoders write null in silence, and the job would run with a None."""
    assert f"(at {place})" in refused(wrap(number))


@pytest.mark.parametrize("mode", ["constants", "null"])
def test_a_pydantic_model_cannot_store_nan(mode):
    class Told(Reading, ser_json_inf_nan=mode):
        pass

    assert "JSON" in refused(Told(value=math.nan))


def test_a_null_is_not_taken_for_a_nan():
    assert encode({"a": None, "b": "null", "c": 1.5}, "t", MIB)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": {1, 2}}, "a set would come back as a list"),
        ({1, 2}, "a set would come back as a list"),
        ([{1: 2}], "the key 1 is a int"),
        ({"a": {None: 1}}, "the key None"),
        ({(1, 2): 1}, "the key (1, 2)"),
        ("\ud800", "surrogate"),
        ({"a": ["\udfff"]}, "(at $.a[0])"),
        ({"\ud800": 1}, "surrogate"),
        ({"a": [object()]}, "a value of type object has no JSON (at $.a[0])"),
        (lambda: 1, "a value of type function"),
        (Box(object()), "(at $.value)"),
        (1j, "complex"),
        pytest.param(10**5000, "limit", id="huge"),
    ],
)
def test_what_has_no_faithful_json_is_refused_with_a_reason(value, reason):
    assert reason in refused(value)


def test_a_payload_that_holds_itself_is_refused():
    loop: list[Any] = []
    loop.append({"again": loop})

    assert "refers to itself" in refused(loop)


@given(st.integers(0, DEPTH_MAX + 8))
def test_nesting_is_allowed_up_to_the_limit(levels):
    fits = levels <= DEPTH_MAX
    with contextlib.nullcontext() if fits else pytest.raises(NotEncodable, match="nests deeper"):
        encode(nested(levels), "t", MIB)


@pytest.mark.parametrize("text", ["[" * 100, '"[' * 100, "\\", '\\"[{' * 50, "]" * 100])
def test_brackets_in_strings_are_no_nesting(text):
    assert decode_plain(encode([text, {text: text}], "t", MIB)) == [text, {text: text}]


@pytest.mark.parametrize("text", ['"', "\\", '\\"', "]" * 99, "}]" * 99])
def test_strings_cannot_hide_nesting(text):
    """Closing brackets in strings do not make up for open ones."""
    value = nested(DEPTH_MAX)

    assert "nests deeper" in refused([text, value, text])


def test_wide_is_not_deep():
    assert encode([[{"a": []}] for _ in range(1000)], "t", MIB)


def test_a_payload_100_000_levels_deep_is_refused_on_both_sides():
    assert "nests deeper" in refused(nested(100_000))
    with pytest.raises(NotDecodable, match="deep"):
        decoder(Any, "t")("[" * 100_000)


@pytest.mark.parametrize("limit", [2, 3, 100])
def test_a_payload_may_be_exactly_as_large_as_the_limit(limit):
    for size in range(limit + 2):
        text = "x" * (size - 2)
        if size <= limit:
            assert len(encode(text, "t", limit)) == max(size, 2)
        else:
            assert f"{size:,} bytes of JSON, and the limit is {limit:,}" in refused(text, limit)


def test_the_limit_counts_bytes_not_characters():
    assert "6 bytes" in refused("éé", 5)


def test_a_dumper_that_raises_is_reported_not_passed_on():
    class Odd(pydantic.BaseModel):
        x: int

        @pydantic.field_serializer("x")
        def _(self, value: int) -> int:
            raise ZeroDivisionError

    assert "ZeroDivisionError" in refused(Odd(x=1))


# What cannot be read.


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "3", '{"number": "1"}', "{}", '{"number": 1} x', '"\ud800"', "[" * 99_999],
)
def test_what_does_not_fit_is_an_error_of_one_kind(text):
    with pytest.raises(NotDecodable) as error:
        decoder(Page)(text)

    assert error.value.task == "Page"
    assert error.value.__cause__ is not None


@given(st.text())
def test_no_text_makes_a_decoder_raise_anything_else(text):
    for kind in (Order, User, Login, Parcel, Any):
        with contextlib.suppress(NotDecodable):
            decoder(kind, "t")(text)


def test_the_error_names_the_place():
    with pytest.raises(NotDecodable, match=r"Expected `int`, got `str` - at `\$\.number`"):
        decoder(Page)('{"number": "1"}')


def test_the_error_of_a_pydantic_model_does_not_quote_the_payload():
    """Payloads hold secrets, and errors go into logs."""
    with pytest.raises(NotDecodable) as error:
        decoder(User)('{"id": "hunter2"}')

    assert "hunter2" not in str(error.value)
    assert "integer" in error.value.reason


def test_an_exception_of_post_init_is_a_payload_that_cannot_be_read():
    @dataclass
    class Picky:
        x: int

        def __post_init__(self) -> None:
            raise ZeroDivisionError("no")

    with pytest.raises(NotDecodable, match="ZeroDivisionError: no"):
        decoder(Picky)('{"x": 1}')


@pytest.mark.parametrize("kind", [Order | Inner, Page | Box])
def test_a_union_that_cannot_be_told_apart_is_refused_early(kind):
    with pytest.raises(ConfigError, match="union"):
        decoder(kind, "t")


# Names.


def test_a_local_type_has_its_own_name():
    @dataclass
    class Local:
        class Part: ...

    assert task_name(Local) == "Local"
    assert task_name(Local.Part) == "Local.Part"


@pytest.mark.parametrize("kind", [list[int], Box[int], int | str, "name", type("a b", (), {})])
def test_what_has_no_name_of_its_own_asks_for_one(kind):
    with pytest.raises(ConfigError, match="task="):
        task_name(kind)


@pytest.mark.parametrize("name", ["a", "a.b:c-d_1", "x" * 100])
def test_a_name_is_letters_digits_and_four_marks(name):
    assert check_name(name, "queue") == name


@pytest.mark.parametrize("name", ["", "x" * 101, "a b", "a\n", "ä", "a;", None, 3])
def test_another_name_is_refused(name):
    with pytest.raises(ConfigError, match="queue"):
        check_name(name, "queue")


@pytest.mark.parametrize("kind", [Order, Page, Login, Parcel, Point, User, Box[int]])
def test_a_payload_type_is_known_by_its_looks(kind):
    assert is_payload_type(kind)


@pytest.mark.parametrize("kind", [int, dict, list[int], dict[str, int], object, Colour, Any, 3, "x"])
def test_builtins_and_scalars_are_no_payload_types(kind):
    assert not is_payload_type(kind)


def test_the_error_names_the_limit_that_it_is_about():
    with pytest.raises(NotEncodable, match=r"limit is 3 \(payload_bytes_max\).*send where it is"):
        encode("long", "t", 3)
    with pytest.raises(NotEncodable, match=r"limit is 3 \(result_bytes_max\).*return where it is"):
        encode_result("long", 3)
