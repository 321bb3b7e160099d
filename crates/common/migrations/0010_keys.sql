-- Paths may spell keys as URLs do, and an image may have companions: objects that no row names.

-- By the pattern that names it, the ETag of each companion's copy; null where the run has none.
ALTER TABLE bucket_brigade.moves ADD COLUMN companions jsonb;
ALTER TABLE bucket_brigade.rollbacks ADD COLUMN companions jsonb;

-- Whether other paths may spell the same key: the object is removed once, by one of them.
ALTER TABLE bucket_brigade.removals ADD COLUMN is_encoded boolean NOT NULL DEFAULT false;
CREATE INDEX removals_encoded_key ON bucket_brigade.removals (run_id, object_key) WHERE is_encoded;
