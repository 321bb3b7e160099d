-- What the feeder's conditions hold, for the consumers to read with the limits.

ALTER TABLE bucket_brigade.workers ADD COLUMN held text;
