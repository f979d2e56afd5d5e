"""Every way of saying which function handles what, seen by what runs."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from dutiful import ConfigError, Handler, Retry, UnknownTask
from tests.worker.tools import result


@dataclass
class Note:
    text: str


@dataclass
class Urgent(Note):
    hours: int = 1


@dataclass
class Photo:
    path: str


def by_mapping(worker, handle):
    worker.handlers[Note] = handle


def by_update(worker, handle):
    worker.handlers.update({Note: handle, "other": print})


def by_handler(worker, handle):
    worker.handlers[Note] = Handler(handle, timeout=30, retry=Retry(max_attempts=2))


def by_decorator(worker, handle):
    @worker.handler
    def on_note(note: Note) -> str:
        return handle(note)


def by_decorator_with_options(worker, handle):
    @worker.handler(retry=Retry(max_attempts=5), timeout=30)
    def on_note(note: Note) -> str:
        return handle(note)


def by_async_decorator(worker, handle):
    @worker.handler
    async def on_note(note: Note) -> str:
        return handle(note)


def by_process(worker, handle):
    worker.process(handle)


def by_base(worker, handle):
    worker.process(print)
    worker.handlers[Note] = handle


WAYS = [
    by_mapping,
    by_update,
    by_handler,
    by_decorator,
    by_decorator_with_options,
    by_async_decorator,
    by_process,
    by_base,
]


def text_of(note: Note) -> str:
    return note.text


@pytest.mark.parametrize("register", WAYS)
def test_a_registered_function_gets_the_payload_in_its_own_type(make, store, register):
    worker = make(store)
    register(worker, text_of)
    worker.start()

    assert result(worker.send(Note("a"))) == "a"


@pytest.mark.parametrize("register", WAYS)
def test_a_function_registered_while_the_worker_runs_is_used_at_once(started, register):
    worker = started(":memory:")
    register(worker, text_of)

    assert result(worker.send(Note("a"))) == "a"


def test_handlers_given_at_construction_are_registered(started, store):
    worker = started(store, handlers={Note: text_of, "double": lambda n: 2 * n})

    assert result(worker.send(Note("a"))) == "a"
    assert result(worker.send(4, task="double")) == 8


def test_a_decorated_function_is_still_itself(make):
    worker = make(":memory:")

    assert worker.handler(text_of) is text_of
    assert worker.handler("name")(text_of) is text_of
    assert worker.process(text_of) is text_of


def test_a_named_task_takes_any_json(started, store):
    worker = started(store, handlers={"same": lambda value: value})

    for value in (None, 1, 2.5, "ä", True, [1, [2]], {"a": {"b": None}}):
        assert result(worker.send(value, task="same")) == value


def test_any_and_object_mean_any_json(started, store):
    worker = started(store)

    @worker.handler("any")
    def take_any(it: Any) -> Any:
        return it

    @worker.handler("object")
    def take_object(it: object) -> object:
        return it

    for task in ("any", "object"):
        assert [result(worker.send(value, task=task)) for value in (None, 1, {"a": [1]})] == [
            None,
            1,
            {"a": [1]},
        ]


def test_a_handler_that_is_set_again_gets_the_next_job(started):
    worker = started(":memory:", handlers={"who": lambda _: "old"})
    assert result(worker.send(0, task="who")) == "old"

    worker.handlers["who"] = lambda _: "new"

    assert result(worker.send(0, task="who")) == "new"


def test_the_exact_type_wins_then_a_base_then_process(started, store):
    worker = started(store, handlers={Note: lambda note: f"note {note}"})
    worker.process(lambda other: f"other {other}")

    assert result(worker.send(Urgent("a"))) == f"note {Urgent('a')}"
    assert result(worker.send(Photo("p"))) == f"other {Photo('p')}"
    assert result(worker.send([1])) == "other [1]"
    worker.handlers[Urgent] = lambda note: f"urgent {note}"
    assert result(worker.send(Urgent("a"))) == f"urgent {Urgent('a')}"


def test_a_union_registers_each_of_its_types(started):
    worker = started(":memory:")

    @worker.handler
    def either(it: Note | Photo) -> str:
        return type(it).__name__

    assert [result(worker.send(it)) for it in (Note("a"), Photo("p"))] == ["Note", "Photo"]


def test_a_subclass_sent_by_one_worker_is_itself_in_another(make, started):
    make(handlers={Note: print}).send(Urgent("a", hours=3))

    worker = started(handlers={Note: repr})

    assert result(worker.job(1)) == repr(Urgent("a", hours=3))


def test_a_renamed_class_still_gets_its_old_jobs(make, started):
    def old():
        @dataclass
        class Order:
            number: int

        return Order

    @dataclass
    class Purchase:
        number: int

    before = old()
    job = make(handlers={before: print}).send(before(7))

    worker = started(
        handlers={Purchase: Handler(lambda it: [type(it).__name__, it.number], aliases=["Order"])}
    )

    assert result(worker.job(job.id)) == ["Purchase", 7]
    assert worker.send(Purchase(8)).task == "Purchase"


def test_a_set_task_name_is_what_is_stored(make, started):
    job = make(handlers={Note: Handler(print, task="note.v1")}).send(Note("a"))
    assert job.task == "note.v1"

    @dataclass
    class Renamed:
        text: str

    worker = started(handlers={Renamed: Handler(lambda it: it.text, task="note.v1")})

    assert result(worker.job(job.id)) == "a"


def test_what_cannot_be_registered_is_refused_and_changes_nothing(make):
    worker = make(":memory:", handlers={Note: text_of})
    for wrong in (
        lambda: worker.handler(lambda it: it),
        lambda: worker.handler("a b")(text_of),
        lambda: worker.handler("name", timout=3)(text_of),
        lambda: worker.handler("name", timeout=-1)(text_of),
        lambda: worker.handlers.__setitem__("name", 5),
        lambda: worker.handlers.__setitem__(5, text_of),
        lambda: worker.task(partial(text_of)),
        lambda: worker.process(lambda: None),
        lambda: make(":memory:", handlers={"name": None}),
    ):
        with pytest.raises(ConfigError):
            wrong()
    assert list(worker.handlers) == [Note]
    with pytest.raises(UnknownTask):
        worker.send(Photo("p"))


def test_two_workers_in_one_process_do_not_meet(started):
    one = started(":memory:", handlers={"who": lambda _: "one"})
    two = started(":memory:", handlers={"who": lambda _: "two"})

    assert [result(worker.send(0, task="who")) for worker in (one, two)] == ["one", "two"]
    assert [len(worker.jobs()) for worker in (one, two)] == [1, 1]
