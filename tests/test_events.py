"""One event per fact; a log line is a subscriber, and a bad subscriber harms nobody."""

from __future__ import annotations

import logging

import msgspec
import pytest

from dutiful import events
from dutiful.events import Event, Events

SAMPLES: dict[type, object] = {
    str: "word",
    int: 7,
    float: 1.5,
    tuple[str, ...]: ("a", "b"),
    dict[str, int]: {"odd": 2, "strange": 3},
}


def _kinds() -> list[type[Event]]:
    return sorted(Event.__subclasses__(), key=lambda kind: kind.__name__)


def _sample(kind: type[Event]) -> Event:
    fields = {field.name: SAMPLES.get(field.type, 7) for field in msgspec.structs.fields(kind)}
    return kind(**fields)


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_each_event_is_one_line_in_the_log(kind: type[Event], caplog: pytest.LogCaptureFixture) -> None:
    """Of INFO or worse, under the one logger's name, and with the job's id if it is about a job."""
    event = _sample(kind)
    caplog.set_level(logging.INFO, logger="dutiful")

    Events().emit(event)

    (record,) = caplog.records
    text = record.getMessage()
    assert record.name == "dutiful"
    assert "\n" not in text
    assert not hasattr(event, "job_id") or "job 7" in text


@pytest.mark.parametrize("kind", _kinds(), ids=lambda kind: kind.__name__)
def test_no_event_carries_a_payload_or_a_result(kind: type[Event]) -> None:
    names = {field.name for field in msgspec.structs.fields(kind)}

    assert names.isdisjoint({"payload", "payloads", "result", "value", "traceback"})


def test_each_listener_hears_in_order() -> None:
    heard: list[str] = []
    bus = Events()
    bus.add(lambda event: heard.append("first"))
    bus.add(lambda event: heard.append("second"))

    bus.emit(_sample(events.WorkerStopped))

    assert heard == ["first", "second"]


def test_a_listener_that_fails_is_logged_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    bus = Events()

    def fail(event: Event) -> None:
        raise ValueError("bad listener")

    bus.add(fail)
    bus.add(heard.append)
    event = _sample(events.JobDead)

    bus.emit(event)

    assert heard == [event]
    assert any("listener failed on JobDead" in record.getMessage() for record in caplog.records)


def test_a_listener_may_be_added_while_others_hear() -> None:
    bus = Events()
    heard: list[Event] = []
    bus.add(lambda event: bus.add(heard.append))

    bus.emit(_sample(events.JobDead))
    assert heard == []
    bus.emit(_sample(events.JobDead))

    assert len(heard) == 1
