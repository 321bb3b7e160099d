-- Each run has a name, by which consumers and commands find it. It is the feeder's RUN_NAME, or made of table
-- and column.

ALTER TABLE bucket_brigade.run ADD COLUMN name text;

UPDATE bucket_brigade.run r SET name = named.name || CASE WHEN named.number > 1 THEN '-' || named.number ELSE '' END
FROM (SELECT id, base AS name, row_number() OVER (PARTITION BY base ORDER BY id) AS number
        FROM (SELECT id, regexp_replace(replace(images_table, '"', ''), '^public\.', '') || '.' || path_column AS base
                FROM bucket_brigade.run) AS bases) AS named
WHERE named.id = r.id;

ALTER TABLE bucket_brigade.run ALTER COLUMN name SET NOT NULL, ADD UNIQUE (name);
