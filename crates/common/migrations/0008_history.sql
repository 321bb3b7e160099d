-- Who did what to a run, when and why; and how many rows had ended when a sweep began, from which a feeder knows
-- how many messages of its own a queue holds that it shares with other runs.

CREATE TABLE bucket_brigade.history (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id   bigint NOT NULL,
    at       timestamptz NOT NULL DEFAULT now(),
    action   text NOT NULL,
    operator text NOT NULL,
    reason   text,
    -- What was asked for.
    details  text
);

ALTER TABLE bucket_brigade.run ADD COLUMN sweep_accounted bigint NOT NULL DEFAULT 0;

UPDATE bucket_brigade.run SET sweep_accounted = greatest(0, fed - sweep_fed);
