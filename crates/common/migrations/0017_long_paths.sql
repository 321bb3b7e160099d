-- An entry of an index holds 2,704 bytes at most: a longer path, a URL with a signature for one, would keep its whole
-- page from being verified. The source of such a row stays.

DROP INDEX bucket_brigade.moves_cleanable;

CREATE INDEX moves_cleanable ON bucket_brigade.moves (run_id, old_path)
    WHERE (verified_at > moved_at OR abandoned_at > moved_at) AND (source_settled_at >= moved_at) IS NOT TRUE
      AND octet_length(old_path) <= 2600;
