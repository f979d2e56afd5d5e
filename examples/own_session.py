"""
Jobs in your SQLAlchemy transactions, sync and async: one commit for an order and its job.

1. `send(…, transaction=session)`: the job exists if, and only if, the session commits.
2. `ctx.transaction(session)`: what the handler changes and the job's completion commit together, once.

The same with PostgreSQL: both URLs lead to one database there.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from dutiful import Context, Worker


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]
    state: Mapped[str] = mapped_column(default="new")


@dataclass
class Ship:
    order_id: int


def main(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    Base.metadata.create_all(engine)

    def ship(job: Ship, ctx: Context) -> None:
        # Whatever takes long comes first: on SQLite the block holds the store's write lock.
        with Session(engine) as session, ctx.transaction(session):
            session.get_one(Order, job.order_id).state = "shipped"

    with Worker(path, handlers={Ship: ship}) as worker:
        with Session(engine) as session, session.begin():
            order = Order(item="teapot")
            session.add(order)
            session.flush()  # now it has an id
            job = worker.send(Ship(order.id), transaction=session)
        job.wait(timeout=10)

        try:
            with Session(engine) as session, session.begin():
                session.add(Order(id=2, item="kettle"))
                worker.send(Ship(2), transaction=session)
                raise RuntimeError("the card was refused")  # noqa: TRY301  # it stands for your code
        except RuntimeError as error:
            print("rolled back:", error)

        asyncio.run(order_and_ship(path, worker, "lamp"))
        worker.stop(drain=True)
        with Session(engine) as session:
            print([(order.item, order.state) for order in session.query(Order)])
            print(len(worker.jobs()), "jobs in all")
    engine.dispose()


async def order_and_ship(path: Path, worker: Worker, item: str) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with AsyncSession(engine) as session, session.begin():
        order = Order(item=item)
        session.add(order)
        await session.flush()
        await worker.asend(Ship(order.id), transaction=session)
    await engine.dispose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder) / "shop.db")
