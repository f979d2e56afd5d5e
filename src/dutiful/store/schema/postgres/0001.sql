-- Everything of dutiful's, in a schema of its own. (Another name is put in place of "dutiful" if it was
-- given.) Instants are milliseconds since 1970 UTC, by this server's clock.

-- What the store knows of itself. next_id: the ids below it are given; one row that is updated often, so
-- the page keeps room for its versions. schema_version, schema_min_code: which of these files have been
-- applied, and how new a program must be to work with that.
CREATE TABLE dutiful.meta (
    key   text PRIMARY KEY,
    value text NOT NULL
) WITH (fillfactor = 10);
INSERT INTO dutiful.meta (key, value) VALUES ('next_id', '1');

-- The jobs. One table, so that a job changes state by one write; the partial indexes keep each state's
-- rows out of the others' way. The columns are in an order that leaves no gaps between them.
CREATE TABLE dutiful.job (
    id          bigint  PRIMARY KEY,          -- given by meta.next_id, never used twice
    due_at      bigint  NOT NULL,
    created_at  bigint  NOT NULL,
    started_at  bigint,
    finished_at bigint,
    cancel_at   bigint,                       -- a running job was asked to stop
    parked_at   bigint,                       -- its due_at before no worker knew its task, or it was paused
    owner       bigint,                       -- worker.id while it runs
    attempt     integer NOT NULL DEFAULT 0,   -- one per claim; (id, attempt) is the fence
    priority    integer NOT NULL DEFAULT 0,   -- higher first
    failures    integer NOT NULL DEFAULT 0,
    crashes     integer NOT NULL DEFAULT 0,   -- in a row; above 0 it is a suspect
    due_fixed   boolean NOT NULL DEFAULT false, -- an instant on the calendar (run_at), not a delay
    state       text    NOT NULL,             -- pending, blocked, running, completed, dead or cancelled
    queue       text    NOT NULL,
    task        text    NOT NULL,
    -- What follows is NULL in a plain job; `extra` is not NULL in all others.
    extra       text,                         -- for its worker: JSON, see store/special/extra.py
    held        text,                         -- why it is blocked: after, key or pool; or "end": it has
                                              -- completed, and who waits for that is not told yet
    lane        text,                         -- its key: one at a time, in the order sent
    pool        text,                         -- its limit: so many at a time
    waits       integer,                      -- how many jobs of `after` have not finished
    followed    boolean,                      -- another job waits for it
    unique_key  text,                         -- while it stands in the way of another such
    unique_till bigint,                       -- and no longer than until then
    expires_at  bigint,
    progress    text,
    payload     text,
    result      text
) WITH (
    -- Every job leaves one to three dead rows behind, and a claim has to step over their index entries.
    -- So vacuum after a number of them, not after a share of a table that may hold a million waiting jobs,
    -- and without pauses: what is new since the last time is in memory.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    -- Statistics hardly matter here: our plans are the same at every size.
    autovacuum_analyze_scale_factor = 0.5,
    autovacuum_analyze_threshold = 100000,
    -- To give the empty end of the table back, vacuum would lock out everybody, and it is soon filled again.
    vacuum_truncate = false,
    toast.vacuum_truncate = false
);

-- The claim's order. Priority before time, so that a claim visits each priority once and a million
-- future jobs of a high priority cost one step.
CREATE INDEX job_claim ON dutiful.job (queue, priority DESC, due_at, id)
    WHERE state = 'pending' AND crashes = 0;
CREATE INDEX job_suspect ON dutiful.job (queue, priority DESC, due_at, id)
    WHERE state = 'pending' AND crashes > 0;
CREATE INDEX job_running ON dutiful.job (owner)
    WHERE state = 'running';
CREATE INDEX job_finished ON dutiful.job (finished_at, id)
    WHERE state IN ('completed', 'cancelled');
CREATE INDEX job_dead ON dutiful.job (finished_at)
    WHERE state = 'dead';
CREATE INDEX job_parked ON dutiful.job (task)
    WHERE parked_at IS NOT NULL;
CREATE INDEX job_cancel ON dutiful.job (owner)
    WHERE cancel_at IS NOT NULL;
CREATE INDEX job_lane ON dutiful.job (lane, held, id)
    WHERE lane IS NOT NULL AND state IN ('pending', 'blocked', 'running');
CREATE INDEX job_pool ON dutiful.job (pool, held, priority DESC, id)
    WHERE pool IS NOT NULL AND state IN ('pending', 'blocked', 'running');
CREATE UNIQUE INDEX job_unique ON dutiful.job (unique_key)
    WHERE unique_key IS NOT NULL;
CREATE INDEX job_expires ON dutiful.job (expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('pending', 'blocked');
CREATE INDEX job_blocked ON dutiful.job (due_at)
    WHERE state = 'blocked';

CREATE INDEX job_end ON dutiful.job (id)
    WHERE held = 'end';

-- Which job waits for which. A parent's outcome and result stay here until its last child has run.
CREATE TABLE dutiful.after (
    parent_id bigint NOT NULL,
    job_id    bigint NOT NULL,
    place     bigint NOT NULL,                 -- in the order in which the parents were given
    outcome   text,                             -- the parent's state when it had finished
    result    text,
    PRIMARY KEY (parent_id, job_id)
);
CREATE INDEX after_job ON dutiful.after (job_id, place);
CREATE INDEX after_open ON dutiful.after (parent_id)
    WHERE outcome IS NULL;

-- Limits, each under its name: how many jobs at once, how many starts a second.
CREATE TABLE dutiful.pool (
    name    text PRIMARY KEY,
    size    bigint NOT NULL,                   -- 0: no such bound
    per_s   double precision NOT NULL,         -- 0: no such bound
    burst   bigint NOT NULL,
    next_at double precision NOT NULL          -- ms; see core/rates.py
);

-- What handlers have done, step by step (ctx.step), slept (ctx.sleep) or waited for (ctx.wait_event).
CREATE TABLE dutiful.step (
    job_id bigint NOT NULL,
    name   text    NOT NULL,
    kind   text    NOT NULL,                    -- step, sleep or event
    at     bigint NOT NULL,                    -- when it was done, or will be over
    event  text,                                -- which event an open wait is for
    value  text,                                -- as JSON; NULL while it is open
    PRIMARY KEY (job_id, name)
);
CREATE INDEX step_event ON dutiful.step (event)
    WHERE event IS NOT NULL;

-- Events that nobody has waited for yet.
CREATE TABLE dutiful.event (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text    NOT NULL,
    at   bigint NOT NULL,
    value text
);
CREATE INDEX event_name ON dutiful.event (name, id);

-- Periodic jobs; see core/schedule.py. `spec` and the job to send are written by whoever declares it.
CREATE TABLE dutiful.schedule (
    name      text PRIMARY KEY,
    spec      text    NOT NULL,                 -- "every 300" or "cron 0 3 * * * Europe/Berlin"
    missed    text    NOT NULL,                 -- latest, all or skip
    task      text    NOT NULL,
    queue     text    NOT NULL,
    payload   text    NOT NULL,
    priority  bigint NOT NULL DEFAULT 0,
    next_at   bigint NOT NULL,                 -- the next firing; whoever moves it on sends the job
    last_at   bigint,
    last_job  bigint,
    paused_at bigint,
    seen_at   bigint NOT NULL                  -- when a worker last declared it; long ago: it is stale
);
CREATE INDEX schedule_next ON dutiful.schedule (next_at)
    WHERE paused_at IS NULL;

-- Queues and tasks that no worker takes jobs of.
CREATE TABLE dutiful.pause (
    kind text    NOT NULL,                      -- queue or task
    name text    NOT NULL,
    at   bigint NOT NULL,
    PRIMARY KEY (kind, name)
);

CREATE TABLE dutiful.error (
    job_id    bigint  NOT NULL,
    attempt   integer NOT NULL,
    at        bigint  NOT NULL,
    worker    text    NOT NULL,
    type      text    NOT NULL,
    message   text    NOT NULL,
    traceback text    NOT NULL,
    PRIMARY KEY (job_id, attempt)
);

CREATE TABLE dutiful.worker (
    id             bigint  PRIMARY KEY,       -- chosen by chance: also the key of the worker's advisory lock
    started_at     bigint  NOT NULL,
    seen_at        bigint  NOT NULL,
    server_started bigint  NOT NULL,          -- when the server that holds its lock was started
    pid            integer NOT NULL,
    concurrency    integer NOT NULL,
    incarnation    integer NOT NULL DEFAULT 1, -- rises each time it had to connect anew
    has_lock       boolean NOT NULL,          -- false: behind a pooler, where only its heartbeat tells
    name           text    NOT NULL,
    host           text    NOT NULL,
    boot           text    NOT NULL,          -- which run of the machine
    token          text    NOT NULL UNIQUE,   -- names its marks
    queues         text[]  NOT NULL,
    tasks          text[]                     -- the tasks that it can run; NULL: any
);
