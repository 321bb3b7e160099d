//! The fence of a run: a number that rollback and clean of orphans raise. Messages carry the one that their feeder
//! found, and a commit is carried out only where it is the run's still. So a message of a feeder that was cut off, and
//! a statement that a silent network delivers late, move no row that went back meanwhile, nor to a copy that is gone.

use std::time::Duration;

use sqlx::postgres::PgPool;
use tokio::time::{sleep, timeout};

use super::{LedgerError, PostgresLedger};

/// Longer than any statement of ours may take.
const WRITERS_TIMEOUT: Duration = Duration::from_secs(40);

const WRITERS_CHECK_INTERVAL: Duration = Duration::from_millis(200);

const FENCE_TIMEOUT: Duration = Duration::from_secs(10);

const FENCE_TIMED_OUT: LedgerError = LedgerError::TimedOut {
    what: "the run's fence",
    limit: FENCE_TIMEOUT,
};

/// `$1` table. Transactions that write to it: a statement takes this lock before it looks at any row.
const SELECT_WRITERS: &str = "SELECT DISTINCT l.virtualtransaction FROM pg_locks l
    WHERE l.locktype = 'relation' AND l.relation = $1::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())";

impl PostgresLedger {
    /// What messages carry from now on.
    pub async fn read_fence(&self) -> Result<i64, LedgerError> {
        let query = sqlx::query_scalar("SELECT fence FROM bucket_brigade.run WHERE id = $1");
        let query = query.bind(self.run_id).fetch_one(&self.pool);
        Ok(timeout(FENCE_TIMEOUT, query)
            .await
            .map_err(|_| FENCE_TIMED_OUT)??)
    }

    /// Shuts out all that was sent before, and waits for the end of what is being carried out.
    pub async fn raise_fence(&self) -> Result<i64, LedgerError> {
        let query = sqlx::query_scalar(
            "UPDATE bucket_brigade.run SET fence = fence + 1 WHERE id = $1 RETURNING fence",
        );
        let query = query.bind(self.run_id).fetch_one(&self.pool);
        let fence = timeout(FENCE_TIMEOUT, query)
            .await
            .map_err(|_| FENCE_TIMED_OUT)??;
        wait_for_writers(&self.pool, "bucket_brigade.moves").await?;
        Ok(fence)
    }

    /// A statement of a rollback that was killed goes on for a while, and nothing else tells of it: waits for its end.
    pub async fn wait_for_undo_statements(&self) -> Result<(), LedgerError> {
        wait_for_writers(&self.pool, "bucket_brigade.rollbacks").await
    }
}

/// Waits for the end of the transactions that write to a table now; those that begin later are not waited for.
async fn wait_for_writers(pool: &PgPool, table: &str) -> Result<(), LedgerError> {
    let writers = async || {
        let query = sqlx::query_scalar::<_, String>(SELECT_WRITERS).bind(table);
        query.fetch_all(pool).await
    };
    let wait = async {
        let mut left = writers().await?;
        while !left.is_empty() {
            sleep(WRITERS_CHECK_INTERVAL).await;
            let now = writers().await?;
            left.retain(|writer| now.contains(writer));
        }
        Ok(())
    };
    match timeout(WRITERS_TIMEOUT, wait).await {
        Ok(waited) => waited,
        Err(_) => Err(LedgerError::TimedOut {
            what: "waiting for statements that are being carried out",
            limit: WRITERS_TIMEOUT,
        }),
    }
}
