//! The counters, which are summed. A process begins a row of its own now and then, and those that are no longer added
//! to are folded into one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{PostgresLedger, with_timeout};
use crate::ledger::move_ledger::StatementError;

/// While a snapshot stays open, each version of a row stays, and each addition looks at all of them: after so many
/// the process begins another row.
const ADDITIONS_PER_ROW: u64 = 100;

/// A process folds once in so many heartbeats.
const HEARTBEATS_PER_FOLD: u64 = 60;

/// By which of its rows a process counts.
#[derive(Debug, Default)]
pub(super) struct CounterRows {
    additions: AtomicU64,
    heartbeats: AtomicU64,
}

impl CounterRows {
    /// The name of the row for the next addition.
    fn next_name(&self, worker: &str) -> String {
        match self.additions.fetch_add(1, Ordering::Relaxed) / ADDITIONS_PER_ROW {
            0 => worker.to_owned(),
            number => format!("{worker}#{number}"),
        }
    }
}

/// A process that has neither counted nor sent a heartbeat for so long has ended. It may be wrong: one that
/// was only held up begins another row with what it counts next.
pub(super) const ENDED_AFTER: Duration = Duration::from_mins(1);

/// `$1` run, `$2` seconds. Returns how many rows were folded.
///
/// One statement, so that a sum at any moment has each number once. It locks a row before it takes
/// it, skips one that is being added to, and takes the numbers as they are under the lock.
/// A process whose row went has its next numbers inserted anew: all that is ever written are additions.
const FOLD_COUNTERS: &str = "WITH ended AS MATERIALIZED (
    SELECT c.worker FROM bucket_brigade.counters c
     WHERE c.run_id = $1 AND c.worker <> '(ended)' AND c.seen_at < now() - make_interval(secs => $2)
       AND NOT EXISTS (SELECT 1 FROM bucket_brigade.workers w
                        WHERE w.run_id = $1 AND w.worker = c.worker
                          AND w.seen_at >= now() - make_interval(secs => $2))
     ORDER BY c.worker FOR UPDATE OF c SKIP LOCKED
), gone AS (
    DELETE FROM bucket_brigade.counters c USING ended e WHERE c.run_id = $1 AND c.worker = e.worker
    RETURNING c.*
), folded AS (
    INSERT INTO bucket_brigade.counters AS c
           (run_id, worker, moved, changed, failed, orphans, poison, seen_at)
    SELECT $1, '(ended)', sum(moved)::bigint, sum(changed)::bigint, sum(failed)::bigint,
           sum(orphans)::bigint, sum(poison)::bigint, max(seen_at)
      FROM gone HAVING count(*) > 0
    ON CONFLICT (run_id, worker) DO UPDATE SET
        moved = c.moved + excluded.moved, changed = c.changed + excluded.changed,
        failed = c.failed + excluded.failed, orphans = c.orphans + excluded.orphans,
        poison = c.poison + excluded.poison, seen_at = greatest(c.seen_at, excluded.seen_at)
)
SELECT count(*) FROM gone";

impl PostgresLedger {
    /// The row of the counters for the next addition.
    pub(super) fn counter_row(&self) -> String {
        self.counter_rows.next_name(&self.worker)
    }

    /// Called once a heartbeat: folds now and then what this process and others do not add to any more.
    pub(super) async fn fold_counters_if_due(&self) {
        let before = self.counter_rows.heartbeats.fetch_add(1, Ordering::Relaxed);
        if before % HEARTBEATS_PER_FOLD != HEARTBEATS_PER_FOLD - 1 {
            return;
        }
        if let Err(error) = self.fold_counters(ENDED_AFTER).await {
            tracing::debug!(%error, "the counters are not folded yet");
        }
    }

    /// Folds the counters of processes without a heartbeat for `silent` into one row. Returns how
    /// many rows went. Safe at any moment, from any number of processes at once.
    pub async fn fold_counters(&self, silent: Duration) -> Result<u64, StatementError> {
        let query = sqlx::query_as(FOLD_COUNTERS).bind(self.run_id);
        let query = query.bind(silent.as_secs_f64());
        let (folded,): (i64,) = with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(u64::try_from(folded).unwrap_or(0))
    }
}
