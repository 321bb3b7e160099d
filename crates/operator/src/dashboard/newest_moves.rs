//! The newest moves, for thumbnails.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};

/// There is no index on the time of a move: each commit would have to write it. New rows stand at the
/// end of the table, and the end is found without reading the rest, so this costs the same however many
/// there are. A server before version 14 would read the whole table: it gets no rows.
const SELECT_NEWEST_MOVES: &str = "WITH tail AS MATERIALIZED (
        SELECT run_id, old_path, new_path, moved_at FROM bucket_brigade.moves
         WHERE current_setting('server_version_num')::int >= 140000
           AND ctid >= $2::tid)
    SELECT old_path, new_path FROM tail WHERE run_id = $1 ORDER BY moved_at DESC LIMIT $3";

const COUNT_PAGES: &str =
    "SELECT pg_relation_size('bucket_brigade.moves') / current_setting('block_size')::bigint";

/// Pages of the table that are read. Under load the server adds up to 64 at a time, the last of which are empty at first.
const TAIL_PAGES: i64 = 96;

/// Old and new path of the newest moves, newest first, `most` of them at most. None of them where the end of
/// the table holds moves of another run.
pub async fn newest_moves(
    ledger: &PostgresLedger,
    most: usize,
) -> Result<Vec<(String, String)>, StatementError> {
    let pages = sqlx::query_scalar(COUNT_PAGES).fetch_one(ledger.pool());
    let pages: i64 = with_timeout(pages).await?;
    let query = sqlx::query_as(SELECT_NEWEST_MOVES)
        .bind(ledger.run_id())
        .bind(format!("({},0)", (pages - TAIL_PAGES).max(0)))
        .bind(i64::try_from(most).unwrap_or(i64::MAX));
    with_timeout(query.fetch_all(ledger.pool())).await
}
