"""The few inner parts of PostgresStore that tests reach for, in one place."""

from __future__ import annotations

import math

import psycopg

from dutiful.store.postgres import PostgresStore

_INSTANTS = {
    "job": (
        "due_at",
        "created_at",
        "started_at",
        "finished_at",
        "cancel_at",
        "parked_at",
        "expires_at",
        "unique_till",
    ),
    "error": ("at",),
    "worker": ("started_at", "seen_at"),
    "pool": ("next_at",),
    "schedule": ("next_at", "last_at", "paused_at", "seen_at"),
    "step": ("at",),
    "event": ("at",),
}


def opened(url: str, **options) -> PostgresStore:
    """Return an open store, which need not wait for the disk."""
    store = PostgresStore(url, **{"durability": "normal", "busy_s": 5, **options})
    store.url = url  # for whoever wants another
    store.open()
    return store


def url_of(store: PostgresStore) -> str:
    return store.url


def other_connection(store: PostgresStore) -> psycopg.Connection:
    """Return a connection as a user would have it, for the caller to close."""
    return psycopg.connect(url_of(store), autocommit=True)


def keep_one_connection(store: PostgresStore) -> None:
    """Close what it keeps for steps and looks, but for one."""
    access = store._access
    while len(access._idle) > 1:
        access.disconnect(access._idle.pop())


def pass_ring_pause(store: PostgresStore) -> None:
    """Have it be a while since the last ring."""
    store._workers._ringer._rung_at = 0.0


def pass_time(store: PostgresStore, seconds: float) -> None:
    """
    Let time go by: a little by waiting, much by moving all that has happened into the past.

    The server's clock is nobody's to set.
    """
    with other_connection(store) as db:
        if seconds < 1:
            db.execute("SELECT pg_sleep(%s)", (seconds,))
            return
        ms = math.ceil(seconds * 1000)
        for table, columns in _INSTANTS.items():
            moved = ", ".join(f"{column} = {column} - {ms}" for column in columns)
            db.execute(f"UPDATE dutiful.{table} SET {moved}")


def die(store: PostgresStore, owner: int) -> None:
    """Let go of what a worker holds, as the system does when its process is killed."""
    store._workers._here.pop(owner).abandon()
