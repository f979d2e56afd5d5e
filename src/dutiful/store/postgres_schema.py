"""Our tables in a PostgreSQL database: which version is there, and how it becomes ours."""

from dutiful.crashpoint import crashpoint
from dutiful.errors import SchemaTooNew, StoreUnavailable
from dutiful.store.postgres_access import REBUILD_S, Access, Connection

SCHEMA_VERSION = 1
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('dutiful migrate ' || %s, 0))"


def migrate(access: Access, *, create: bool, migrate: bool) -> None:
    """
    Bring the schema up to date in one transaction; whoever comes first does it, the others wait.

    `create`: whether to do so if nothing is there; `migrate`: if something older is.

    Raises:
        SchemaTooNew, StoreUnavailable: Nothing was changed.
    """
    with access.looking() as db:
        found = _version(access, db)
    if found == SCHEMA_VERSION:
        access.code = SCHEMA_VERSION
        return
    if not (migrate if found else create):
        there = (
            f"its schema is version {found}, this program's {SCHEMA_VERSION}" if found else "no store is here"
        )
        raise StoreUnavailable(
            access.label,
            f"{there}; nothing was changed. Run `dutiful migrate`, or have a DBA apply what "
            "`dutiful migrate --sql` prints.",
        )
    with access.writing() as db, db.patient(REBUILD_S):
        db.run(_LOCK, (access.schema_name,))
        for version in range(_version(access, db) + 1, SCHEMA_VERSION + 1):
            # A role that may not create schemas may not even ask for one that is there.
            if not _is_there(db, access.schema_name):
                db.run(f'CREATE SCHEMA "{access.schema_name}"')
            for statement in statements(version):
                db.run(statement)
                crashpoint("migrate.middle")
    access.code = SCHEMA_VERSION


def statements(version: int) -> list[str]:
    """Return the SQL statements that lead to schema `version`, and that say so."""
    from importlib import resources  # 10 ms, needed when a store is made

    text = resources.files("dutiful.store").joinpath(f"schema/postgres/{version:04}.sql").read_text("utf-8")
    # None of our statements has a semicolon at a line's end but its own.
    parts = [f"{part.strip()};" for part in text.split(";\n") if part.strip()]
    return [*parts, _NOTE.format(version=version)]


_NOTE = """\
INSERT INTO dutiful.meta (key, value) VALUES ('schema_version', '{version}'), ('schema_min_code', '{version}')
    ON CONFLICT (key) DO UPDATE SET value = excluded.value;"""


def script(schema: str, found: int = 0) -> str:
    """Return what leads from version `found` to ours, for a DBA to look at and apply."""
    parts = ["BEGIN;", f'CREATE SCHEMA IF NOT EXISTS "{schema}";']
    for version in range(found + 1, SCHEMA_VERSION + 1):
        parts += [statement.replace("dutiful.", f'"{schema}".') for statement in statements(version)]
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"


def version(access: Access) -> int:
    """Return the version that is there, 0 for none."""
    with access.looking() as db:
        return _version(access, db)


def _is_there(db: Connection, schema: str, table: str | None = None) -> bool:
    """
    Return whether a schema, or a table of it, is there.

    By a query, and not by to_regclass, which within a transaction remembers what was not there before.
    """
    there = db.run(
        "SELECT FROM pg_namespace AS s LEFT JOIN pg_class AS t ON t.relnamespace = s.oid AND t.relname = %s"
        " WHERE s.nspname = %s AND (%s::text IS NULL OR t.oid IS NOT NULL)",
        (table, schema, table),
    )
    return there.fetchone() is not None


def _version(access: Access, db: Connection) -> int:
    """Return the schema version found, 0 for none; one that is newer but fits counts as ours."""
    if not _is_there(db, access.schema_name, "meta"):
        return 0
    rows: dict[str, str] = dict(
        db.run("SELECT key, value FROM dutiful.meta WHERE key LIKE 'schema_%'").fetchall()
    )
    found, min_code = int(rows["schema_version"]), int(rows["schema_min_code"])
    if found <= SCHEMA_VERSION or min_code <= SCHEMA_VERSION:
        return min(found, SCHEMA_VERSION)
    raise SchemaTooNew(
        access.label,
        f"its schema is version {found}, this program knows {SCHEMA_VERSION}; nothing was changed. "
        "Upgrade dutiful here.",
    )
