-- Steering and watching: who paused the run, how much the fleet may do at once, who is alive, and the
-- failures by code.

ALTER TABLE bucket_brigade.run
    -- Who paused it, and why; null while it is not paused, or when it was paused by hand.
    ADD COLUMN paused_by         text,
    ADD COLUMN paused_at         timestamptz,
    ADD COLUMN pause_reason      text,
    -- Copies in flight at most in the whole fleet; null for no limit.
    ADD COLUMN concurrency_limit integer CHECK (concurrency_limit > 0);

-- Each process says every second that it is alive, and what it is doing. Who has not done so for some
-- seconds is dead; its row is removed by a later feeder.
CREATE TABLE bucket_brigade.workers (
    run_id           bigint NOT NULL REFERENCES bucket_brigade.run,
    worker           text NOT NULL,
    role             text NOT NULL CHECK (role IN ('feeder', 'consumer')),
    -- One word, and what a person should know about it.
    state            text NOT NULL,
    reason           text NOT NULL DEFAULT '',
    -- Copies it may have in flight at the moment, and messages it holds.
    concurrency      bigint NOT NULL DEFAULT 0,
    in_hand          bigint NOT NULL DEFAULT 0,
    -- Rows it moved per second, over the last minute.
    moved_per_second double precision NOT NULL DEFAULT 0,
    -- How long its last commits took, in seconds; null before the first.
    commit_seconds   double precision,
    started_at       timestamptz NOT NULL DEFAULT now(),
    seen_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, worker)
);

-- The failures by code, so that nobody who polls has to count them. Backends share a code's count over
-- shards, so that they do not wait for each other's transactions.
CREATE TABLE bucket_brigade.failure_counts (
    run_id bigint NOT NULL REFERENCES bucket_brigade.run,
    code   text NOT NULL,
    shard  smallint NOT NULL,
    failed bigint NOT NULL,
    PRIMARY KEY (run_id, code, shard)
);

INSERT INTO bucket_brigade.failure_counts (run_id, code, shard, failed)
SELECT run_id, code, 0, count(*) FROM bucket_brigade.failures GROUP BY run_id, code;

-- A trigger and not the statements themselves: an upsert does not tell which code it replaced, and a
-- consumer of the version before goes on counting right.
CREATE FUNCTION bucket_brigade.count_failures() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    its_shard smallint := pg_backend_pid() % 64;
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO bucket_brigade.failure_counts AS c (run_id, code, shard, failed)
        SELECT run_id, code, its_shard, count(*) FROM new_rows GROUP BY run_id, code ORDER BY run_id, code
        ON CONFLICT (run_id, code, shard) DO UPDATE SET failed = c.failed + excluded.failed;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO bucket_brigade.failure_counts AS c (run_id, code, shard, failed)
        SELECT run_id, code, its_shard, -count(*) FROM old_rows GROUP BY run_id, code ORDER BY run_id, code
        ON CONFLICT (run_id, code, shard) DO UPDATE SET failed = c.failed + excluded.failed;
    ELSE
        INSERT INTO bucket_brigade.failure_counts AS c (run_id, code, shard, failed)
        SELECT run_id, code, its_shard, sum(n) FROM (
            SELECT run_id, code, 1 AS n FROM new_rows
            UNION ALL SELECT run_id, code, -1 FROM old_rows) AS both_ways
         GROUP BY run_id, code HAVING sum(n) <> 0 ORDER BY run_id, code
        ON CONFLICT (run_id, code, shard) DO UPDATE SET failed = c.failed + excluded.failed;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER count_new AFTER INSERT ON bucket_brigade.failures
    REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bucket_brigade.count_failures();
CREATE TRIGGER count_changed AFTER UPDATE ON bucket_brigade.failures
    REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bucket_brigade.count_failures();
CREATE TRIGGER count_gone AFTER DELETE ON bucket_brigade.failures
    REFERENCING OLD TABLE AS old_rows
    FOR EACH STATEMENT EXECUTE FUNCTION bucket_brigade.count_failures();
