-- Raised by rollback and by clean of orphans: what was sent to the queue before, or to the database, and arrives late,
-- changes nothing any more.

ALTER TABLE bucket_brigade.run ADD COLUMN fence bigint NOT NULL DEFAULT 0;
