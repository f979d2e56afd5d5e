"""Versions of payloads: how they are stated, stored and checked."""

from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import attrs
import msgspec
import pydantic
import pytest

from dutiful import ConfigError, Handler, version
from dutiful.errors import NotDecodable
from dutiful.registry import Registry
from dutiful.versions import checked_task, split, stored_name, task_of, version_of


@version(2)
@dataclass
class Data:
    n: int


@version(2)
@dataclass(slots=True)
class Slotted:
    n: int


@version(2)
class Struct(msgspec.Struct, frozen=True):
    n: int


@version(2)
class Typed(TypedDict):
    n: int


@version(2)
class Tupled(NamedTuple):
    n: int


@version(2)
class Model(pydantic.BaseModel):
    n: int


@version(2)
@attrs.define
class Attrs:
    n: int


class Child(Data):
    pass


@pytest.mark.parametrize("kind", [Data, Slotted, Struct, Typed, Tupled, Model, Attrs])
def test_every_kind_of_payload_type_can_state_its_version(kind):
    registry = Registry({kind: lambda job: job.n})

    assert version_of(kind) == 2
    assert registry.resolve_task(kind) == f"{kind.__name__}@2"


def test_a_subclass_has_a_version_of_its_own():
    assert version_of(Child) == 1


@pytest.mark.parametrize("number", [0, -1, True, 1.0, "2", None, 10_000])
def test_what_is_no_version_is_refused(number):
    with pytest.raises(ConfigError, match="whole number from 1"):
        version(number)


@pytest.mark.parametrize(
    ("stored", "task", "number"),
    [
        ("a", "a", 1),
        ("a@2", "a", 2),
        ("a@1", "a", 1),
        ("a@01", "a@01", 1),
        ("a@x", "a@x", 1),
        ("@2", "@2", 1),
    ],
)
def test_a_stored_name_has_the_version_behind_the_task(stored, task, number):
    assert split(stored) == (task, number)
    assert task_of(stored) == task


def test_version_1_is_stored_under_the_bare_name():
    assert stored_name("a", 1) == checked_task("a@1") == checked_task("a") == "a"


@pytest.mark.parametrize("task", ["a@", "a@0", "a@x", "@2", "a@10000", "a@2@3", "a b@2"])
def test_a_task_with_a_wrong_version_is_refused(task):
    with pytest.raises(ConfigError):
        checked_task(task)


def test_a_payload_type_states_its_version_itself():
    with pytest.raises(ConfigError, match=r"@dutiful\.version\(3\)"):
        Registry({Data: Handler(lambda job: None, version=3)})


def test_process_has_no_version():
    with pytest.raises(ConfigError, match="drop"):
        Registry().process(lambda payload: None, version=2)


def test_a_handler_runs_its_version_and_all_before():
    registry = Registry({Data: lambda job: job.n, "named": Handler(lambda n: n, version=3)})

    assert registry.tasks() == {"Data", "Data@2", "named", "named@2", "named@3"}
    assert all(registry.entry(task) is not None for task in registry.tasks())
    assert registry.entry("Data@3") is registry.entry("named@4") is None
    assert registry.versions_of(["Data", "other"]) == {"Data", "Data@2", "other"}


def test_a_newer_version_is_unknown_to_process_too():
    registry = Registry()
    registry.process(lambda payload: payload)

    assert registry.entry("anything") is not None
    assert registry.entry("anything@2") is None


def test_an_alias_has_the_versions_of_its_task():
    registry = Registry({Data: Handler(lambda job: job.n, aliases=["Old"])})

    assert registry.resolve_task("Old") == "Old@2"
    assert registry.entry("Old") is not None


def test_a_subclass_runs_in_its_own_version_by_the_handler_of_its_base():
    registry = Registry({Data: lambda job: job.n})

    assert registry.task_of(Child(1)) == "Child"
    assert registry.entry("Child@2") is None


# --- upgrades ------------------------------------------------------------------------------------


def upgraded(registry, stored, text):
    """Return what the handler of a stored job is given."""
    entry = registry.entry(stored)
    (argument,), _ = entry.arguments(entry.upgrade.text(text))
    return argument


def test_upgrades_are_chained():
    registry = Registry({"t": Handler(lambda payload: payload, version=3)})
    registry.upgrade("t", 1, lambda old: {**old, "two": True})
    registry.upgrade("t", 2, lambda old: {**old, "three": True})

    assert upgraded(registry, "t", '{"one":true}') == {"one": True, "two": True, "three": True}
    assert upgraded(registry, "t@2", '{"one":true}') == {"one": True, "three": True}
    assert registry.entry("t@3").upgrade is None


def test_a_version_without_an_upgrade_is_passed_on_as_it_is():
    registry = Registry({"t": Handler(lambda payload: payload, version=3)})
    registry.upgrade("t", 2, lambda old: {**old, "three": True})

    assert upgraded(registry, "t", '{"one":true}') == {"one": True, "three": True}


def test_an_upgrade_may_return_the_payload_type():
    registry = Registry({Data: lambda job: job})
    registry.upgrade(Data, 1, lambda old: Data(old["number"]))

    assert upgraded(registry, "Data", '{"number":7}') == Data(7)


def test_an_upgrade_may_come_before_its_handler():
    registry = Registry()
    registry.upgrade("t", 1, lambda old: old + 1)

    registry["t"] = Handler(lambda payload: payload, version=2)

    assert upgraded(registry, "t", "1") == 2


def test_what_an_upgrade_raises_or_cannot_return_makes_the_payload_unreadable():
    registry = Registry({"t": Handler(lambda payload: payload, version=2)})
    registry.upgrade("t", 1, lambda old: old["gone"] if "x" in old else {1, 2}.__class__)

    with pytest.raises(NotDecodable, match=r"upgrade from version 1, .*, raised KeyError: 'gone'"):
        registry.entry("t").upgrade.text('{"x":1}')
    with pytest.raises(NotDecodable, match="what its upgrade returned is no payload"):
        registry.entry("t").upgrade.text('{"y":1}')
    with pytest.raises(NotDecodable, match="no JSON"):
        registry.entry("t").upgrade.text("{")


def test_a_missing_upgrade_is_named():
    registry = Registry({Data: lambda job: job.n})
    error = NotDecodable("Data", "missing field `n`")

    said = str(registry.entry("Data").upgrade.explained(error))

    assert "of version 1, this worker is at version 2, and there is no upgrade from version 1" in said
    assert "missing field `n`" in said


async def later(old):
    return old


@pytest.mark.parametrize("fn", [None, later, lambda: None, lambda old, more: None])
def test_what_cannot_be_an_upgrade_is_refused(fn):
    with pytest.raises(ConfigError, match="upgrade"):
        Registry({Data: print}).upgrade(Data, 1, fn)


def test_an_upgrade_needs_a_newer_version():
    registry = Registry({Data: print, "t": lambda payload: None})

    with pytest.raises(ConfigError, match=r"is of version 2.*@dutiful\.version\(3\)"):
        registry.upgrade(Data, 2, lambda old: old)
    with pytest.raises(ConfigError, match=r"is of version 1.*version=2"):
        registry.upgrade("t", 1, lambda old: old)
    assert registry.entry("t").upgrade is None


def test_a_second_upgrade_from_one_version_is_refused():
    registry = Registry()
    registry.upgrade(Data, 1, lambda old: old)

    with pytest.raises(ConfigError, match="already"):
        registry.upgrade(Data, 1, lambda old: old)
