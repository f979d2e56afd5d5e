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
    parked_at   bigint,                       -- its due_at before no worker knew its task
    owner       bigint,                       -- worker.id while it runs
    attempt     integer NOT NULL DEFAULT 0,   -- one per claim; (id, attempt) is the fence
    priority    integer NOT NULL DEFAULT 0,   -- higher first
    failures    integer NOT NULL DEFAULT 0,
    crashes     integer NOT NULL DEFAULT 0,   -- in a row; above 0 it is a suspect
    due_fixed   boolean NOT NULL DEFAULT false, -- an instant on the calendar (run_at), not a delay
    state       text    NOT NULL,             -- pending, running, completed, dead or cancelled
    queue       text    NOT NULL,
    task        text    NOT NULL,
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
