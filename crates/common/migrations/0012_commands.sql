-- Commands whose work ends where there is nothing left to do, and which go on where they were cut off.

-- What was moved lately, for a rollback of it: a few pages of index however many moves there are. Until it is
-- built commits wait, which consumers take for an outage; they hold no row of the application meanwhile. So it
-- comes before what needs the table for itself.
CREATE INDEX moves_by_time ON bucket_brigade.moves USING brin (moved_at) WITH (autosummarize = on);

ALTER TABLE bucket_brigade.moves
    -- When verify found that the row names the copy no more, or that the application has replaced it, and the
    -- source is still what was copied; null otherwise.
    ADD COLUMN abandoned_at      timestamptz,
    -- When clean removed the source of this move.
    ADD COLUMN source_settled_at timestamptz;

-- Sources that clean may remove. It holds verified moves only: a commit does not write it, and a removal takes
-- its moves out.
CREATE INDEX moves_cleanable ON bucket_brigade.moves (run_id, old_path)
    WHERE (verified_at > moved_at OR abandoned_at > moved_at) AND (source_settled_at >= moved_at) IS NOT TRUE;

-- What a clean was cut off in.
CREATE INDEX removals_unfinished ON bucket_brigade.removals (run_id, is_orphan, path)
    WHERE removing_at IS NOT NULL AND removed_at IS NULL;

-- Where a command is; none once it has come to the end. It goes on there only when it is asked for the same.
CREATE TABLE bucket_brigade.command_cursors (
    run_id    bigint NOT NULL,
    command   text NOT NULL,
    selection text NOT NULL,
    cursor    text NOT NULL,
    PRIMARY KEY (run_id, command)
);

-- Commands send heartbeats too.
ALTER TABLE bucket_brigade.workers DROP CONSTRAINT workers_role_check;
