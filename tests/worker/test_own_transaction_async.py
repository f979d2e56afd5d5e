"""`async with ctx.transaction(own)` in handlers on the worker's event loop, many at once."""

import asyncio

import pytest

from dutiful import Backoff, ConfigError, Retry, State
from tests.worker.tools import finished

AT_ONCE = Retry(backoff=Backoff(first_s=0))
COUNT = 40


@pytest.fixture(params=["sqlite+aiosqlite", "postgresql+asyncpg", "postgresql+psycopg"])
def engine_url(request, path):
    """The URL of SQLAlchemy's asynchronous engine."""
    if request.param.startswith("sqlite"):
        return f"{request.param}:///{path}"
    return request.getfixturevalue("database_url").replace("postgresql", request.param, 1)


@pytest.fixture
def worker(engine_url, path, started):
    return started(path if engine_url.startswith("sqlite") else _plain(engine_url), concurrency=8)


def _plain(engine_url):
    return "postgresql://" + engine_url.partition("://")[2]


async def on(engine_url, *statements):
    """Run statements, and return the rows of the last."""
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(engine_url)
    async with engine.begin() as connection:
        for sql in statements:
            result = await connection.execute(text(sql))
        rows = result.all() if result.returns_rows else []
    await engine.dispose()
    return rows


def test_many_coroutines_take_turns(worker, engine_url):
    """None blocks the loop while it waits for its turn, so none waits in vain."""
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    asyncio.run(on(engine_url, "CREATE TABLE account (total INTEGER)", "INSERT INTO account VALUES (0)"))
    engines = []

    @worker.handler("pay", retry=AT_ONCE)
    async def pay(amount, ctx):
        if not engines:
            engines.append(create_async_engine(engine_url))
        async with AsyncSession(engines[0]) as session, ctx.transaction(session):
            await session.execute(text(f"UPDATE account SET total = total + {amount}"))
            await asyncio.sleep(0)
            await worker.asend(amount, task="paid", transaction=session)

    @worker.handler("paid")
    async def paid(amount):
        pass

    @worker.handler("close")
    async def close(_payload):
        await engines[0].dispose()

    jobs = worker.send_many([1] * COUNT, task="pay")
    records = [finished(job) for job in jobs]
    finished(worker.send(None, task="close"))

    assert {record.state for record in records} == {State.COMPLETED}
    assert asyncio.run(on(engine_url, "SELECT total FROM account")) == [(COUNT,)]
    assert len(worker.jobs(task="paid", limit=1000)) == COUNT


@pytest.fixture
def crowded(started, path, gate):
    """
    Make a worker with three tasks, each of which writes its payload in a transaction.

    "hold" does so until the gate is opened; "wait" begins meanwhile, and does not retry; "next" is for later.
    """
    import aiosqlite

    asyncio.run(on(f"sqlite+aiosqlite:///{path}", "CREATE TABLE t (n INTEGER)"))

    def crowded(timeout=None, **options):
        worker = started(path, **options)

        async def write(n, ctx):
            async with aiosqlite.connect(path) as db, ctx.transaction(db):
                await db.execute(f"INSERT INTO t VALUES ({n})")

        @worker.handler("wait", timeout=timeout, retry=Retry(max_attempts=1))
        async def wait(n, ctx):
            await asyncio.to_thread(gate.entered.wait)
            try:
                await write(n, ctx)
            finally:
                gate.open()

        @worker.handler("hold")
        def hold(n, ctx):
            with ctx.transaction() as db:
                db.execute(f"INSERT INTO t VALUES ({n})")
                gate.hold(n)

        @worker.handler("next")
        async def next_(n, ctx):
            await write(n, ctx)

        return worker

    return crowded


@pytest.mark.parametrize(
    ("options", "error"), [({"timeout": 0.5}, "TimeoutError"), ({"busy_s": 0.5}, "StoreBusy")]
)
def test_a_coroutine_that_waits_for_its_turn_in_vain_takes_none(crowded, path, options, error):
    """Cancelled, or out of patience: what it is given after all it gives back, and the next one gets it."""
    worker = crowded(**options)
    waiting = worker.send(1, task="wait")
    holding = worker.send(2, task="hold")

    assert finished(holding).state is State.COMPLETED
    assert finished(waiting).errors[0].type == error
    assert finished(worker.send(3, task="next")).state is State.COMPLETED
    assert asyncio.run(on(f"sqlite+aiosqlite:///{path}", "SELECT n FROM t ORDER BY n")) == [(2,), (3,)]


def test_a_send_beside_the_own_transaction_says_how_to_do_it(started, path):
    """On SQLite it would wait for itself."""
    import aiosqlite

    worker = started(path)

    @worker.handler("t", retry=Retry(max_attempts=1))
    async def handle(n, ctx):
        async with aiosqlite.connect(path) as db, ctx.transaction(db):
            await worker.asend(1, task="t")

    (error,) = finished(worker.send(0, task="t")).errors

    assert error.type == ConfigError.__name__
    assert "transaction=" in error.message
