"""Secret values: never shown, stored with a mark, read back by annotation."""

import copy
import json
import pickle
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from dutiful import NotDecodable, NotEncodable, Secret
from dutiful.payload import decoder, encode
from dutiful.secret import masked, revealed

MIB = 1024 * 1024


@dataclass
class Data:
    user: str
    token: Secret[str]


class Struct(msgspec.Struct):
    user: str
    token: Secret[str]


class Typed(TypedDict):
    user: str
    token: Secret[str]


class Tupled(NamedTuple):
    user: str
    token: Secret[str]


@attrs.define
class Attrs:
    user: str
    token: Secret[str]


class Model(pydantic.BaseModel):
    user: str
    token: Secret[str]


@pytest.mark.parametrize("kind", [Data, Struct, Attrs, Model, Typed, Tupled])
def test_every_kind_of_payload_type_can_hold_one(kind):
    sent = kind(user="ada", token=Secret("hush"))

    text = encode(sent, "t", MIB)
    back = decoder(kind)(text)

    assert back == sent
    assert "hush" in text
    assert "hush" not in masked(text)
    assert "hush" not in repr(back)
    assert "hush" not in str(back)


def test_it_shows_itself_to_nobody_who_does_not_ask():
    secret = Secret("hush")

    assert secret.reveal() == "hush"
    for shown in (str(secret), repr(secret), f"{secret}", f"{secret!r}", f"{secret}", str({1: secret})):
        assert "hush" not in shown


def test_it_compares_hashes_copies_and_pickles_by_its_value():
    secret = Secret("hush")

    assert secret == Secret("hush") == copy.deepcopy(secret) == pickle.loads(pickle.dumps(secret))
    assert secret != Secret("other")
    assert secret != "hush"
    assert {secret: 1}[Secret("hush")] == 1
    assert asdict(Data("ada", secret)) == {"user": "ada", "token": secret}


@dataclass
class Card:
    number: Secret[int]
    until: Secret[date]
    more: list[Secret[dict[str, int]]] = field(default_factory=list)
    bare: Secret | None = None


def test_what_is_in_it_is_validated_as_its_argument_says():
    sent = Card(Secret(4111), Secret(date(2027, 1, 31)), [Secret({"cvc": 123})], Secret([1]))

    assert decoder(Card)(encode(sent, "t", MIB)) == sent


def test_a_wrong_value_is_refused_without_being_told():
    with pytest.raises(NotDecodable) as caught:
        decoder(Card)('{"number":{"$secret":"hush"},"until":"2027-01-31"}')

    assert "Expected a secret `int` - at `$.number`" in str(caught.value)
    error = caught.value
    while error is not None:
        assert "hush" not in str(error)
        error = error.__cause__


def test_a_bare_value_is_read_as_a_secret():
    """A job that was sent before the field became one, or by hand."""
    assert decoder(Data)('{"user":"ada","token":"hush"}') == Data("ada", Secret("hush"))
    assert decoder(Model)('{"user":"ada","token":"hush"}').token == Secret("hush")


def test_nan_is_refused_in_it_too():
    with pytest.raises(NotEncodable, match="nan"):
        encode(Card(Secret(float("nan")), Secret(date(2027, 1, 1))), "t", MIB)


def test_pydantics_own_secrets_are_refused_rather_than_stored_as_asterisks():
    class Login(pydantic.BaseModel):
        user: str
        password: pydantic.SecretStr

    with pytest.raises(NotEncodable, match=r"dutiful\.Secret"):
        encode(Login(user="ada", password="hush"), "t", MIB)


# --- showing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ('{"a":{"$secret":"x"},"b":1}', {"a": "***", "b": 1}),
        ('[{"$secret":{"deep":[1]}},{"c":{"$secret":null}}]', ["***", {"c": "***"}]),
        ('{"$secret":1,"other":2}', {"$secret": 1, "other": 2}),
        ("secret:[1,2]", "***"),
        ('{"plain":1}', {"plain": 1}),
    ],
)
def test_what_is_marked_is_masked(text, shown):
    assert json.loads(masked(text)) == shown


def test_what_is_no_json_but_looks_marked_is_masked_as_a_whole():
    assert masked('{"$secret":') == '"***"'


def test_what_is_revealed_has_no_marks():
    assert revealed('secret:{"a":{"$secret":{"b":{"$secret":1}}}}') == '{"a":{"b":1}}'
