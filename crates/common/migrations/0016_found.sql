-- Copies that stood at the destination already, and of which nothing shows that this run made them: they are no orphans
-- when their rows are set back.

ALTER TABLE bucket_brigade.moves ADD COLUMN is_found boolean NOT NULL DEFAULT false;
