"""
Which handler runs a task.

The rules of types: the handler of a payload's exact type wins, then that of its nearest
base class, then `process`. What is stored is the name of the payload's own type, so that
a restart decodes into the subclass and not into the base.
"""

import types
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from dutiful.errors import ConfigError
from dutiful.handler import Entry, Handler
from dutiful.payload import check_name, task_name
from dutiful.signature import Asks, members

Key: TypeAlias = type | str

PLAIN: Mapping[str, type] = types.MappingProxyType(
    {kind.__name__: kind for kind in (dict, list, tuple, str, int, float, bool, bytes)}
)


class Table:
    """All handlers at one moment, and what was found out about them since."""

    __slots__ = ("_fallback_entries", "_names", "entries", "fallback", "handlers", "has_batches", "sent")

    def __init__(self, handlers: Mapping[Key, Handler], fallback: Handler | None) -> None:
        self.handlers = handlers
        self.fallback = fallback
        every = [*handlers.values(), *([] if fallback is None else [fallback])]
        self.has_batches = any(handler.batch is not None for handler in every)
        self.sent: dict[type, str] = {}
        self.entries: dict[str, Entry] = {}
        self._fallback_entries: dict[tuple[str, type | None], Entry] = {}
        self._names: dict[str, Key] = {}
        for key, handler in handlers.items():
            for name in (name_of(key, handler), *handler.aliases):
                self._claim(name, key)

    def _claim(self, name: str, key: Key) -> None:
        owner = self._names.setdefault(name, key)
        if owner != key:
            raise ConfigError(
                f"two handlers have the task name {name!r}: that of {owner!r} and that of "
                f'{key!r}. Give one its own: Handler(function, task="another-name"), or mend aliases.'
            )

    @property
    def names(self) -> Mapping[str, Key]:
        return self._names

    def owner_of(self, payload_type: type) -> type | None:
        """Return the type whose handler takes this one: itself, or its nearest base."""
        if payload_type in self.handlers:
            return payload_type
        for base in payload_type.__mro__[1:]:
            # A builtin is for exactly that: bool must not go where int is handled.
            if base in self.handlers and base.__module__ != "builtins":
                return base
        return None

    def subclasses_named(self, name: str) -> list[type]:
        """Return the subclasses of registered types with this task name, newest last."""
        found: dict[tuple[str, str], type] = {}
        for key in self.handlers:
            if isinstance(key, type) and key.__module__ != "builtins":
                for each in _descendants(key):
                    if each.__qualname__.rpartition("<locals>.")[2] == name:
                        # @dataclass(slots=True) leaves a first draft of the class behind.
                        found[each.__module__, each.__qualname__] = each
        return list(found.values())

    def find(self, task: str, seen: type | None) -> Entry | None:
        """Return what runs `task`, of which `seen` was sent: by name, alias, subclass, or `process`."""
        found = self._named(task) or self._inherited(task)
        if found is None:
            # Not cached with the others: an import may yet bring the class, and its base's handler.
            return self._fallen_back(task, seen)
        self.entries[task] = found
        return found

    def _named(self, task: str) -> Entry | None:
        key = self._names.get(task)
        if key is None:
            return None
        return Entry(task, self.handlers[key], None if isinstance(key, str) else key)

    def _inherited(self, task: str) -> Entry | None:
        found = self.subclasses_named(task)
        if not found:
            return None
        owner = self.owner_of(found[-1])
        return None if owner is None else Entry(task, self.handlers[owner], found[-1])

    def _fallen_back(self, task: str, seen: type | None) -> Entry | None:
        if self.fallback is None:
            return None
        seen = PLAIN.get(task) or seen
        entry = self._fallback_entries.get((task, seen))
        if entry is None:
            wanted = _fallback_type(self.fallback.asks, task, seen)
            entry = self._fallback_entries[task, seen] = Entry(task, self.fallback, wanted)
        return entry


def _descendants(base: type) -> Iterator[type]:
    # Through `type`: the method of a metaclass would want an argument.
    children: list[type] = type.__subclasses__(base)
    for child in children:
        yield child
        yield from _descendants(child)


def name_of(key: Key, handler: Handler) -> str:
    """Return the task name of the jobs for `key`. Raises `ConfigError` if it is not clear."""
    if isinstance(key, str):
        if handler.task not in (None, key):
            raise ConfigError(
                f"handlers[{key!r}] has task={handler.task!r}; drop task=, or use aliases= for old names."
            )
        return check_name(key, "task")
    if handler.spread:
        raise ConfigError(f"spread=True is for named tasks, not for the payload type {key!r}.")
    return handler.task if handler.task is not None else task_name(key)


def _fallback_type(asks: Asks, task: str, seen: type | None) -> Any:
    """Return what `process` decodes a task into: within its annotation, or what was sent here."""
    annotation = asks.parameters[0].annotation if asks.parameters else Any
    for each in asks.payload_types:
        for kind in (each, *_descendants(each)):
            if kind is seen or kind.__qualname__.rpartition("<locals>.")[2] == task:
                return kind
    if annotation is not object and len(list(members(annotation))) == 1:
        return seen if annotation is Any and seen is not None else annotation
    return seen if seen is not None else Any
