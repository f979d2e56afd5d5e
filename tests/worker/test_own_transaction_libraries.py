"""`send(transaction=…)` and `asend(transaction=…)` with what users have: every library, both databases."""

import asyncio
import sqlite3

import pytest

from dutiful import Backoff, ConfigError, Handler, LeaseLost, Retry, State
from tests.servers.shared import fresh_database
from tests.worker.lenders import ASYNCHRONOUS, COMES_BACK, ON_POSTGRES, ON_SQLITE, Django
from tests.worker.tools import Seen, finished, result

DATABASES = {"sqlite": ON_SQLITE, "postgres": ON_POSTGRES}
ALL = [(database, name) for database, lenders in DATABASES.items() for name in lenders]


def where(fact, *databases):
    """Parametrize a test with the libraries for which something is so, on these databases or on all."""
    these = [each for each in ALL if fact(each[1]) and (not databases or each[0] in databases)]
    return pytest.mark.parametrize(("database", "library"), these, ids=[" ".join(each) for each in these])


with_all = where(lambda name: True)
# One of each kind, for what does not depend on more.
with_some = where(lambda name: not any(word in name for word in ("Connection", "pool", "scoped")))


@pytest.fixture(scope="module")
def database_of_all(postgres_url):
    """One for all tests here, since making one takes longer than a test."""
    with fresh_database(postgres_url) as url:
        yield url


@pytest.fixture
def url(database, request, path):
    """Where the jobs are, and the user's table."""
    if database == "sqlite":
        yield str(path)
        return
    url = request.getfixturevalue("database_of_all")
    yield url
    import psycopg

    with psycopg.connect(url, autocommit=True) as db:
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        db.execute("DROP SCHEMA IF EXISTS dutiful CASCADE; DROP TABLE IF EXISTS orders")


@pytest.fixture
def elsewhere(database, url, tmp_path):
    """Another database of that kind."""
    return str(tmp_path / "other.db") if database == "sqlite" else url.rpartition("/")[0] + "/postgres"


@pytest.fixture
def worker(url, started):
    return started(url, handlers={"t": lambda n: n})


@pytest.fixture
def lend(database, library):
    """Make lenders, which are closed in the end."""
    made = []

    def lend(url):
        made.append(DATABASES[database][library](url))
        return made[-1]

    yield lend
    for lender in made:
        lender.close()


@pytest.fixture
def lender(worker, url, lend):
    """A lender with a table of its user's, `orders`."""
    worker.jobs()  # the store is there
    lender = lend(url)
    lender.begin()
    lender.execute("CREATE TABLE orders (id INTEGER)")
    lender.commit()
    return lender


def orders(url):
    """Return what is committed, as somebody else sees it."""
    if "://" in url:
        import psycopg

        with psycopg.connect(url) as db:
            return [row[0] for row in db.execute("SELECT id FROM orders ORDER BY id").fetchall()]
    db = sqlite3.connect(url)
    try:
        return [row[0] for row in db.execute("SELECT id FROM orders ORDER BY id")]
    finally:
        db.close()


@with_all
def test_a_job_exists_and_runs_when_the_transaction_commits(worker, lender, url):
    lender.begin()
    lender.execute("INSERT INTO orders VALUES (1)")
    job = lender.send(worker, 5, task="t")
    later = lender.send(worker, 6, task="t", delay=3600, priority=-3, queue="other")
    assert worker.jobs() == []
    lender.commit()

    assert result(job) == 5
    record = later.refresh()
    assert (record.due_at - record.created_at, record.priority, record.queue) == (3_600_000, -3, "other")
    assert orders(url) == [1]


@with_all
def test_a_job_never_exists_when_the_transaction_rolls_back(worker, lender, url):
    lender.begin()
    lender.execute("INSERT INTO orders VALUES (1)")
    lender.send(worker, 5, task="t")
    lender.send_many(worker, range(1500), task="t")
    lender.rollback()

    assert result(worker.send(6, task="t")) == 6
    assert [record.payload for record in worker.jobs()] == ["6"]
    assert orders(url) == []


@with_all
def test_many_are_sent_in_one_transaction(worker, lender):
    lender.begin()
    jobs = lender.send_many(worker, ["ä{}'\"\\%s?$1", None, *range(1500)], task="t")
    lender.commit()

    assert [result(job) for job in jobs[:3]] == ["ä{}'\"\\%s?$1", None, 0]
    assert len({job.id for job in jobs}) == 1502
    jobs[-1].wait(timeout=20)
    assert result(jobs[-1]) == 1499


@with_some
def test_the_first_statement_may_be_the_send(worker, lender):
    """A transaction in which the user has done nothing yet, begun by him or by his library."""
    lender.begin()
    job = lender.send(worker, 1, task="t")
    lender.commit()

    assert result(job) == 1


@with_some
def test_one_transaction_after_another(worker, lender):
    """Nothing that we did is left over; ids stay unique whatever is rolled back."""
    jobs = []
    for n in range(6):
        lender.begin()
        job = lender.send(worker, n, task="t")
        if n % 2:
            lender.rollback()
        else:
            lender.commit()
            jobs.append(job)
        jobs.append(worker.send(-n, task="t"))

    assert [result(job) for job in jobs] == [0, 0, -1, 2, -2, -3, 4, -4, -5]


@with_all
def test_a_connection_to_another_database_stores_nothing(worker, lender, lend, elsewhere):
    stranger = lend(elsewhere)
    stranger.begin()

    with pytest.raises(ConfigError, match="nothing was stored"):
        stranger.send(worker, 1, task="t")
    with pytest.raises(ConfigError, match="nothing was stored"):
        stranger.send_many(worker, [1, 2], task="t")

    stranger.rollback()
    assert worker.jobs() == []


@where(lambda name: name in ASYNCHRONOUS)
def test_an_asynchronous_one_given_to_send_says_to_use_asend(worker, lender):
    lender.begin()

    with pytest.raises(ConfigError, match="asend"):
        worker.send(1, task="t", transaction=lender.given)
    with pytest.raises(ConfigError, match="asend"):
        worker.send_many([1], task="t", transaction=lender.given)

    lender.commit()
    assert worker.jobs() == []


@where(lambda name: name not in ASYNCHRONOUS)
def test_a_blocking_one_given_to_asend_works_or_says_how(worker, lender):
    lender.begin()
    sending = worker.asend(1, task="t", transaction=lender.given)
    if isinstance(lender, Django):
        with pytest.raises(ConfigError, match="sync_to_async"):
            asyncio.run(sending)
        lender.commit()
        assert worker.jobs() == []
    else:
        job = asyncio.run(sending)
        (more,) = asyncio.run(worker.asend_many([2], task="t", transaction=lender.given))
        lender.commit()
        assert (result(job), result(more)) == (1, 2)


@where(lambda name: name not in COMES_BACK)
def test_one_that_is_closed_stores_nothing(worker, database, library, url):
    lender = DATABASES[database][library](url)
    lender.close()

    with pytest.raises(ConfigError, match="nothing was stored"):
        if library in ASYNCHRONOUS:
            asyncio.run(worker.asend(1, task="t", transaction=lender.given))
        else:
            lender.send(worker, 1, task="t")

    assert worker.jobs() == []


@with_all
def test_one_in_autocommit_stores_nothing_and_says_how_to_begin(worker, lender):
    lender.autocommit()

    with pytest.raises(ConfigError, match="no open transaction; nothing was stored") as caught:
        lender.send(worker, 1, task="t")

    assert str(caught.value).partition("nothing was stored. ")[2]
    assert worker.jobs() == []


@where(lambda name: True, "postgres")
def test_a_transaction_that_has_failed_stores_nothing(worker, lender, library):
    lender.begin()
    with pytest.raises(Exception, match="nowhere"):
        lender.execute("SELECT * FROM nowhere")

    with pytest.raises(ConfigError, match="nothing was stored"):
        lender.send(worker, 1, task="t")

    lender.rollback()
    assert worker.jobs() == []


# --- ctx.transaction(own) ------------------------------------------------------------------------

AT_ONCE = Retry(backoff=Backoff(first_s=0))
ONCE = Retry(max_attempts=1)


@pytest.fixture
def borrowing(database, library, url):
    """Call something with a lender of its own, as a handler has one: made where it is used."""

    def borrowing(act):
        lender = DATABASES[database][library](url)
        try:
            return act(lender)
        finally:
            lender.close()

    return borrowing


@with_all
def test_a_handlers_own_transaction_completes_the_job(worker, lender, borrowing, url):
    states = Seen()

    @worker.handler("write", retry=AT_ONCE)
    def write(n, ctx):
        borrowing(lambda own: own.write_in(ctx, f"INSERT INTO orders VALUES ({n})"))
        states.add(worker.job(ctx.id).state)

    record = finished(worker.send(5, task="write"))

    assert (record.state, record.attempt) == (State.COMPLETED, 1)
    assert states.wait() == [State.COMPLETED]
    assert orders(url) == [5]


@with_some
def test_a_handlers_own_transaction_completes_all_of_a_batch(worker, lender, borrowing, url):
    tries = []

    def write(numbers, ctx):
        tries.append(numbers)
        error = ValueError("not yet") if len(tries) == 1 else None
        borrowing(lambda own: own.write_in(ctx, f"INSERT INTO orders VALUES ({numbers[0]})", error))

    worker.handlers["write"] = Handler(write, batch=3, wait=0.1, retry=AT_ONCE)
    jobs = worker.send_many([1, 2, 3], task="write")

    assert [finished(job).state for job in jobs] == [State.COMPLETED] * 3
    assert orders(url) == [numbers[0] for numbers in tries[1:]]


@with_all
def test_an_error_in_a_handlers_own_transaction_undoes_both(worker, lender, borrowing, url):
    @worker.handler("write", retry=AT_ONCE)
    def write(n, ctx):
        error = ValueError("not yet") if ctx.failures < 2 else None
        borrowing(lambda own: own.write_in(ctx, f"INSERT INTO orders VALUES ({n})", error))

    record = finished(worker.send(5, task="write"))

    assert (record.state, record.failures, record.attempt) == (State.COMPLETED, 2, 3)
    assert [error.type for error in record.errors] == ["ValueError", "ValueError"]
    assert orders(url) == [5]


@with_some
def test_a_handlers_own_transaction_is_for_the_attempt_that_owns_the_job(worker, lender, borrowing, url):
    """Found out at the begin; what another attempt has taken meanwhile is not done twice."""
    seen = Seen()

    @worker.handler("write", retry=ONCE)
    def write(n, ctx):
        with ctx.transaction():
            pass
        try:
            borrowing(lambda own: own.write_in(ctx, f"INSERT INTO orders VALUES ({n})"))
        except LeaseLost as error:
            seen.add(error.job_id)

    job = worker.send(5, task="write")

    assert seen.wait() == [job.id]
    assert orders(url) == []


@with_some
def test_a_transaction_that_is_open_is_not_ours_to_end(worker, lender, borrowing, url):
    @worker.handler("write", retry=ONCE)
    def write(n, ctx):
        def act(own):
            own.begin()
            own.execute(f"INSERT INTO orders VALUES ({n})")
            try:
                own.write_in(ctx, f"INSERT INTO orders VALUES ({n})")
            finally:
                own.rollback()

        borrowing(act)

    (error,) = finished(worker.send(5, task="write")).errors

    assert error.type == "ConfigError"
    assert "open transaction" in error.message
    assert orders(url) == []


@with_some
def test_a_handlers_own_transaction_elsewhere_is_refused(worker, lender, database, library, elsewhere):
    @worker.handler("write", retry=ONCE)
    def write(n, ctx):
        own = DATABASES[database][library](elsewhere)
        try:
            own.write_in(ctx, "CREATE TABLE never (n INTEGER)")
        finally:
            own.close()

    (error,) = finished(worker.send(5, task="write")).errors

    assert error.type == "ConfigError"
    assert "nothing was" in error.message


@with_some
def test_the_other_kind_of_with_is_refused(worker, lender, borrowing, library):
    @worker.handler("write", retry=ONCE)
    def write(n, ctx):
        def act(own):
            if library in ASYNCHRONOUS:
                with ctx.transaction(own.given):
                    raise AssertionError

            async def wrong():
                async with ctx.transaction(own.given):
                    raise AssertionError

            asyncio.run(wrong())

        borrowing(act)

    (error,) = finished(worker.send(5, task="write")).errors

    assert error.type == "ConfigError"
    assert "with ctx.transaction(" in error.message
