-- What the store knows of itself.
CREATE TABLE dutiful_meta (
    key   TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

-- The jobs. One table, so that a job changes state by one write; the partial indexes keep
-- each state's rows out of the others' way. Instants are milliseconds since 1970 UTC.
CREATE TABLE dutiful_job (
    id          INTEGER PRIMARY KEY,            -- given by dutiful_meta.next_id, never used twice
    state       TEXT    NOT NULL,               -- pending, running, completed, dead or cancelled; a CHECK
                                                -- cost a quarter of a bulk insert (2026-11)
    owner       INTEGER,                        -- dutiful_worker.id while it runs
    queue       TEXT    NOT NULL,
    task        TEXT    NOT NULL,
    priority    INTEGER NOT NULL DEFAULT 0,     -- higher first
    due_at      INTEGER NOT NULL,
    due_fixed   INTEGER NOT NULL DEFAULT 0,     -- 1: an instant on the calendar (run_at), not a delay
    attempt     INTEGER NOT NULL DEFAULT 0,     -- one per claim; (id, attempt) is the fence
    failures    INTEGER NOT NULL DEFAULT 0,
    crashes     INTEGER NOT NULL DEFAULT 0,     -- in a row; above 0 it is a suspect
    created_at  INTEGER NOT NULL,
    started_at  INTEGER,
    finished_at INTEGER,
    cancel_at   INTEGER,                        -- a running job was asked to stop
    parked_at   INTEGER,                        -- its due_at before no worker knew its task
    payload     TEXT,
    result      TEXT
);

-- The claim's order. Priority before time, so that a claim visits each priority once and
-- a million future jobs of a high priority cost one step (see claim in sqlite_sql.py).
CREATE INDEX dutiful_job_claim ON dutiful_job (queue, priority DESC, due_at)
    WHERE state = 'pending' AND crashes = 0;
CREATE INDEX dutiful_job_suspect ON dutiful_job (queue, priority DESC, due_at)
    WHERE state = 'pending' AND crashes > 0;
CREATE INDEX dutiful_job_running ON dutiful_job (owner)
    WHERE state = 'running';
CREATE INDEX dutiful_job_finished ON dutiful_job (finished_at)
    WHERE state IN ('completed', 'cancelled');
CREATE INDEX dutiful_job_dead ON dutiful_job (finished_at)
    WHERE state = 'dead';
CREATE INDEX dutiful_job_parked ON dutiful_job (task)
    WHERE parked_at IS NOT NULL;
CREATE INDEX dutiful_job_cancel ON dutiful_job (owner)
    WHERE cancel_at IS NOT NULL;

CREATE TABLE dutiful_error (
    job_id    INTEGER NOT NULL,
    attempt   INTEGER NOT NULL,
    at        INTEGER NOT NULL,
    worker    TEXT    NOT NULL,
    type      TEXT    NOT NULL,
    message   TEXT    NOT NULL,
    traceback TEXT    NOT NULL,
    PRIMARY KEY (job_id, attempt)
) WITHOUT ROWID;

CREATE TABLE dutiful_worker (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,  -- one per incarnation, never used twice
    name        TEXT    NOT NULL,
    host        TEXT    NOT NULL,
    boot        TEXT    NOT NULL,                   -- which run of the machine: its locks are gone after a boot
    pid         INTEGER NOT NULL,
    token       TEXT    NOT NULL UNIQUE,            -- names its lock file
    started_at  INTEGER NOT NULL,
    seen_at     INTEGER NOT NULL,
    queues      TEXT    NOT NULL,
    concurrency INTEGER NOT NULL,
    tasks       TEXT                                -- the tasks that it can run, as JSON; NULL: any
);

-- next_id: the ids below it are given. clock_boot, clock_offset: see clock.py.
INSERT INTO dutiful_meta (key, value) VALUES ('next_id', 1), ('clock_boot', ''), ('clock_offset', 0);
