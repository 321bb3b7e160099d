-- Where the feeding of a run is, in a table of its own: it is written page by page, and while a snapshot is open each
-- version stays, through which every process would look that reads its run, once a second.

CREATE TABLE bucket_brigade.feed_cursors (
    run_id          bigint PRIMARY KEY,
    -- The last row id whose sends the queue confirmed in this sweep, or how far its order has come; null before.
    cursor          text,
    sweep           bigint NOT NULL DEFAULT 1,
    -- Rows fed in this sweep, and since the beginning.
    sweep_fed       bigint NOT NULL DEFAULT 0,
    fed             bigint NOT NULL DEFAULT 0,
    -- How many rows had ended when the sweep began.
    sweep_accounted bigint NOT NULL DEFAULT 0,
    -- The last row id that is counted, and how many rows in scope there are up to it.
    scope_cursor    text,
    scope_counted   bigint NOT NULL DEFAULT 0
);

INSERT INTO bucket_brigade.feed_cursors
SELECT id, cursor, sweep, sweep_fed, fed, sweep_accounted, scope_cursor, scope_counted FROM bucket_brigade.run;

ALTER TABLE bucket_brigade.run
    DROP COLUMN cursor, DROP COLUMN sweep, DROP COLUMN sweep_fed, DROP COLUMN fed, DROP COLUMN sweep_accounted,
    DROP COLUMN scope_cursor, DROP COLUMN scope_counted;

-- Who may use the one may use the other.
DO $$
DECLARE granted record;
BEGIN
    FOR granted IN
        SELECT a.grantee::regrole AS role, a.privilege_type AS privilege FROM pg_class c, aclexplode(c.relacl) a
         WHERE c.oid = 'bucket_brigade.run'::regclass AND a.grantee NOT IN (0, c.relowner)
           AND a.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
    LOOP
        EXECUTE format('GRANT %s ON bucket_brigade.feed_cursors TO %s', granted.privilege, granted.role);
    END LOOP;
END $$;
