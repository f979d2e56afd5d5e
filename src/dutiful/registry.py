"""
The handlers of a worker: payload type or task name → handler.

No state outside of a `Registry`. Readers take no lock: every change makes a new `Table`
with empty caches and puts it in place with one assignment.
"""

import difflib
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Any, cast

from dutiful.errors import ConfigError, NotEncodable, UnknownTask
from dutiful.handler import Entry, Handler, made_of
from dutiful.payload import decoder, task_name
from dutiful.signature import Function, members
from dutiful.table import PLAIN, Key, Table, name_of
from dutiful.versions import checked_task, checked_upgrade, stored_name, version_of


class Registry(MutableMapping[Key, Handler]):
    """
    The mapping behind `worker.handlers`: payload type or task name -> Handler.

    `keys` are the ids of those by which encrypted jobs can be read here.

    Functions may be put in as they are. A change holds from the next job on, in all
    threads; one that raises ConfigError has changed nothing.
    """

    def __init__(
        self, handlers: Mapping[Any, Handler | Function] | None = None, keys: Iterable[str] = ()
    ) -> None:
        self._changing = threading.Lock()
        self._seen: dict[str, type] = {}  # the types sent from here, by task name
        self._keys = frozenset(keys)
        self._table = Table({}, None, keys=self._keys)
        if handlers is not None and not isinstance(cast("object", handlers), Mapping):
            raise ConfigError(
                f"handlers is {handlers!r:.300}; it must be a dict, from a payload type or a task name to "
                "the function that handles it. Nothing was registered."
            )
        self._set({key: _handler(value) for key, value in (handlers or {}).items()})

    def __getitem__(self, key: Key) -> Handler:
        return self._table.handlers[key]

    def __setitem__(self, key: Key, value: Handler | Function) -> None:
        self._set({key: _handler(value)})

    def __delitem__(self, key: Key) -> None:
        with self._changing:
            rest = dict(self._table.handlers)
            del rest[key]
            self._table = Table(rest, self._table.fallback, self._table.upgrades, self._keys)

    def __iter__(self) -> Iterator[Key]:
        return iter(self._table.handlers)

    def __len__(self) -> int:
        return len(self._table.handlers)

    @property
    def fallback(self) -> Handler | None:
        """The handler set by `process`."""
        return self._table.fallback

    @property
    def has_batches(self) -> bool:
        """Whether any handler takes batches."""
        return self._table.has_batches

    def add(
        self,
        fn: Function,
        *,
        task: str | None = None,
        types: Iterable[type] | None = None,
        **options: Any,
    ) -> Handler:
        """
        Register `fn`: for `types`, else under the name `task`, else for the type (or each type
        of the union) that its first parameter is annotated with.

        `task` together with `types` is the task name of the one type; `options` are those
        of `Handler`.

        Raises:
            ConfigError: It is not said for what, or not possible.
        """
        handler = made_of(fn, task=task, **options)
        keys: list[Key] = list(types or ())
        if not keys and task is not None:
            keys = [task]
        if not keys:
            keys = [*handler.asks.payload_types]
        if not keys:
            name = handler.asks.label.rpartition(".")[2]
            raise ConfigError(
                f"{name}() does not say what it handles. Annotate its parameter with a payload type "
                f'(def {name}(job: MyDataclass): …), or name the task: @worker.handler("{name}").'
            )
        self._set(dict.fromkeys(keys, handler))
        return handler

    def process(self, callback: Function, **options: Any) -> Handler:
        """
        Make `callback` the handler of every payload that has none of its own.

        Raises:
            ConfigError: It does not take one payload, or an option is wrong.
        """
        if options.keys() & {"task", "aliases", "spread", "version"}:
            raise ConfigError(
                "process() handles tasks of any name: drop task=, aliases=, spread= and version=."
            )
        handler = made_of(callback, **options)
        Entry("process", handler, Any)  # so that one that does not take a payload is refused now
        with self._changing:
            self._table = Table(self._table.handlers, handler, self._table.upgrades, self._keys)
        return handler

    def upgrade(self, key: Key, from_version: int, fn: Function) -> None:
        """
        Have payloads of a version go through `fn` on their way to the next version.

        Raises:
            ConfigError: It cannot be one, there is one, or there is no newer version.
        """
        number = checked_upgrade(fn, from_version)
        if not isinstance(cast("object", key), (type, str)):
            raise ConfigError(f"upgrade({key!r}): it is for a payload type or a task name.")
        with self._changing:
            table = self._table
            steps = table.upgrades.get(key, {})
            if number in steps:
                raise ConfigError(
                    f"{key!r} has an upgrade from version {number} already, which stays. Drop one of them."
                )
            upgrades = {**table.upgrades, key: {**steps, number: fn}}
            self._table = Table(table.handlers, table.fallback, upgrades, self._keys)

    def names(self) -> frozenset[str]:
        """Return all names and aliases that are registered here."""
        return frozenset(self._table.names)

    def tasks(self) -> frozenset[str]:
        """Return the stored names that can be run: each name in all its versions, and with each key."""
        return frozenset(self._table.tasks())

    def versions_of(self, tasks: Iterable[str]) -> set[str]:
        """Return the stored names of tasks, in all versions that can be run here."""
        found: set[str] = set()
        for task in tasks:
            number = 1
            while number == 1 or self.entry(stored_name(task, number)) is not None:
                found.update(self._table.spellings(stored_name(task, number)))
                number += 1
        return found

    def task_of(self, payload: object) -> str:
        """
        Return the task name to store with `payload`.

        Raises:
            UnknownTask: Nothing handles its type.
            NotEncodable: It could not be decoded again.
        """
        table = self._table
        task = table.sent.get(type(payload))
        return task if task is not None else self._first_of(table, type(payload))

    def resolve_task(self, task: Key) -> str:
        """Return the name that `send(task=…)` means; a type stands for its task name."""
        table = self._table
        if isinstance(task, str):
            known = table.current.get(task)
            return known if known is not None else checked_task(task)
        handler = table.handlers.get(task)
        name = name_of(task, handler) if handler is not None else task_name(task)
        return stored_name(name, version_of(task))

    def entry(self, task: str) -> Entry | None:
        """Return what runs `task` here, or None: by name, alias, subclass, or `process`."""
        table = self._table
        return table.entries.get(task) or table.find(task, self._seen)

    def _set(self, changes: Mapping[Any, Handler]) -> None:
        flat = {key: handler for keys, handler in changes.items() for key in _keys(keys)}
        with self._changing:
            was = self._table
            table = Table({**was.handlers, **flat}, was.fallback, was.upgrades, self._keys)
            for key, handler in flat.items():  # so that a handler that can't be served is refused now
                table.find(name_of(key, handler), {})
            self._table = table

    def _first_of(self, table: Table, kind: type) -> str:
        owner = table.owner_of(kind)
        if owner is kind:
            name = name_of(kind, table.handlers[kind])
        elif owner is not None or table.fallback is not None:
            name = task_name(kind)
            self._check_own_name(table, name, kind)
        else:
            name = kind.__qualname__.rpartition("<locals>.")[2]
            raise UnknownTask(name, difflib.get_close_matches(name, table.names))
        self._seen[name] = kind
        stored = table.sent[kind] = stored_name(name, version_of(kind))
        return stored

    def _check_own_name(self, table: Table, name: str, kind: type) -> None:
        others = [each for each in table.subclasses_named(name) if not _same(each, kind)]
        seen = self._seen.get(name, kind)
        if name in table.names:
            others.append(cast("type", table.names[name]))
        elif not _same(seen, kind):
            others.append(seen)
        if others:
            raise ConfigError(
                f"{kind!r} has the same task name, {name!r}, as {others[0]!r}. Register it under "
                'its own: handlers={…: Handler(function, task="another-name")}.'
            )
        if name not in PLAIN:
            try:
                decoder(kind, name)
            except ConfigError as error:
                raise NotEncodable(name, f"it could not be decoded again: {error}") from error


def _keys(key: Any) -> list[Key]:
    """Return the keys that one key stands for: a union registers each of its types."""
    keys = list(members(key))
    for each in keys:
        if each is object:
            raise ConfigError("object cannot have a handler; for all other payloads use process().")
        if not isinstance(each, (type, str)):
            raise ConfigError(f"handlers[{key!r}]: a key is a payload type or a task name.")
    return keys


def _handler(value: Handler | Function) -> Handler:
    return value if isinstance(value, Handler) else Handler(value)


def _same(one: type, other: type) -> bool:
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)
