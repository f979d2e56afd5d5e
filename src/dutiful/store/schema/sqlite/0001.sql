-- What the store knows of itself.
CREATE TABLE dutiful_meta (
    key   TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;

-- The jobs. One table, so that a job changes state by one write; the partial indexes keep
-- each state's rows out of the others' way. Instants are milliseconds since 1970 UTC.
CREATE TABLE dutiful_job (
    id          INTEGER PRIMARY KEY,            -- given by dutiful_meta.next_id, never used twice
    state       TEXT    NOT NULL,               -- pending, blocked, running, completed, dead, cancelled; a CHECK
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
    parked_at   INTEGER,                        -- its due_at before no worker knew its task, or it was paused
    -- What follows is NULL in a plain job; `extra` is not NULL in all others.
    extra       TEXT,                           -- for its worker: JSON, see store/special/extra.py
    held        TEXT,                           -- why it is blocked: after, key or pool; or "end": it
                                                -- has completed, and who waits for that is not told yet
    lane        TEXT,                           -- its key: one at a time, in the order sent
    pool        TEXT,                           -- its limit: so many at a time
    waits       INTEGER,                        -- how many jobs of `after` have not finished
    followed    INTEGER,                        -- another job waits for it
    unique_key  TEXT,                           -- while it stands in the way of another such
    unique_till INTEGER,                        -- and no longer than until then
    expires_at  INTEGER,
    progress    TEXT,
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
CREATE INDEX dutiful_job_lane ON dutiful_job (lane, held, id)
    WHERE lane IS NOT NULL AND state IN ('pending', 'blocked', 'running');
CREATE INDEX dutiful_job_pool ON dutiful_job (pool, held, priority DESC, id)
    WHERE pool IS NOT NULL AND state IN ('pending', 'blocked', 'running');
CREATE UNIQUE INDEX dutiful_job_unique ON dutiful_job (unique_key)
    WHERE unique_key IS NOT NULL;
CREATE INDEX dutiful_job_expires ON dutiful_job (expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('pending', 'blocked');
CREATE INDEX dutiful_job_blocked ON dutiful_job (due_at)
    WHERE state = 'blocked';

CREATE INDEX dutiful_job_end ON dutiful_job (id)
    WHERE held = 'end';

-- Which job waits for which. A parent's outcome and result stay here until its last child has run.
CREATE TABLE dutiful_after (
    parent_id INTEGER NOT NULL,
    job_id    INTEGER NOT NULL,
    place     INTEGER NOT NULL,                 -- in the order in which the parents were given
    outcome   TEXT,                             -- the parent's state when it had finished
    result    TEXT,
    PRIMARY KEY (parent_id, job_id)
) WITHOUT ROWID;
CREATE INDEX dutiful_after_job ON dutiful_after (job_id, place);
CREATE INDEX dutiful_after_open ON dutiful_after (parent_id)
    WHERE outcome IS NULL;

-- Limits, each under its name: how many jobs at once, how many starts a second.
CREATE TABLE dutiful_pool (
    name    TEXT PRIMARY KEY,
    size    INTEGER NOT NULL,                   -- 0: no such bound
    per_s   REAL    NOT NULL,                   -- 0: no such bound
    burst   INTEGER NOT NULL,
    next_at REAL    NOT NULL                    -- ms; see core/rates.py
) WITHOUT ROWID;

-- What handlers have done, step by step (ctx.step), slept (ctx.sleep) or waited for (ctx.wait_event).
CREATE TABLE dutiful_step (
    job_id INTEGER NOT NULL,
    name   TEXT    NOT NULL,
    kind   TEXT    NOT NULL,                    -- step, sleep or event
    at     INTEGER NOT NULL,                    -- when it was done, or will be over
    event  TEXT,                                -- which event an open wait is for
    value  TEXT,                                -- as JSON; NULL while it is open
    PRIMARY KEY (job_id, name)
) WITHOUT ROWID;
CREATE INDEX dutiful_step_event ON dutiful_step (event)
    WHERE event IS NOT NULL;

-- Events that nobody has waited for yet.
CREATE TABLE dutiful_event (
    id   INTEGER PRIMARY KEY,
    name TEXT    NOT NULL,
    at   INTEGER NOT NULL,
    value TEXT
);
CREATE INDEX dutiful_event_name ON dutiful_event (name, id);

-- Periodic jobs; see core/schedule.py. `spec` and the job to send are written by whoever declares it.
CREATE TABLE dutiful_schedule (
    name      TEXT PRIMARY KEY,
    spec      TEXT    NOT NULL,                 -- "every 300" or "cron 0 3 * * * Europe/Berlin"
    missed    TEXT    NOT NULL,                 -- latest, all or skip
    task      TEXT    NOT NULL,
    queue     TEXT    NOT NULL,
    payload   TEXT    NOT NULL,
    priority  INTEGER NOT NULL DEFAULT 0,
    next_at   INTEGER NOT NULL,                 -- the next firing; whoever moves it on sends the job
    last_at   INTEGER,
    last_job  INTEGER,
    paused_at INTEGER,
    seen_at   INTEGER NOT NULL                  -- when a worker last declared it; long ago: it is stale
) WITHOUT ROWID;
CREATE INDEX dutiful_schedule_next ON dutiful_schedule (next_at)
    WHERE paused_at IS NULL;

-- Queues and tasks that no worker takes jobs of.
CREATE TABLE dutiful_pause (
    kind TEXT    NOT NULL,                      -- queue or task
    name TEXT    NOT NULL,
    at   INTEGER NOT NULL,
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;

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
