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
from dutiful.versions import Upgrade, Upgrades, parted, sealed_name, split, stored_name, version_of

Key: TypeAlias = type | str

PLAIN: Mapping[str, type] = types.MappingProxyType(
    {kind.__name__: kind for kind in (dict, list, tuple, str, int, float, bool, bytes)}
)


class Table:
    """All handlers at one moment, and what was found out about them since."""

    __slots__ = (
        "_fallback_entries",
        "_names",
        "current",
        "entries",
        "fallback",
        "handlers",
        "has_batches",
        "keys",
        "sent",
        "upgrades",
    )

    def __init__(
        self,
        handlers: Mapping[Key, Handler],
        fallback: Handler | None,
        upgrades: Mapping[Key, Upgrades] = types.MappingProxyType({}),
        keys: frozenset[str] = frozenset(),
    ) -> None:
        self.handlers = handlers
        self.fallback = fallback
        self.upgrades = upgrades
        self.keys = keys  # the ids of those that are here
        every = [*handlers.values(), *([] if fallback is None else [fallback])]
        self.has_batches = any(handler.batch is not None for handler in every)
        self.sent: dict[type, str] = {}
        self.entries: dict[str, Entry] = {}
        self._fallback_entries: dict[tuple[str, int, type | None], Entry] = {}
        self._names: dict[str, Key] = {}
        for key, handler in handlers.items():
            for name in (name_of(key, handler), *handler.aliases):
                self._claim(name, key)
        # What `send(task=…)` stores: with the version that the handler here is for.
        self.current: dict[str, str] = {
            name: stored_name(name, _version_at(key, handlers[key])) for name, key in self._names.items()
        }
        for key, steps in upgrades.items():
            self._check_upgrades(key, steps)

    def _claim(self, name: str, key: Key) -> None:
        owner = self._names.setdefault(name, key)
        if owner != key:
            raise ConfigError(
                f"two handlers have the task name {name!r}: that of {owner!r} and that of "
                f'{key!r}. Give one its own: Handler(function, task="another-name"), or mend aliases.'
            )

    def _check_upgrades(self, key: Key, steps: Upgrades) -> None:
        if isinstance(key, str):
            if key not in self._names:  # its handler may come later
                return
            current, hint = (
                split(self.current[key])[1],
                f"version={max(steps) + 1} where the task is registered",
            )
        else:
            current, hint = version_of(key), f"@dutiful.version({max(steps) + 1}) above the class"
        if max(steps) >= current:
            raise ConfigError(
                f"{key!r} is of version {current}, so nothing can be upgraded from version {max(steps)}; "
                f"nothing was registered. Write {hint}."
            )

    def tasks(self) -> Iterator[str]:
        """Yield all stored names that can be run: every version up to the current one of each name."""
        for name, current in self.current.items():
            for number in range(1, split(current)[1] + 1):
                yield from self.spellings(stored_name(name, number))

    def spellings(self, stored: str) -> Iterator[str]:
        """Yield a stored name as it is, and as it is with each key."""
        yield stored
        for key_id in self.keys:
            yield sealed_name(stored, key_id)

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

    def find(self, stored: str, seen: Mapping[str, type]) -> Entry | None:
        """
        Return what runs a stored task: by name, alias, subclass, or `process`.

        None if nothing does; or not this version of it, a newer one; or not without the key that it
        needs. `seen` are types that were sent, by task.
        """
        key_id = parted(stored)[1]
        if key_id is not None and key_id not in self.keys:
            return None
        task, number = split(stored)
        key = self._names.get(task)
        if key is not None:
            found = self._named(task, number, key)
        else:
            kinds = self.subclasses_named(task)
            owner = self.owner_of(kinds[-1]) if kinds else None
            if owner is None:
                # Not cached with the others: an import may yet bring the class, and its base's handler.
                return self._fallen_back(task, number, seen.get(task))
            found = self._made(task, number, self.handlers[owner], kinds[-1])
        if found is not None:
            self.entries[stored] = found
        return found

    def _named(self, task: str, number: int, key: Key) -> Entry | None:
        handler = self.handlers[key]
        if not isinstance(key, str):
            return self._made(task, number, handler, key)
        return self._made(task, number, handler, None, _version_at(key, handler))

    def _made(
        self, task: str, number: int, handler: Handler, kind: Any, current: int | None = None
    ) -> Entry | None:
        if current is None:
            current = version_of(kind) if isinstance(kind, type) else 1
        if number > current:
            return None
        upgrade = None
        if number < current:
            upgrades = {**self.upgrades.get(task, {}), **(self.upgrades.get(kind) or {})}
            upgrade = Upgrade(task, number, current, upgrades)
        return Entry(task, handler, kind, upgrade)

    def _fallen_back(self, task: str, number: int, seen: type | None) -> Entry | None:
        if self.fallback is None:
            return None
        seen = PLAIN.get(task) or seen
        entry = self._fallback_entries.get((task, number, seen))
        if entry is None:
            wanted = _fallback_type(self.fallback.asks, task, seen)
            entry = self._made(task, number, self.fallback, wanted)
            if entry is not None:
                self._fallback_entries[task, number, seen] = entry
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
    if handler.version is not None:
        raise ConfigError(
            f"version={handler.version} is for named tasks; the payload type {key!r} states its own: write "
            f"@dutiful.version({handler.version}) above the class."
        )
    if handler.spread:
        raise ConfigError(f"spread=True is for named tasks, not for the payload type {key!r}.")
    return handler.task if handler.task is not None else task_name(key)


def _version_at(key: Key, handler: Handler) -> int:
    return handler.version or 1 if isinstance(key, str) else version_of(key)


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
