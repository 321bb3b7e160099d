-- The rows in scope are counted beside the feeding, stretch by stretch in the order of ids; a later feeder
-- goes on where the one before ended.

ALTER TABLE bucket_brigade.run
    -- The last row id that is counted, and how many rows in scope there are up to it.
    ADD COLUMN scope_cursor   text,
    ADD COLUMN scope_counted  bigint NOT NULL DEFAULT 0,
    -- By the table's statistics, until all are counted.
    ADD COLUMN scope_estimate bigint;

-- Each line that is written would look up a row that the feeder updates page by page: while a snapshot is
-- open, through all its versions since. Lines have the number of a run that was found before, and runs stay.
ALTER TABLE bucket_brigade.moves DROP CONSTRAINT moves_run_id_fkey;
ALTER TABLE bucket_brigade.changes DROP CONSTRAINT changes_run_id_fkey;
ALTER TABLE bucket_brigade.failures DROP CONSTRAINT failures_run_id_fkey;
ALTER TABLE bucket_brigade.orphans DROP CONSTRAINT orphans_run_id_fkey;
ALTER TABLE bucket_brigade.poison DROP CONSTRAINT poison_run_id_fkey;
ALTER TABLE bucket_brigade.counters DROP CONSTRAINT counters_run_id_fkey;
ALTER TABLE bucket_brigade.workers DROP CONSTRAINT workers_run_id_fkey;
ALTER TABLE bucket_brigade.verifications DROP CONSTRAINT verifications_run_id_fkey;
ALTER TABLE bucket_brigade.mismatches DROP CONSTRAINT mismatches_run_id_fkey;
ALTER TABLE bucket_brigade.rollbacks DROP CONSTRAINT rollbacks_run_id_fkey;
ALTER TABLE bucket_brigade.removals DROP CONSTRAINT removals_run_id_fkey;
