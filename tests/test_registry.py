"""Which handler runs which job, and with which arguments."""

from __future__ import annotations

import datetime as dt
import functools
import threading
from dataclasses import dataclass
from typing import Annotated, Any, NewType, TypedDict

import msgspec
import pydantic
import pytest

from dutiful.core.retry import Retry
from dutiful.errors import ConfigError, NotDecodable, NotEncodable, UnknownTask
from dutiful.handler import Handler, Kind
from dutiful.payload import encode
from dutiful.registry import Registry


class Context:
    """Stands in for dutiful.context.Context, which is known by name and module."""


Context.__module__ = "dutiful.context"


@dataclass
class Animal:
    name: str


@dataclass
class Dog(Animal):
    barks: bool = True


@dataclass(slots=True)
class Puppy(Dog):
    weeks: int = 8


class Order(msgspec.Struct):
    id: int


class User(pydantic.BaseModel):
    id: int


class Login(TypedDict):
    user: str


def echo(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
    return args, kwargs


def on_animal(job: Animal) -> Any:
    return job


def run(registry: Registry, payload: Any, task: str | None = None) -> Any:
    """Send, store, claim and call, as a worker does."""
    name = task or registry.task_of(payload)
    return run_text(registry, name, encode(payload, name, 1000))


def run_text(registry: Registry, task: str, text: str) -> Any:
    entry = registry.entry(task)
    assert entry is not None
    args, kwargs = entry.arguments(text)
    if entry.ctx_name:
        kwargs[entry.ctx_name] = "the context"
    return entry.fn(*args, **kwargs)


# Types.


def test_a_payload_goes_to_the_handler_of_its_type():
    registry = Registry({Order: lambda job: ("order", job), User: lambda job: ("user", job)})

    assert run(registry, Order(1)) == ("order", Order(1))
    assert run(registry, User(id=2)) == ("user", User(id=2))


def test_a_subclass_goes_to_the_nearest_base_and_comes_back_as_itself():
    """What is stored is the subclass's own name, so that no field is lost."""
    registry = Registry({Animal: lambda job: ("animal", job), Dog: lambda job: ("dog", job)})

    assert registry.task_of(Puppy("rex")) == "Puppy"
    assert run(registry, Puppy("rex", weeks=9)) == ("dog", Puppy("rex", weeks=9))
    assert run(registry, Animal("tom")) == ("animal", Animal("tom"))


def test_a_new_process_knows_a_subclass_that_it_has_not_sent():
    registry = Registry({Animal: on_animal})

    assert run_text(registry, "Puppy", '{"name":"rex","weeks":9}') == Puppy("rex", weeks=9)


def test_a_class_that_is_imported_later_is_found_then():
    registry = Registry({Animal: on_animal})
    assert registry.entry("LateCat") is None

    @dataclass
    class LateCat(Animal):
        lives: int = 9

    assert run_text(registry, "LateCat", '{"name":"tom"}') == LateCat("tom")


def test_a_union_registers_each_of_its_types():
    registry = Registry()

    @functools.partial(registry.add, retry=Retry(max_attempts=3))
    def either(job: Animal | Order | None) -> Any:
        return job

    assert set(registry) == {Animal, Order}
    assert run(registry, Order(1)) == Order(1)
    assert registry.entry("Animal").retry == Retry(max_attempts=3)


def test_a_builtin_type_is_for_exactly_that():
    registry = Registry({int: lambda job: job + 1})

    assert run(registry, 1) == 2
    with pytest.raises(UnknownTask):
        registry.task_of(True)


@pytest.mark.parametrize("payload", [{"a": 1}, [1], "text", 5, None, Order(1)])
def test_a_payload_that_nothing_handles_is_refused_with_advice(payload):
    with pytest.raises(UnknownTask, match="task="):
        Registry({Animal: on_animal}).task_of(payload)


def test_a_task_that_looks_alike_is_named():
    @dataclass
    class Ordr:
        id: int

    with pytest.raises(UnknownTask, match="Did you mean 'Order'"):
        Registry({Order: echo}).task_of(Ordr(1))


# Names and aliases.


def test_a_type_can_be_given_another_task_name():
    registry = Registry({Order: Handler(on_animal, task="order.v1")})

    assert registry.task_of(Order(1)) == "order.v1" == registry.resolve_task(Order)
    assert registry.entry("order.v1").payload_type is Order
    assert registry.entry("Order") is None


def test_jobs_of_earlier_names_run_through_aliases():
    registry = Registry({Order: Handler(lambda job: job, aliases=["Purchase", "Buy"])})

    assert registry.tasks() == {"Order", "Purchase", "Buy"}
    assert run_text(registry, "Purchase", '{"id":1}') == Order(1)
    assert registry.entry("Buy").task == "Buy"


def test_two_types_with_one_name_are_refused():
    other = type("Order", (), {"__module__": "elsewhere"})
    registry = Registry({Order: echo})

    with pytest.raises(ConfigError, match=r"task name 'Order'.*task="):
        registry[other] = echo

    assert list(registry) == [Order]
    registry[other] = Handler(echo, task="other")
    assert registry.task_of(other()) == "other"


@pytest.mark.parametrize(
    "handlers",
    [
        {"a": Handler(echo, aliases=["b"]), "b": echo},
        {"a": Handler(echo, aliases=["c"]), "b": Handler(echo, aliases=["c"])},
        {Order: echo, "Order": echo},
        {"a": Handler(echo, task="b")},
        {object: echo},
        {3: echo},
        {"a b": echo},
        {list[int]: echo},
        {Order: Handler(echo, spread=True)},
    ],
)
def test_a_mapping_that_is_not_clear_is_refused(handlers):
    with pytest.raises(ConfigError):
        Registry(handlers)


def test_a_subclass_with_the_name_of_its_base_is_refused_when_sent():
    """It would be stored under the base's name, and lose its fields."""
    namesake = dataclass(type("Animal", (Animal,), {"__module__": "elsewhere"}))

    with pytest.raises(ConfigError, match="same task name, 'Animal'"):
        Registry({Animal: on_animal}).task_of(namesake("x"))


def test_two_subclasses_with_one_name_are_refused_when_sent():
    first = dataclass(type("Twin", (Animal,), {"__module__": "one"}))
    second = dataclass(type("Twin", (Animal,), {"__module__": "two"}))

    with pytest.raises(ConfigError, match="same task name, 'Twin'"):
        Registry({Animal: on_animal}).task_of(first("x"))
    assert second


def test_a_subclass_that_could_not_be_decoded_is_refused_when_sent():
    @dataclass
    class Vague(Animal):
        either: Dog | Puppy | None = None

    Vague.__annotations__["either"] = Dog | Puppy

    with pytest.raises(NotEncodable, match="decoded again"):
        Registry({Animal: on_animal}).task_of(Vague("x"))


def test_resolve_task_takes_a_type_or_a_name():
    registry = Registry()

    assert registry.resolve_task(Order) == "Order"
    assert registry.resolve_task("elsewhere") == "elsewhere"
    with pytest.raises(ConfigError):
        registry.resolve_task("no name")


# The mapping.


def test_it_is_a_mapping():
    registry = Registry({"a": echo})
    registry[Order] = Handler(echo)

    assert list(registry) == ["a", Order]
    assert len(registry) == 2
    assert registry["a"] == Handler(echo)
    assert "b" not in registry
    del registry["a"]
    assert registry.entry("a") is None
    with pytest.raises(KeyError):
        del registry["a"]


def test_a_key_that_is_set_again_gets_the_new_handler():
    registry = Registry({Order: lambda job: "old"})
    assert run(registry, Order(1)) == "old"

    registry[Order] = lambda job: "new"

    assert run(registry, Order(1)) == "new"


def test_a_type_that_loses_its_handler_is_unknown_again():
    registry = Registry({Order: echo})
    assert registry.task_of(Order(1)) == "Order"

    del registry[Order]

    with pytest.raises(UnknownTask):
        registry.task_of(Order(1))


def test_readers_see_all_of_a_change_or_nothing():
    registry = Registry({"a": echo, Order: echo})
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if registry.entry("a") is None or registry.task_of(Order(1)) != "Order":
                wrong.append(registry.tasks())

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number in range(300):
        registry[f"b{number % 5}"] = echo
        registry["a"] = echo
    stop.set()
    for reader in readers:
        reader.join()

    assert not wrong


# process: the handler of all others.


def test_process_gets_what_has_no_handler_of_its_own():
    registry = Registry({Order: lambda job: "order"})
    registry.process(lambda job: job)

    assert run(registry, Order(1)) == "order"
    assert run(registry, Animal("tom")) == Animal("tom")
    assert run(registry, {"a": 1}) == {"a": 1}
    assert run(registry, "text") == "text"
    assert run(registry, [None], task="whatever") == [None]


def test_process_decodes_into_its_annotation_after_a_restart():
    registry = Registry()
    registry.process(on_animal)

    assert run_text(registry, "Dog", '{"name":"rex","barks":false}') == Dog("rex", barks=False)
    assert run_text(registry, "Wolf", '{"name":"rex"}') == Animal("rex")


def test_process_chooses_from_a_union_by_the_task():
    registry = Registry()

    def either(job: Order | Animal | dict[str, Any]) -> Any:
        return job

    registry.process(either)

    assert run_text(registry, "Order", '{"id":1}') == Order(1)
    assert run_text(registry, "dict", '{"id":1}') == {"id": 1}


def test_process_decodes_into_plain_values_until_it_has_seen_the_type():
    registry = Registry()
    registry.process(lambda job: job)
    assert run_text(registry, "Order", '{"id":1}') == {"id": 1}

    registry.task_of(Order(1))

    assert run_text(registry, "Order", '{"id":1}') == Order(1)


def test_process_takes_one_payload_and_no_names():
    registry = Registry()
    for bad in [lambda: 1, lambda a, b: 1]:
        with pytest.raises(ConfigError, match="one argument"):
            registry.process(bad)
    with pytest.raises(ConfigError, match="task="):
        registry.process(echo, task="x")
    assert registry.fallback is None


# Signatures.


def test_a_handler_by_name_gets_what_its_parameters_ask_for():
    def none() -> None: ...
    def bare(job): ...
    def anything(job: Any): ...
    def mapping(job: dict[str, int]): ...
    def several(job: list[int] | None): ...
    def typed(job: Order): ...
    def login(job: Login): ...
    def number(x: int): ...
    def when(at: dt.date): ...
    def two(x: int, y: str = "y"): ...
    def named(*, x: float): ...
    def first(x: int, /, y: int = 0): ...
    def extra(x: int, **more): ...

    table = [
        (none, "null", (), {}),
        (none, " {} ", (), {}),
        (bare, "[1]", ([1],), {}),
        (anything, '{"a":1}', ({"a": 1},), {}),
        (mapping, '{"a":1}', ({"a": 1},), {}),
        (several, "[1]", ([1],), {}),
        (several, "null", (None,), {}),
        (typed, '{"id":1}', (Order(1),), {}),
        (login, '{"user":"ann"}', ({"user": "ann"},), {}),
        (number, '{"x":1}', (), {"x": 1}),
        (number, "1", (1,), {}),
        (when, '"2024-02-29"', (dt.date(2024, 2, 29),), {}),
        (when, ' {"at":"2024-02-29"}', (), {"at": dt.date(2024, 2, 29)}),
        (two, '{"x":1}', (), {"x": 1}),
        (two, '{"y":"z","x":1}', (), {"x": 1, "y": "z"}),
        (named, "1.5", (), {"x": 1.5}),
        (first, '{"x":1,"y":2}', (1,), {"y": 2}),
        (extra, '{"x":1,"z":[2]}', (), {"x": 1, "z": [2]}),
        (echo, '{"x":1}', ({"x": 1},), {}),
        (print, '{"x":1}', ({"x": 1},), {}),
        (max, "[1,2]", ([1, 2],), {}),
    ]
    for fn, text, args, kwargs in table:
        assert Registry({"t": fn}).entry("t").arguments(text) == (args, kwargs), (fn, text)


def test_a_payload_that_does_not_fit_the_parameters_says_how():
    def none() -> None: ...
    def number(x: int): ...
    def two(x: int, y: str = "y"): ...
    def typed(job: Order): ...

    table = [
        (none, "3", "takes no arguments"),
        (number, '"1"', "Expected `int`"),
        (number, "{}", "missing required field `x`"),
        (two, '{"x":1,"z":2}', "unknown field `z`"),
        (two, '{"x":"1"}', r"Expected `int`, got `str` - at `\$\.x`"),
        (two, "[1]", "Expected `object`"),
        (typed, "{}", "missing required field `id`"),
    ]
    for fn, text, reason in table:
        with pytest.raises(NotDecodable, match=reason) as error:
            Registry({"t": fn}).entry("t").arguments(text)
        assert error.value.task == "t"


def test_the_default_of_a_parameter_stays_the_functions_own():
    default = object()

    def find(x: int, how: Any = default):
        return how

    assert run(Registry({"t": find}), {"x": 1}, "t") is default


def test_spread_takes_even_one_parameter_by_name():
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    assert run(Registry({"t": Handler(total, spread=True)}), {"numbers": [1, 2]}, "t") == 3


def test_the_context_is_no_part_of_the_payload():
    def by_name(ctx, job): ...
    def by_type(job: Order, what: Context): ...
    def by_text(job: Order, *, what: "dutiful.Context"): ...  # noqa: F821, UP037
    def only(ctx: Context): ...
    def spread(x: int, it: Context, y: int): ...

    for fn, ctx_name, text, args, kwargs in [
        (by_name, "ctx", '{"id":1}', (), {"job": {"id": 1}}),
        (by_type, "what", '{"id":1}', (Order(1),), {}),
        (by_text, "what", '{"id":1}', (Order(1),), {}),
        (only, "ctx", "null", (), {}),
        (spread, "it", '{"x":1,"y":2}', (), {"x": 1, "y": 2}),
    ]:
        entry = Registry({"t": fn}).entry("t")
        assert entry.ctx_name == ctx_name
        assert entry.arguments(text) == (args, kwargs)
    run(Registry({Order: lambda ctx, job: None}), Order(1))


def test_a_context_that_cannot_be_given_by_name_is_refused():
    for fn in [lambda ctx, /: 1, lambda ctx, *args: 1]:
        with pytest.raises(ConfigError, match="ctx"):
            Handler(fn)


def test_the_handler_of_a_type_takes_one_payload():
    for fn in [lambda: 1, lambda a, b: 1]:
        with pytest.raises(ConfigError, match="one argument"):
            Registry({Order: fn})
    assert run(Registry({Order: lambda job, dry=True: dry}), Order(1))
    assert run(Registry({Order: lambda *, job: job}), Order(1)) == Order(1)


def test_types_made_inside_a_function_are_found():
    @dataclass
    class Local:
        x: int

    def handle(job: Local) -> Any:
        return job

    registry = Registry()
    registry.add(handle)

    assert run(registry, Local(1)) == Local(1)


def test_an_annotation_that_nobody_knows_is_refused_with_advice():
    def handle(job: Nowhere): ...  # noqa: F821

    with pytest.raises(ConfigError, match=r"'Nowhere'.*module level"):
        Handler(handle)


def test_a_type_that_the_body_uses_is_found_after_its_function_has_returned():
    def make() -> Any:
        @dataclass
        class Local:
            x: int

        def handle(job: Local) -> bool:
            return isinstance(job, Local)

        return handle

    assert run(Registry({"t": make()}), {"x": 1}, "t") is True


def test_unions_aliases_and_new_types_are_seen_through():
    named = NewType("named", Animal)

    def handle(job: Annotated[named | None, "a note"]): ...

    assert Registry({"t": handle}).entry("t").arguments('{"name":"tom"}') == ((Animal("tom"),), {})


def test_the_return_annotation_does_not_matter():
    def handle(job: Order) -> Nowhere: ...  # noqa: F821

    assert Registry({"t": handle}).entry("t").payload_type is Order


def test_methods_partials_and_callable_objects_are_handlers():
    class Shop:
        def buy(self, job: Order) -> Any:
            return job

        def __call__(self, job: Order) -> Any:
            return job

    def two(prefix: str, job: Order) -> Any:
        return job

    for fn in [Shop().buy, Shop(), functools.partial(two, "x")]:
        assert run(Registry({"t": fn}), {"id": 1}, "t") == Order(1)


# Kinds and options.


def test_async_functions_are_known_in_all_their_forms():
    async def f(job): ...

    class Caller:
        async def __call__(self, job): ...

        async def method(self, job): ...

    for fn in [f, functools.partial(f), Caller(), Caller().method, functools.partial(Caller())]:
        assert Handler(fn).kind is Kind.ASYNC
        with pytest.raises(ConfigError, match="async"):
            Handler(fn, process=True)
    assert Handler(echo).kind is Kind.THREAD
    assert Handler(echo, process=True).kind is Kind.PROCESS


@pytest.mark.parametrize(
    "options",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": float("inf")},
        {"queue": "a b"},
        {"task": ""},
        {"aliases": ["ä"]},
        {"aliases": "abc"},
        {"fn": 3},
    ],
)
def test_a_wrong_option_is_refused_at_once(options):
    with pytest.raises(ConfigError):
        Handler(**({"fn": echo} | options))


def test_options_reach_the_entry():
    handler = Handler(echo, retry=Retry(2), timeout=1.5, process=True, queue="cpu")

    entry = Registry({"t": handler}).entry("t")

    assert (entry.task, entry.fn, entry.kind) == ("t", echo, Kind.PROCESS)
    assert (entry.retry, entry.timeout_s, entry.queue) == (Retry(2), 1.5, "cpu")


# add: what the decorator does.


def test_add_takes_the_type_from_the_annotation_or_a_name():
    registry = Registry()
    registry.add(on_animal)
    registry.add(on_animal, task="named")
    registry.add(echo, types=[Order], task="order.v2", aliases=["Order"])

    assert registry.tasks() == {"Animal", "named", "order.v2", "Order"}
    assert registry.task_of(Order(1)) == "order.v2"


@pytest.mark.parametrize(
    "fn",
    [lambda job: 1, lambda: 1, print, functools.partial(int, base=2)],
    ids=["lambda", "no parameter", "builtin", "partial"],
)
def test_add_without_a_type_or_name_says_what_to_write(fn):
    with pytest.raises(ConfigError, match=r"@worker\.handler"):
        Registry().add(fn)


def test_a_scalar_annotation_needs_a_name():
    def double(x: int): ...

    with pytest.raises(ConfigError, match=r'@worker.handler\("double"\)'):
        Registry().add(double)


def test_an_unknown_option_names_the_near_one():
    with pytest.raises(ConfigError, match="did you mean timeout"):
        Registry().add(on_animal, timeouts=3)
