//! A failover to a standby that lacks the latest commits undoes moves: its rows would name sources that are gone.

use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, is_unavailable, statement_error};
use bucket_brigade_common::printable::counted;
use tokio::time::sleep;

use crate::statements::retry_query;

const WAIT_INTERVAL: Duration = Duration::from_secs(1);

const SELECT_POSITION: &str = "SELECT pg_current_wal_flush_lsn()::text";

/// `$1` a position: the standbys that are connected and have less on their disks, and what this role may not see of.
/// Consumers of logical changes are none, nor are archives and backups, which apply nothing.
const COUNT_BEHIND: &str = "SELECT
        count(*) FILTER (WHERE r.flush_lsn < $1::text::pg_lsn AND r.replay_lsn IS NOT NULL) AS behind,
        count(*) FILTER (WHERE r.state IS NULL) AS hidden
    FROM pg_stat_replication r WHERE NOT EXISTS (
        SELECT 1 FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')";

const SELECT_MISSING: &str =
    "SELECT coalesce(string_agg(slot_name::text, ', '), '') FROM pg_replication_slots
    WHERE slot_type = 'physical' AND NOT active AND restart_lsn IS NOT NULL";

/// Waits until the standbys have what has been committed so far. Where the server does not tell, as Aurora, whose readers
/// share its storage, there is nothing to wait for.
///
/// # Errors
/// The database is away: nothing is known of them.
pub(super) async fn wait_for_standbys(ledger: &PostgresLedger) -> Result<(), StatementError> {
    let missing = async || {
        sqlx::query_scalar(SELECT_MISSING)
            .fetch_one(ledger.pool())
            .await
    };
    let missing: Option<String> = unless_unsupported(retry_query(missing).await)?;
    if let Some(missing) = missing.filter(|missing| !missing.is_empty()) {
        tracing::warn!(
            "standbys are not connected (replication slots {missing}): after a failover to one that lacks the latest moves, rows would name what is removed now"
        );
    }
    let position = async || {
        sqlx::query_scalar(SELECT_POSITION)
            .fetch_one(ledger.pool())
            .await
    };
    let position: Option<String> = unless_unsupported(retry_query(position).await)?;
    match position {
        Some(position) => wait_for_position(ledger, &position).await,
        None => Ok(()),
    }
}

async fn wait_for_position(ledger: &PostgresLedger, position: &str) -> Result<(), StatementError> {
    let count = async || {
        let query = sqlx::query_as(COUNT_BEHIND).bind(position);
        query.fetch_one(ledger.pool()).await
    };
    let mut is_logged = false;
    loop {
        let counts: Option<(i64, i64)> = unless_unsupported(retry_query(count).await)?;
        let (behind, hidden) = counts.unwrap_or_default();
        if hidden > 0 && !is_logged {
            tracing::warn!(
                "how far standbys are may not be seen: GRANT pg_monitor to this role, or wait for them yourself"
            );
        }
        if behind == 0 {
            return Ok(());
        }
        if !is_logged {
            let standbys = counted(behind.unsigned_abs(), "standby has", "standbys have");
            tracing::warn!("waiting until {standbys} what was moved");
        }
        is_logged = true;
        sleep(WAIT_INTERVAL).await;
    }
}

fn unless_unsupported<T>(result: Result<T, sqlx::Error>) -> Result<Option<T>, StatementError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_unavailable(&error) => Err(statement_error(&error)),
        Err(error) => {
            tracing::debug!(%error, "the server does not tell how far its standbys are");
            Ok(None)
        }
    }
}
