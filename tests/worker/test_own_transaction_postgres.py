"""A user's own transaction on PostgreSQL: roles, schemas, and a server that was restarted."""

import contextlib
import secrets
from urllib.parse import urlsplit

import psycopg
import pytest

from dutiful import ConfigError, LeaseLost, Retry, State, StoreError
from tests.worker.tools import Seen, finished, result

DENIED = r"permission denied.*nothing was stored"


@pytest.fixture
def worker(started, database_url):
    return started(database_url, handlers={"t": lambda n: n})


@pytest.fixture
def stranger(worker, database_url):
    """The URL of a role that may do nothing yet, and how to grant it something."""
    worker.counts()
    role, password = f"stranger_{secrets.token_hex(4)}", secrets.token_hex(8)
    parts = urlsplit(database_url)
    url = parts._replace(netloc=f"{role}:{password}@{parts.netloc.rpartition('@')[2]}").geturl()
    with psycopg.connect(database_url, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{password}'")
        db.execute("CREATE TABLE orders (n bigint)")
        db.execute(f"GRANT ALL ON orders TO {role}")

        def grant(rights):
            db.execute(f"GRANT {rights} TO {role}")

        yield url, grant
        db.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_role_needs_no_more_than_the_docs_say(worker, stranger):
    url, grant = stranger
    grant("USAGE ON SCHEMA dutiful")
    grant("INSERT ON dutiful.job")
    with psycopg.connect(url) as db:
        job = worker.send(5, task="t", transaction=db)
    assert result(job) == 5

    grant("SELECT, UPDATE ON dutiful.job")

    @worker.handler("write")
    def write(n, ctx):
        with psycopg.connect(url) as db, ctx.transaction(db):
            db.execute("INSERT INTO orders VALUES (%s)", (n,))

    assert finished(worker.send(6, task="write")).attempt == 1


def test_a_role_that_may_not_is_told_what_it_lacks(worker, stranger):
    url, grant = stranger
    with (
        psycopg.connect(url) as db,
        pytest.raises(ConfigError, match=DENIED),
    ):
        worker.send(1, task="t", transaction=db)

    grant("USAGE ON SCHEMA dutiful")
    with (
        psycopg.connect(url) as db,
        pytest.raises(StoreError, match=DENIED),
    ):
        worker.send(1, task="t", transaction=db)

    assert worker.jobs() == []


def test_the_schema_may_have_another_name(started, database_url):
    worker = started(f"{database_url}?dutiful_schema=mine", handlers={"t": lambda n: n})
    worker.counts()
    with psycopg.connect(database_url) as db:
        job = worker.send(5, task="t", transaction=db)

    assert result(job) == 5


def test_after_a_restart_of_the_server_it_is_still_the_same(worker, database_url):
    """What tells one server from another is the instant of its start, which is asked for again."""
    with psycopg.connect(database_url) as db:
        worker.send(1, task="t", transaction=db)
    oid, started_at = worker._store._users._here
    worker._store._users._here = (oid, started_at - 1)

    with psycopg.connect(database_url) as db:
        job = worker.send(2, task="t", transaction=db)

    assert result(job) == 2


@pytest.mark.parametrize("isolation", list(psycopg.IsolationLevel), ids=lambda level: level.name)
def test_every_isolation_level_will_do(worker, database_url, isolation):
    worker.counts()
    with psycopg.connect(database_url) as db:
        db.isolation_level = isolation
        db.execute("SELECT 1")
        worker.send(1, task="t")
        job = worker.send(2, task="t", transaction=db)

    assert result(job) == 2


def test_whoever_takes_the_job_meanwhile_wins(worker, database_url):
    """A job in its handler's own transaction is not locked; its end finds out."""
    seen = Seen()
    with psycopg.connect(database_url) as db:
        db.execute("CREATE TABLE orders (n bigint)")

    @worker.handler("write", retry=Retry(max_attempts=1))
    def write(n, ctx):
        with psycopg.connect(database_url) as db, contextlib.suppress(LeaseLost):
            with ctx.transaction(db):
                db.execute("INSERT INTO orders VALUES (%s)", (n,))
                with psycopg.connect(database_url) as other:
                    other.execute("UPDATE dutiful.job SET attempt = attempt + 1 WHERE id = %s", (ctx.id,))
            raise AssertionError("it was taken")
        seen.add(ctx.id)

    job = worker.send(1, task="write")

    assert seen.wait() == [job.id]
    assert job.state is State.RUNNING  # the other's
    with psycopg.connect(database_url) as db:
        assert db.execute("SELECT * FROM orders").fetchall() == []
        db.execute("DELETE FROM dutiful.job WHERE id = %s", (job.id,))
