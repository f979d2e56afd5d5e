"""Connections to PostgreSQL: addresses, schemas, lost connections, forks, and what a handler is lent."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from urllib.parse import urlsplit

import psycopg
import pytest

from dutiful.errors import ConfigError, ForkedProcess, SchemaTooNew, StoreBusy, StoreError, StoreUnavailable
from dutiful.job import Ack, State
from dutiful.store import postgres_access, postgres_schema
from dutiful.store.contract import Draft, Outcome, Take, Work
from dutiful.store.postgres import PostgresStore
from tests.store import inside_postgres as inside
from tests.worker.tools import until


@pytest.fixture
def store(database_url: str) -> Iterator[PostgresStore]:
    store = inside.opened(database_url)
    yield store
    store.close()


def put(store: PostgresStore, count: int = 1) -> list[int]:
    outcome = Outcome()
    store.exchange(Work(drafts=[Draft("t", "q", ["1"] * count)]), outcome)
    return list(outcome.stored[0])


def rows(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url, autocommit=True) as direct:
        return direct.execute(sql).fetchall()  # type: ignore[arg-type]


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "label"),
    [
        ("postgresql://me:s3cret@db.example:5433/shop", "postgresql://me@db.example:5433/shop"),
        ("postgres://db/shop?user=me&password=s3cret", "postgresql://me@db/shop"),
        ("postgresql:///shop?host=/run/pg&passfile=/s3cret", "postgresql:///run/pg/shop"),
        (
            "postgresql://db/shop?dutiful_schema=jobs&sslpassword=s3cret",
            "postgresql://db/shop (schema jobs)",
        ),
    ],
)
def test_the_label_names_the_database_and_no_secret(url: str, label: str) -> None:
    assert PostgresStore(url).label == label


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:s3cret@db/shop?no_such_parameter=1",
        "postgresql://me:s3cret@db/shop?dutiful_scheme=jobs",
        "postgresql://me:s3cret@db/shop?dutiful_schema=Jobs%22",
    ],
)
def test_a_wrong_address_is_refused_without_telling_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PostgresStore(url).open()

    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_without_a_server_the_store_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable, match="nothing was"):
        PostgresStore("postgresql://127.0.0.1:1/shop?connect_timeout=2").open()


def test_without_psycopg_the_error_says_what_to_install(tmp_path) -> None:
    """In an interpreter that does not find it."""
    program = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from dutiful import Worker, ConfigError\n"
        "try: Worker('postgresql://localhost/x')\n"
        "except ConfigError as error: print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert 'pip install "dutiful[postgres]"' in said.stdout


# --- the schema ----------------------------------------------------------------------------------


def test_everything_is_in_the_schema_that_was_named(database_url: str) -> None:
    with closing(inside.opened(f"{database_url}?dutiful_schema=other")) as store:
        put(store)

        found = rows(
            database_url, "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information)'"
        )
        assert found == [("other",)]


def test_two_schemas_of_a_database_do_not_meet(store: PostgresStore, database_url: str) -> None:
    with closing(inside.opened(database_url, schema="other")) as other:
        put(store, 3)
        owner = other.join("w", ["q"], 1)
        outcome = Outcome()
        other.exchange(Work(take=Take(owner, ("q",), 9)), outcome)

        assert (outcome.claims, other.unfinished(), store.unfinished()) == ([], 0, 3)
        assert store.workers() == []


def test_many_that_open_a_new_store_at_once_make_it_once(database_url: str) -> None:
    stores = [PostgresStore(database_url) for _ in range(6)]
    errors: list[BaseException] = []

    def begin(store: PostgresStore) -> None:
        try:
            store.open()
            put(store)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=begin, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert stores[0].unfinished() == 6
    for store in stores:
        store.close()


@pytest.mark.parametrize("options", [{"create": False}, {"migrate": False}])
def test_a_store_that_is_not_there_is_not_made_unasked(database_url: str, options: dict[str, bool]) -> None:
    with pytest.raises(StoreUnavailable, match="dutiful migrate"):
        PostgresStore(database_url, **options).open()

    assert rows(database_url, "SELECT to_regnamespace('dutiful') IS NULL") == [(True,)]


def test_a_newer_schema_is_left_alone(store: PostgresStore, database_url: str) -> None:
    store.close()
    rows(database_url, "UPDATE dutiful.meta SET value = '99' WHERE key LIKE 'schema_%' RETURNING key")

    with pytest.raises(SchemaTooNew, match="Upgrade"):
        store.open()

    rows(database_url, "UPDATE dutiful.meta SET value = '1' WHERE key = 'schema_min_code' RETURNING key")
    store.open()  # newer, and fit for older programs
    assert put(store)


def test_a_role_with_few_rights_works_on_what_a_dba_has_made(database_url: str) -> None:
    """The script as it is printed; then a role that owns nothing, and may create nothing."""
    role = f"clerk_{os.getpid()}_{threading.get_native_id()}"
    with psycopg.connect(database_url, autocommit=True) as dba:
        dba.execute(postgres_schema.script("jobs"))  # type: ignore[arg-type]
        dba.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'clerk'")  # type: ignore[arg-type]
        dba.execute(f"GRANT USAGE ON SCHEMA jobs TO {role}")  # type: ignore[arg-type]
        dba.execute(  # type: ignore[arg-type]
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA jobs TO {role}"
        )
        parts = urlsplit(database_url)
        url = parts._replace(netloc=f"{role}:clerk@{parts.hostname}:{parts.port}").geturl()
        try:
            with closing(inside.opened(f"{url}?dutiful_schema=jobs&dutiful_migrate=off")) as store:
                owner = store.join("w", ["q"], 1)
                put(store, 2)
                outcome = Outcome()
                store.exchange(Work(take=Take(owner, ("q",), 1)), outcome)
                with store.transaction(outcome.claims[0]):
                    pass
                store.leave(owner)
                assert store.unfinished() == 1
        finally:
            dba.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")  # type: ignore[arg-type]


@pytest.mark.parametrize("by", ["a send", "a schedule"])
def test_another_server_leaves_out_ids_that_it_may_not_have_heard_of(
    store: PostgresStore, database_url: str, by: str
) -> None:
    """Also if it has heard of none: the first server may have given some since."""
    found = rows(database_url, "UPDATE dutiful.meta SET value = 'F' WHERE key = 'timeline' RETURNING key")
    assert found == [("timeline",)]

    if by == "a send":
        first, second = put(store, 2)
    else:
        with store.sql() as sql:
            first, second = sql.new_ids(1), sql.new_ids(1)

    assert (first, second) == (1_000_001, 1_000_002)


# --- lost connections -------------------------------------------------------------------------------


def end_all_others(database_url: str) -> None:
    """End every session but one's own, and return when they have gone."""
    rows(
        database_url,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


def test_connections_that_the_server_has_closed_are_replaced(store: PostgresStore, database_url: str) -> None:
    """Before they are used: nobody gets an error for what happened while nothing was asked."""
    put(store)
    end_all_others(database_url)

    assert put(store)
    end_all_others(database_url)
    assert store.unfinished() == 2


def test_a_connection_lost_in_a_step_is_an_error_and_the_next_works(
    store: PostgresStore, database_url: str
) -> None:
    class Ending:
        """Knows every task; while it is asked, the server ends all sessions."""

        def __contains__(self, task: object) -> bool:
            end_all_others(database_url)
            return True

    put(store)
    outcome = Outcome()

    with pytest.raises(StoreError):
        store.exchange(Work(take=Take(7, ("q",), 1, known=Ending())), outcome)

    assert not outcome.committed
    assert len(put(store)) == 1
    assert store.counts().due == 2


@pytest.mark.parametrize("payload", ["a\x00b", "\ud800"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_text_that_the_server_cannot_hold_is_the_senders_fault(
    store: PostgresStore, payload: str, alone: bool
) -> None:
    """Not the store's, which is well; and the connection goes on."""
    drafts = [Draft("t", "q", [payload])] + ([] if alone else [Draft("u", "q", ["1"])])
    outcome = Outcome()

    with pytest.raises(ValueError):
        store.exchange(Work(drafts=drafts), outcome)

    assert not outcome.committed
    assert put(store)
    assert store.unfinished() == 1


def test_a_forked_child_leaves_the_parents_connections_alone(store: PostgresStore) -> None:
    put(store)
    pid = os.fork()
    if pid == 0:
        try:
            put(store)
        except ForkedProcess:
            store.close()
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(put(store)) == 1
    assert store.unfinished() == 2


# --- how many there are ----------------------------------------------------------------------------


def test_many_threads_look_by_few_connections(store: PostgresStore, monkeypatch: pytest.MonkeyPatch) -> None:
    (job_id,) = put(store)
    connected: list[str] = []
    connect = postgres_access.Access.connect

    def counted(access: postgres_access.Access, purpose: str) -> object:
        connected.append(purpose)
        return connect(access, purpose)

    monkeypatch.setattr(postgres_access.Access, "connect", counted)
    together = threading.Barrier(40)
    found: list[int] = []

    def look() -> None:
        for _ in range(5):
            together.wait()
            found.extend(record.id for record in store.get([job_id]))

    threads = [threading.Thread(target=look) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [job_id] * 200
    assert len(connected) < postgres_access.TURNS


def test_who_gets_no_turn_in_time_is_told_and_steps_need_none(database_url: str) -> None:
    with closing(inside.opened(database_url, busy_s=0.1)) as store, inside.all_turns_taken(store):
        with pytest.raises(StoreUnavailable, match="fewer threads"):
            store.counts()
        with pytest.raises(StoreUnavailable, match="nothing was changed"):
            store.edit([1], "cancel")

        assert put(store)


def test_who_has_a_turn_gets_a_second_connection_at_once(store: PostgresStore) -> None:
    put(store)
    with inside.all_turns_taken(store, but=1):
        with store.sql() as sql:
            assert store.counts().due == 1
            assert sql.change("UPDATE {job} SET progress = '1'") == 1
        assert store.counts().due == 1


def test_connections_that_are_not_needed_any_more_are_closed(
    store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.sql_look(), store.sql_look(), store.sql_look():
        pass
    assert len(inside.sessions(store)) == 3

    monkeypatch.setattr(postgres_access, "_IDLE_S", 0.0)
    for _ in range(2):
        store.counts()

    until(lambda: len(inside.sessions(store)) == 1)


# --- prepared statements ----------------------------------------------------------------------------


def put_both_ways(store: PostgresStore) -> None:
    """By one statement, which we prepare, and by several, which psycopg prepares; and look."""
    for _ in range(3):
        put(store)
        store.exchange(Work(drafts=[Draft("t", "q", ["1"]), Draft("u", "q", ["1"])]), Outcome())
        store.counts()


def raise_inside(store: PostgresStore) -> None:
    with pytest.raises(LookupError), store.sql() as sql:
        sql.rows("SELECT id FROM {job} LIMIT 1")
        raise LookupError


def wait_in_vain(store: PostgresStore) -> None:
    with closing(inside.other_connection(store)) as other, other.transaction():
        other.execute("SELECT FROM dutiful.job FOR UPDATE")
        with pytest.raises(StoreBusy):
            store.edit([1], "cancel")


def fail_in_a_step(store: PostgresStore) -> None:
    """In its first trip: the statements behind the one that fails are not even parsed."""
    taken, owner = Outcome(), store.join("w", ["q"], 1)
    store.exchange(Work(take=Take(owner, ("q",), 1)), taken)
    acks = [Ack(claim.id, claim.attempt, State.DEAD, 1, 0) for claim in taken.claims]
    with closing(inside.other_connection(store)) as other, other.transaction():
        other.execute("SELECT FROM dutiful.job FOR UPDATE")
        with pytest.raises(StoreBusy):
            store.exchange(Work(acks=acks, take=Take(owner, ("q", "other"), 1)), Outcome())


def drop_something(store: PostgresStore) -> None:
    with store._access.writing() as db:
        db.run("CREATE TABLE dutiful.mine ()")
        db.run("DROP TABLE dutiful.mine")


def deallocate(store: PostgresStore) -> None:
    """As psycopg does after this and that; or a pooler that gives the session to others in between."""
    with store._access.borrowed() as db:
        db.execute("DEALLOCATE ALL")


@pytest.mark.parametrize("trouble", [raise_inside, wait_in_vain, fail_in_a_step, drop_something, deallocate])
def test_after_whatever_ends_prepared_statements_the_store_goes_on(
    database_url: str, trouble: Callable[[PostgresStore], None]
) -> None:
    """On the same connections, at once: nobody after it gets an error."""
    with closing(inside.opened(database_url, busy_s=0.1)) as store:
        put_both_ways(store)

        for _ in range(3):
            trouble(store)
            put_both_ways(store)

        assert store.unfinished() == 4 * 9


def test_statements_that_are_lost_unnoticed_cost_one_error_at_most(store: PostgresStore) -> None:
    """Psycopg believes that its own are there: such a connection is given to nobody else."""
    put_both_ways(store)
    with store._access.borrowed() as db:
        db.pgconn.exec_(b"DEALLOCATE ALL")

    with pytest.raises(StoreError):
        store.counts()

    put_both_ways(store)


def test_a_table_that_has_changed_since_costs_no_error(store: PostgresStore, database_url: str) -> None:
    """As after a migration that somebody else has done: what was prepared before gives other columns."""
    with store._access.borrowed() as db:
        with psycopg.connect(database_url) as other:
            other.execute("CREATE TABLE public.mine AS SELECT 1 AS a")
        assert db.send("SELECT * FROM public.mine", {}) == [b"1"]
        db.commit_sent()
        with psycopg.connect(database_url) as other:
            other.execute("ALTER TABLE public.mine ALTER a TYPE text")

        assert db.send("SELECT * FROM public.mine", {}) == [b"1"]
        db.commit_sent()


# --- the handler's transaction ------------------------------------------------------------------------


def claims(store: PostgresStore, count: int):
    owner = store.join("w", ["q"], 1)
    put(store, count)
    outcome = Outcome()
    store.exchange(Work(take=Take(owner, ("q",), count)), outcome)
    return outcome.claims


def setting(db: psycopg.Connection, name: str) -> object:
    row = db.execute("SELECT current_setting(%s)", (name,)).fetchone()
    assert row is not None
    return row[0]


def test_a_handler_gets_the_settings_of_its_role_and_leaves_none_behind(store: PostgresStore) -> None:
    first, second = claims(store, 2)
    with store.transaction(first) as db:
        assert (setting(db, "enable_seqscan"), setting(db, "plan_cache_mode")) == ("on", "auto")
        db.execute("SET search_path = pg_catalog")
        db.execute("CREATE TEMP TABLE mine ()")
        db.row_factory = psycopg.rows.dict_row  # type: ignore[assignment]
        pid = db.info.backend_pid

    with store.transaction(second) as db:
        assert db.info.backend_pid == pid, "a connection is kept for the next handler"
        assert setting(db, "search_path") == '"$user", public'
        assert db.execute("SELECT to_regclass('pg_temp.mine')").fetchone() == (None,)


def test_a_handler_that_has_statements_prepared_leaves_none_behind(store: PostgresStore) -> None:
    first, second = claims(store, 2)
    with store.transaction(first) as db:
        db.prepare_threshold = 0
        db.execute("SELECT %s::text", ("mine",))

    with store.transaction(second) as db:
        assert db.prepare_threshold is None
        assert db.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)


def test_a_handler_that_ends_the_transaction_itself_is_told(store: PostgresStore) -> None:
    first, second = claims(store, 2)

    with pytest.raises(ConfigError, match="leave COMMIT"), store.transaction(first) as db:
        db.commit()
    with pytest.raises(ConfigError, match="leave COMMIT"), store.transaction(second) as db:
        db.execute("ROLLBACK; BEGIN")

    assert store.unfinished() == 2


def test_a_handlers_own_error_reaches_it_as_it_is(store: PostgresStore) -> None:
    """The driver's, not one of ours: it is the handler that knows what it means."""
    (claim,) = claims(store, 1)

    with pytest.raises(psycopg.errors.UndefinedTable), store.transaction(claim) as db:
        db.execute("SELECT * FROM nothing_here")

    assert store.unfinished() == 1


def test_a_handler_that_swallows_a_failed_statement_completes_nothing(store: PostgresStore) -> None:
    (claim,) = claims(store, 1)

    with pytest.raises(StoreError), store.transaction(claim) as db:
        with pytest.raises(psycopg.errors.UndefinedTable):
            db.execute("SELECT * FROM nothing_here")

    assert store.unfinished() == 1


def test_a_job_can_be_cancelled_and_taken_away_while_its_handler_has_a_transaction(
    store: PostgresStore,
) -> None:
    """It holds no lock on its job; whoever comes too late writes nothing."""
    from dutiful.errors import LeaseLost

    (claim,) = claims(store, 1)
    (worker,) = store.workers()

    with pytest.raises(LeaseLost), store.transaction(claim) as db:
        db.execute("CREATE TABLE mine ()")
        assert store.edit([claim.id], "cancel") == [claim.id]
        store.leave(worker.owner)

    with closing(inside.other_connection(store)) as direct:
        assert direct.execute("SELECT to_regclass('mine')").fetchone() == (None,)
