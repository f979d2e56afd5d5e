"""The few inner parts of SqliteStore that tests reach for, in one place."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from sqlite3 import Connection

from dutiful.store.liveness import Folder
from dutiful.store.sqlite import SqliteStore


def opened(path: object, **options) -> SqliteStore:
    """Return an open store."""
    store = SqliteStore(str(path), **options)
    store.open()
    return store


def path_of(store: SqliteStore) -> Path:
    return store._access.path


def folder_of(store: SqliteStore) -> Folder:
    folder = store._access.folder
    assert folder is not None
    return folder


def writer(store: SqliteStore) -> Connection:
    return store._access.db


def reader(store: SqliteStore) -> Connection:
    return store._access.reader


def looking(store: SqliteStore) -> AbstractContextManager[Connection]:
    return store._access.looking()


def writing(store: SqliteStore) -> AbstractContextManager[int]:
    return store._access.writing()


def life_of(store: SqliteStore, owner: int):
    return store._workers._here[owner].life


def die(store: SqliteStore, owner: int) -> None:
    """Let go of what a worker holds, as the system does when its process is killed."""
    here = store._workers._here.pop(owner)
    here.life.abandon()
    here.bell.close()
    if here.changes is not None:
        os.close(here.changes)
