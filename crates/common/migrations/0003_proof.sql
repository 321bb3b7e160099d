-- Proof, undo and removal: what verify found, what rollback set back, what clean removed.

ALTER TABLE bucket_brigade.moves
    -- When both objects were last found as they should be; null since the move, or since a mismatch.
    ADD COLUMN verified_at timestamptz,
    -- The source's ETag at that time: clean removes this object and no other.
    ADD COLUMN source_etag text,
    -- When the copy was made anew because its source had changed.
    ADD COLUMN recopied_at timestamptz;

-- The verification under way, or the last one.
CREATE TABLE bucket_brigade.verifications (
    run_id         bigint PRIMARY KEY REFERENCES bucket_brigade.run,
    -- What it was asked for: a cut-off one goes on only when asked for the same.
    sample_percent double precision NOT NULL,
    is_full        boolean NOT NULL,
    recopies       boolean NOT NULL,
    -- Which rows are in the sample.
    seed           bigint NOT NULL,
    -- First the moves, in the order of row_id; then, in full mode, the table, in the order of its ids.
    is_in_table    boolean NOT NULL DEFAULT false,
    cursor         text,
    checked        bigint NOT NULL DEFAULT 0,
    sound          bigint NOT NULL DEFAULT 0,
    -- Rows that the application has changed or deleted since their move.
    outdated       bigint NOT NULL DEFAULT 0,
    recopied       bigint NOT NULL DEFAULT 0,
    -- Rows of the table: looked at, and of these outside the path rule.
    table_rows     bigint NOT NULL DEFAULT 0,
    table_outside  bigint NOT NULL DEFAULT 0,
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at    timestamptz
);

-- What that verification found wrong.
CREATE TABLE bucket_brigade.mismatches (
    run_id   bigint NOT NULL REFERENCES bucket_brigade.run,
    row_id   text NOT NULL,
    path     text NOT NULL,
    code     text NOT NULL,
    message  text NOT NULL,
    found_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (run_id, row_id)
);

-- Rows that were set back to their old path: the evidence of the move, taken out of moves by the statement
-- that set the path. Such a row is to do again. The line stays when it moves once more.
CREATE TABLE bucket_brigade.rollbacks (
    run_id         bigint NOT NULL REFERENCES bucket_brigade.run,
    row_id         text NOT NULL,
    old_path       text NOT NULL,
    new_path       text NOT NULL,
    etag           text NOT NULL,
    size_bytes     bigint,
    moved_at       timestamptz NOT NULL,
    consumer       text NOT NULL,
    rolled_back_at timestamptz NOT NULL DEFAULT now(),
    operator       text NOT NULL,
    PRIMARY KEY (run_id, row_id)
);

-- Objects that clean removed or means to remove, by the path that named them.
CREATE TABLE bucket_brigade.removals (
    run_id       bigint NOT NULL REFERENCES bucket_brigade.run,
    -- Whether it is an orphaned copy in the destination bucket; otherwise a source.
    is_orphan    boolean NOT NULL,
    path         text NOT NULL,
    bucket       text NOT NULL,
    object_key   text NOT NULL,
    -- The ETag the object must have to be removed, and for a source that of its copy.
    etag         text NOT NULL,
    copy_etag    text,
    size_bytes   bigint,
    -- Rows that were moved off it.
    moved_rows   bigint NOT NULL DEFAULT 0,
    -- Written before the request, so that a kill in the middle leaves a trace.
    removing_at  timestamptz,
    -- Written after the answer.
    removed_at   timestamptz,
    -- The version of the delete marker that hides it, in a bucket with versions.
    delete_marker text,
    operator     text NOT NULL,
    -- Why it was left alone at the last look.
    left_because text,
    PRIMARY KEY (run_id, is_orphan, path)
);
