-- The ledger: what Bucket Brigade knows about a migration, beside the application's own tables,
-- which it never alters. The schema itself is made before this runs. Row ids are kept as text whatever their type.

-- One migration: a table, its columns, the path rule and the two buckets. Starting the same
-- migration again finds this row again, and with it the feeder's cursor.
CREATE TABLE bucket_brigade.run (
    id                     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    images_table           text NOT NULL,
    id_column              text NOT NULL,
    path_column            text NOT NULL,
    old_prefix             text NOT NULL,
    new_prefix             text NOT NULL,
    source_bucket          text NOT NULL,
    source_key_prefix      text NOT NULL,
    destination_bucket     text NOT NULL,
    destination_key_prefix text NOT NULL,
    -- The last row id whose sends the queue confirmed in this sweep; null before the first.
    cursor                 text,
    sweep                  bigint NOT NULL DEFAULT 1,
    -- Rows fed in this sweep, and since the beginning.
    sweep_fed              bigint NOT NULL DEFAULT 0,
    fed                    bigint NOT NULL DEFAULT 0,
    -- Rows that had the old prefix when the run began; null until they are counted.
    in_scope               bigint,
    -- Set by hand or by an operator's command; the feeder obeys before its next page.
    paused                 boolean NOT NULL DEFAULT false,
    -- Rows fed per second at most, which bounds the copies of the whole fleet; null for no limit.
    rate_limit             double precision CHECK (rate_limit > 0),
    started_at             timestamptz NOT NULL DEFAULT now(),
    finished_at            timestamptz,
    UNIQUE (images_table, id_column, path_column, old_prefix, new_prefix,
            source_bucket, source_key_prefix, destination_bucket, destination_key_prefix)
);

-- The evidence of each move, written in the statement that sets the path.
CREATE TABLE bucket_brigade.moves (
    run_id     bigint NOT NULL REFERENCES bucket_brigade.run,
    row_id     text NOT NULL,
    old_path   text NOT NULL,
    new_path   text NOT NULL,
    etag       text NOT NULL,
    size_bytes bigint,
    moved_at   timestamptz NOT NULL DEFAULT now(),
    consumer   text NOT NULL,
    PRIMARY KEY (run_id, row_id)
);

-- Rows the application changed or deleted after they were fed: left as they are.
CREATE TABLE bucket_brigade.changes (
    run_id     bigint NOT NULL REFERENCES bucket_brigade.run,
    row_id     text NOT NULL,
    old_path   text NOT NULL,
    -- The path the application set; null when it deleted the row.
    found_path text,
    seen_at    timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, row_id)
);

-- Rows that could not be moved, and why. Removed when the row moves or the application changes it.
CREATE TABLE bucket_brigade.failures (
    run_id    bigint NOT NULL REFERENCES bucket_brigade.run,
    row_id    text NOT NULL,
    path      text NOT NULL,
    code      text NOT NULL,
    message   text NOT NULL,
    -- Whether trying again unchanged is pointless.
    permanent boolean NOT NULL,
    attempts  bigint NOT NULL DEFAULT 1,
    last_seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, row_id)
);

-- Copies whose row vanished or changed before the commit. Another row may share the object, so only
-- an operator removes one, after a look that no row's path is its new_path.
CREATE TABLE bucket_brigade.orphans (
    run_id          bigint NOT NULL REFERENCES bucket_brigade.run,
    destination_key text NOT NULL,
    new_path        text NOT NULL,
    etag            text NOT NULL,
    row_id          text NOT NULL,
    seen_at         timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, destination_key)
);

-- Messages that are not ours to understand. They are left for the dead-letter queue.
CREATE TABLE bucket_brigade.poison (
    run_id     bigint NOT NULL REFERENCES bucket_brigade.run,
    message_id text NOT NULL,
    reason     text NOT NULL,
    -- The first characters of the body, enough to recognise its sender.
    excerpt    text NOT NULL,
    attempts   bigint NOT NULL DEFAULT 1,
    last_seen  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, message_id)
);

-- What each consumer and feeder did, added to in the transaction that did it: progress is a sum
-- over processes, never a scan of the tables above.
CREATE TABLE bucket_brigade.counters (
    run_id  bigint NOT NULL REFERENCES bucket_brigade.run,
    worker  text NOT NULL,
    moved   bigint NOT NULL DEFAULT 0,
    changed bigint NOT NULL DEFAULT 0,
    failed  bigint NOT NULL DEFAULT 0,
    orphans bigint NOT NULL DEFAULT 0,
    poison  bigint NOT NULL DEFAULT 0,
    seen_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, worker)
);
