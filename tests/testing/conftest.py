"""An app: a worker on a file that no test is to touch, and what its handlers do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dutiful import Backoff, Context, Retry, Worker


@dataclass
class Order:
    id: int
    lines: tuple[str, ...] = ()


@dataclass
class Receipt:
    order: int


@dataclass
class App:
    """What a web app has at its top level."""

    path: Path
    worker: Worker
    done: list[Any] = field(default_factory=list)
    fails: int = 0  # so many times each order

    def is_untouched(self) -> bool:
        return not self.path.exists()


@pytest.fixture
def app(tmp_path: Path) -> App:
    app = App(tmp_path / "jobs.db", Worker(tmp_path / "jobs.db", retry=Retry(backoff=Backoff(jitter=0))))

    @app.worker.handler
    def ship(order: Order, ctx: Context) -> int:
        if ctx.failures < app.fails:
            raise ConnectionError(f"order {order.id}")
        app.done.append(order)
        ctx.send(Receipt(order.id))
        return order.id

    @app.worker.handler
    def print_receipt(receipt: Receipt) -> None:
        app.done.append(receipt)

    @app.worker.handler("double")
    async def double(number: int) -> int:
        app.done.append(number)
        return 2 * number

    return app
