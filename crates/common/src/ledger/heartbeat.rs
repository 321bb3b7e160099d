//! Heartbeats and limits in the ledger.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row as _};

use super::connection::explain_pool_timeout;
use super::errors::NO_CONNECTION;
use super::run::{OPEN_TIMEOUT, within};
use super::runs::opened_at;
use super::{DatabasePool, LedgerError, PostgresLedger, counters, with_timeout};
use crate::ledger::fleet_control::{FleetControl, FleetLimits, Heartbeat};
use crate::ledger::move_ledger::StatementError;
use crate::ledger::worker_state::WorkerState;
use crate::sql::quote_identifier;

/// `$1` run, `$2` worker, `$3` role, `$4` state, `$5` reason, `$6` concurrency, `$7` in hand, `$8` rows
/// per second, `$9` seconds of a commit, `$10` states of consumers that are held back, `$11` why the fleet is
/// held, `$12` when the run was opened: nothing is written or returned where it was at another time. A heartbeat
/// that is lost in a crash is no loss: it does not wait for the disk.
const UPSERT_HEARTBEAT: &str = concat!(
    "WITH run AS (
    SELECT * FROM bucket_brigade.run WHERE id = $1 AND ",
    opened_at!(),
    " = $12
), heartbeat AS (
    INSERT INTO bucket_brigade.workers AS w
           (run_id, worker, role, state, reason, concurrency, in_hand, moved_per_second, commit_seconds, held)
    SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $11 FROM run
    ON CONFLICT (run_id, worker) DO UPDATE SET
        state = excluded.state, reason = excluded.reason, concurrency = excluded.concurrency,
        in_hand = excluded.in_hand, moved_per_second = excluded.moved_per_second,
        commit_seconds = excluded.commit_seconds, held = excluded.held, seen_at = now()
), feeders AS (
    -- What a feeder that died held is given up after a minute.
    SELECT max(held) AS held FROM bucket_brigade.workers
     WHERE run_id = $1 AND role = 'feeder' AND worker <> $2 AND seen_at > now() - interval '1 minute'
), others AS (
    SELECT count(*) AS alive, count(*) FILTER (WHERE worker < $2) AS before,
           count(*) FILTER (WHERE state = ANY($10)) AS held_back
      FROM bucket_brigade.workers
     WHERE run_id = $1 AND role = 'consumer' AND worker <> $2 AND seen_at > now() - interval '3 seconds'
)
SELECT r.paused, r.paused_by, r.pause_reason, r.rate_limit, r.concurrency_limit, f.held, o.alive, o.before, o.held_back,
       set_config('synchronous_commit', 'off', true)
  FROM run r, feeders f, others o"
);

/// `$1` run, `$2` worker. Takes a name that no living process has.
const CLAIM_NAME: &str = "INSERT INTO bucket_brigade.workers AS w (run_id, worker, role, state)
    VALUES ($1, $2, 'consumer', 'starting')
    ON CONFLICT (run_id, worker) DO UPDATE SET started_at = now(), seen_at = now()
     WHERE w.seen_at < now() - interval '3 seconds'";

const DELETE_WORKER: &str = "DELETE FROM bucket_brigade.workers WHERE run_id = $1 AND worker = $2";

/// Processes that were killed.
const DELETE_DEAD_WORKERS: &str = "DELETE FROM bucket_brigade.workers
    WHERE run_id = $1 AND seen_at < now() - interval '1 day'";

const SELECT_REPLICA_LAG: &str =
    "SELECT extract(epoch FROM max(replay_lag))::double precision FROM pg_stat_replication";

/// Aurora's readers share its storage, and are in no view of Postgres's. Source: Amazon Aurora User Guide,
/// "aurora_replica_status".
const SELECT_AURORA_LAG: &str =
    "SELECT (max(replica_lag_in_msec) / 1000)::double precision FROM aurora_replica_status()
      WHERE session_id <> 'MASTER_SESSION_ID'";

const UNSEEN_LAG: &str = "this is Aurora, whose readers do not stream from the writer: their lag is not seen; leave it off";

/// Others' rows of that view are blank without it.
const CHECK_LAG_PRIVILEGE: &str =
    "SELECT current_user::text, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
        to_regproc('aurora_version') IS NOT NULL, to_regproc('aurora_replica_status') IS NOT NULL";

/// From the columns of [`UPSERT_HEARTBEAT`].
impl FromRow<'_, PgRow> for FleetLimits {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let whole = |count: i64| u64::try_from(count).unwrap_or(0);
        let count = |name: &str| row.try_get(name).map(whole);
        let concurrency: Option<i32> = row.try_get("concurrency_limit")?;
        let is_paused: bool = row.try_get("paused")?;
        let pause = pause_description(row.try_get("paused_by")?, row.try_get("pause_reason")?);
        Ok(Self {
            paused: is_paused.then_some(pause),
            held: row.try_get("held")?,
            rate: row.try_get("rate_limit")?,
            concurrency: concurrency.and_then(|most| u64::try_from(most).ok()),
            other_consumers: count("alive")?,
            preceding_consumers: count("before")?,
            held_back_consumers: count("held_back")?,
            is_gone: false,
        })
    }
}

impl PostgresLedger {
    async fn write_heartbeat(
        &self,
        heartbeat: &Heartbeat,
    ) -> Result<Option<FleetLimits>, sqlx::Error> {
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        sqlx::query_as(UPSERT_HEARTBEAT)
            .bind(self.run_id)
            .bind(&*self.worker)
            .bind(heartbeat.role.name())
            .bind(heartbeat.state.as_str())
            .bind(&heartbeat.reason)
            .bind(number(heartbeat.concurrency))
            .bind(number(heartbeat.in_hand))
            .bind(heartbeat.moved_per_second)
            .bind(heartbeat.commit_seconds)
            .bind(WorkerState::HELD_BACK.map(WorkerState::as_str))
            .bind(&heartbeat.held)
            .bind(self.opened_at)
            .fetch_optional(&self.pool)
            .await
    }

    /// This ledger under a name that no other living process has: two of one name would count as one, and each
    /// take the whole of the fleet's limits.
    pub async fn with_own_name(&self) -> Result<Self, LedgerError> {
        let query = sqlx::query(CLAIM_NAME)
            .bind(self.run_id)
            .bind(&*self.worker);
        let claimed = with_timeout(query.execute(&self.pool)).await;
        let claimed = claimed.map_err(|error| LedgerError::Unreachable(error.to_string()))?;
        if claimed.rows_affected() > 0 {
            return Ok(self.clone());
        }
        let name = format!("{}-{:06x}", self.worker, fastrand::u32(..1 << 24));
        tracing::warn!(
            name,
            "another consumer is called '{}' (CONSUMER_NAME): this one is '{name}'",
            self.worker
        );
        Ok(Self {
            worker: name.into(),
            ..self.clone()
        })
    }

    /// Removes processes that died long ago from the list, and folds the counters of those that have ended:
    /// each process does so once, at its start, so that neither grows with the number of restarts.
    pub async fn prune_dead_workers(&self) {
        let query = sqlx::query(DELETE_DEAD_WORKERS).bind(self.run_id);
        let pruned = async {
            with_timeout(query.execute(&self.pool)).await?;
            self.fold_counters(counters::ENDED_AFTER).await
        };
        if let Err(error) = pruned.await {
            tracing::debug!(%error, "processes that have ended stay in the ledger");
        }
    }

    /// Makes sure that a lag of replicas would be seen.
    pub async fn check_replica_lag(&self) -> Result<(), LedgerError> {
        let has_aurora_lag = check_replica_lag(&self.database).await?;
        self.has_aurora_lag.store(has_aurora_lag, Ordering::Relaxed);
        Ok(())
    }
}

/// Makes sure that a lag of replicas would be seen. Returns whether it is Aurora's.
pub async fn check_replica_lag(database: &DatabasePool) -> Result<bool, LedgerError> {
    let query = sqlx::query_as(CHECK_LAG_PRIVILEGE).fetch_one(&**database);
    let asked = within(database, OPEN_TIMEOUT, "looking for replicas", async {
        Ok(query.await?)
    });
    let (user, may, is_aurora, has_status): (String, bool, bool, bool) = asked.await?;
    if is_aurora && !has_status {
        return Err(LedgerError::setting("MAX_REPLICA_LAG", UNSEEN_LAG.into()));
    }
    if may || has_status {
        return Ok(has_status);
    }
    Err(LedgerError::NotAllowed {
        what: "see how far replicas are behind, which MAX_REPLICA_LAG asks for".into(),
        sql: format!("GRANT pg_monitor TO {};", quote_identifier(&user)),
        user,
    })
}

/// Who paused the run, and why, for people.
pub fn pause_description(by: Option<String>, reason: Option<String>) -> String {
    let by = by.unwrap_or_else(|| "hand".into());
    match reason {
        Some(reason) => format!("by {by}: {reason}"),
        None => format!("by {by}"),
    }
}

#[async_trait]
impl FleetControl for PostgresLedger {
    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<FleetLimits, StatementError> {
        let written = match with_timeout(self.write_heartbeat(heartbeat)).await {
            Err(StatementError::Unavailable(reason)) if reason == NO_CONNECTION => {
                let explained = explain_pool_timeout(&self.database).await;
                Err(StatementError::Unavailable(explained.to_string()))
            }
            written => written,
        };
        let limits = match written {
            // The database's encoding may lack a letter of what an outage or a query is called.
            Err(StatementError::Rejected { .. }) => {
                with_timeout(self.write_heartbeat(&heartbeat.in_ascii())).await?
            }
            written => written?,
        };
        self.fold_counters_if_due().await;
        Ok(limits.unwrap_or_else(FleetLimits::of_gone_run))
    }

    async fn deregister(&self) -> Result<(), StatementError> {
        let query = sqlx::query(DELETE_WORKER)
            .bind(self.run_id)
            .bind(&*self.worker);
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    async fn replica_lag(&self) -> Result<Option<Duration>, StatementError> {
        let statement = if self.has_aurora_lag.load(Ordering::Relaxed) {
            SELECT_AURORA_LAG
        } else {
            SELECT_REPLICA_LAG
        };
        let query = sqlx::query_scalar(statement).fetch_one(&self.pool);
        let seconds: Option<f64> = with_timeout(query).await?;
        Ok(seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()))
    }
}
