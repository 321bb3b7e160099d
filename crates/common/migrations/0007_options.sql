-- What else makes a run: the settings that have no column of their own, by their names.

ALTER TABLE bucket_brigade.run ADD COLUMN options jsonb NOT NULL DEFAULT '{}';

-- Two runs may differ in these alone.
DO $$
DECLARE old_key text;
BEGIN
    SELECT conname INTO STRICT old_key FROM pg_constraint
     WHERE conrelid = 'bucket_brigade.run'::regclass AND contype = 'u' AND cardinality(conkey) = 9;
    EXECUTE format('ALTER TABLE bucket_brigade.run DROP CONSTRAINT %I', old_key);
END $$;

ALTER TABLE bucket_brigade.run ADD CONSTRAINT run_settings_key
    UNIQUE (images_table, id_column, path_column, old_prefix, new_prefix, source_bucket,
            source_key_prefix, destination_bucket, destination_key_prefix, options);
