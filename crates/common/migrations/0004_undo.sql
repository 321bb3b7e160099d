-- A rollback that is killed between setting a row back and its second look at the row's copy leaves a trace,
-- so that the next one looks.

ALTER TABLE bucket_brigade.rollbacks
    -- When the copy was looked at after the row was set back; null until then.
    ADD COLUMN looked_at timestamptz;

UPDATE bucket_brigade.rollbacks SET looked_at = rolled_back_at;

CREATE INDEX rollbacks_unseen ON bucket_brigade.rollbacks (run_id, row_id) WHERE looked_at IS NULL;
