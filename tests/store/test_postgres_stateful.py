"""PostgreSQL against the same simple model, at two doors; each example in a schema of its own."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings

from dutiful.store.postgres import PostgresStore
from tests.store import inside_postgres as inside
from tests.store.test_stateful import LIMITS, StoreMachine
from tests.store.test_stateful_special import SpecialMachine

_schemas = itertools.count()


class PostgresMachine(StoreMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.schema = f"example_{next(_schemas)}"

    def _open(self) -> PostgresStore:
        return inside.opened(self.url, schema=self.schema)

    def _die(self, store: PostgresStore, owner: int) -> None:
        inside.die(store, owner)


class TestPostgres(PostgresMachine.TestCase):
    settings = settings(LIMITS, max_examples=15)

    @pytest.fixture(autouse=True)
    def server(self, database_url: str) -> None:
        PostgresMachine.url = database_url


class PostgresSpecialMachine(SpecialMachine):
    url = ""

    def __init__(self) -> None:
        super().__init__()
        self.schema = f"special_{next(_schemas)}"

    def _open(self) -> PostgresStore:
        return inside.opened(self.url, schema=self.schema)

    def _die(self, store: PostgresStore, owner: int) -> None:
        inside.die(store, owner)


class TestPostgresSpecial(PostgresSpecialMachine.TestCase):
    settings = settings(LIMITS, max_examples=10)

    @pytest.fixture(autouse=True)
    def server(self, database_url: str) -> None:
        PostgresSpecialMachine.url = database_url
