//! The ledger's side of clean: what became of the objects that may go.
//!
//! ```text
//!   removing_at ── (DeleteObjects) ── removed_at
//!     │    └─ killed here: the next clean checks whether the object is there, and whether the request may still be
//!     │       under way
//!     ├─ left_because
//!     └─ left_because, and still in removal: gone, and a request without a response may be under way
//! ```

use std::fmt::Display;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    IS_REQUEST_ALIVE, LockClaims, PostgresLedger, holds_locks_sql, with_timeout,
};
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::path_rule::MoveRoute;
use sqlx::AssertSqlSafe;

use super::batch::REFERENCED_REASON;
use super::candidates::CLEANABLE;
use crate::path_column::PathColumn;
use crate::statements::{Pages, column};

/// An object that is to be removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct ObjectRemoval {
    /// The path that named it.
    pub(super) path: String,
    pub(super) object_key: String,
    /// The ETag it must have.
    pub(super) etag: String,
    /// For a source: its copy's ETag; none where the application has replaced or left the copy.
    pub(super) copy_etag: Option<String>,
    pub(super) size_bytes: Option<i64>,
    /// Whether an earlier clean was about to remove it.
    pub(super) is_in_removal: bool,
    /// Whether that one's request may still be carried out.
    #[sqlx(default)]
    pub(super) is_request_alive: bool,
    /// Whether it may go by what this clean was asked for; an earlier one may have been asked for more.
    pub(super) is_marked: bool,
    /// The pattern by which it belongs to the image of the path; none for the image itself.
    #[sqlx(skip)]
    pub(super) companion: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RemovalOutcome {
    /// It is gone, behind this delete marker where its bucket keeps versions.
    Removed(Option<String>),
    /// It stays, and why.
    Kept(String),
    /// A request of an earlier clean may still remove it.
    RequestAlive,
    /// It is gone, but a request for it that had no response may remove what comes to stand there. It stays in
    /// removal until then. Behind this delete marker where its bucket keeps versions.
    Unconfirmed(Option<String>),
}

const REQUEST_ALIVE_REASON: &str = "the request of a clean that was cut off less than half an hour ago may still remove it: run clean again then";

const UNCONFIRMED_REASON: &str = "it is gone, but a request that had no response, or was cut off, may still remove what comes to stand there: run clean again in half an hour";

impl ObjectRemoval {
    pub(super) fn after_request(&self, is_request_alive: bool) -> Self {
        Self {
            is_request_alive: self.is_request_alive || is_request_alive,
            ..self.clone()
        }
    }
}

impl RemovalOutcome {
    /// Of an object that is not there.
    pub(super) fn once_gone(is_request_alive: bool, delete_marker: Option<String>) -> Self {
        if is_request_alive {
            Self::Unconfirmed(delete_marker)
        } else {
            Self::Removed(delete_marker)
        }
    }

    /// What lists call it.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Removed(_) => "removed",
            Self::Kept(_) | Self::RequestAlive => "left alone",
            Self::Unconfirmed(_) => "unconfirmed",
        }
    }

    pub(super) fn delete_marker(&self) -> Option<&str> {
        match self {
            Self::Removed(marker) | Self::Unconfirmed(marker) => marker.as_deref(),
            Self::Kept(_) | Self::RequestAlive => None,
        }
    }

    pub(super) fn kept_because(&self) -> Option<&str> {
        match self {
            Self::Removed(_) => None,
            Self::Kept(reason) => Some(reason),
            Self::RequestAlive => Some(REQUEST_ALIVE_REASON),
            Self::Unconfirmed(_) => Some(UNCONFIRMED_REASON),
        }
    }
}

/// Objects and what became of them.
pub(super) type RemovalOutcomes = Vec<(ObjectRemoval, RemovalOutcome)>;

/// What an earlier clean was about to remove: a page. Whether it may still go is not known yet.
pub(super) fn interrupted_sql(orphans: bool, rows: i64) -> String {
    format!(
        "SELECT path, object_key, etag, copy_etag, size_bytes, true AS is_in_removal, false AS is_marked, {IS_REQUEST_ALIVE} AS is_request_alive
    FROM bucket_brigade.removals
    WHERE run_id = $1 AND is_orphan = {orphans} AND removing_at IS NOT NULL AND removed_at IS NULL
      AND path AFTER $2 ORDER BY path LIMIT {rows}"
    )
}

/// `$1` run, `$2` whether orphans, `$3` paths, `$4` keys, `$5` `ETags`, `$6` those of the copies, `$7` sizes, `$8`
/// operator, `$9` bucket, `$10` whether other paths may spell the keys, `$11` locks: where they are lost nothing is
/// marked, since whoever holds them now does not know of it.
///
/// What is marked, and whatever was committed before, survives a crash of the server, also where it does not wait for
/// its disk by default: the objects will be gone.
pub(super) fn begin_removals_sql() -> String {
    let is_locked = holds_locks_sql("$11");
    format!(
        "INSERT INTO bucket_brigade.removals AS r
       (run_id, is_orphan, path, object_key, etag, copy_etag, size_bytes, operator, bucket, is_encoded,
        removing_at)
SELECT $1, $2, i.*, $8, $9, $10, now()
  FROM (SELECT set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)) durable,
       unnest($3::text[], $4::text[], $5::text[], $6::text[], $7::bigint[]) AS i WHERE {is_locked}
ON CONFLICT (run_id, is_orphan, path) DO UPDATE SET
    object_key = excluded.object_key, is_encoded = excluded.is_encoded, etag = excluded.etag, copy_etag = excluded.copy_etag, size_bytes = excluded.size_bytes,
    operator = excluded.operator, delete_marker = NULL, removing_at = now(), removed_at = NULL,
    left_because = NULL"
    )
}

/// `$1` run, `$2` whether orphans, `$3` paths, `$4` whether gone, `$5` delete markers, `$6` reasons, `$7`
/// operator, `$8` keys, `$9` paths of sources that are gone, `$10` whether a request may still be
/// under way, `$11` locks: where they are lost nothing is recorded, since the marks may be another's by now. An orphan
/// that is gone, or that a row names, is none any more. Returns how many were recorded.
pub(super) fn finish_removals_sql() -> String {
    let is_locked = holds_locks_sql("$11");
    format!(
        "WITH input AS (
    SELECT * FROM unnest($3::text[], $4::boolean[], $5::text[], $6::text[], $8::text[], $10::boolean[])
        AS i (path, is_gone, delete_marker, left_because, object_key, is_request_alive)
     WHERE {is_locked}
), ended AS (
    UPDATE bucket_brigade.removals r SET
        removed_at = CASE WHEN i.is_gone THEN now() END,
        delete_marker = CASE WHEN i.is_gone OR i.is_request_alive THEN coalesce(i.delete_marker, r.delete_marker) END,
        removing_at = CASE WHEN i.is_gone THEN coalesce(r.removing_at, now())
                           WHEN i.is_request_alive THEN r.removing_at END,
        left_because = i.left_because
      FROM input i WHERE r.run_id = $1 AND r.is_orphan = $2 AND r.path = i.path
), settled AS (
    UPDATE bucket_brigade.moves m SET source_settled_at = now()
     WHERE m.run_id = $1 AND m.old_path = ANY ($9) AND {CLEANABLE} AND EXISTS (SELECT FROM input)
), no_orphan AS (
    DELETE FROM bucket_brigade.orphans o USING input i
     WHERE $2 AND (i.is_gone OR i.left_because = '{REFERENCED_REASON}') AND o.run_id = $1 AND o.destination_key = i.object_key
    RETURNING o.row_id, i.is_gone
), looked_at AS (
    -- What comes to stand there is no replacement that a rollback which was cut off would have to find.
    UPDATE bucket_brigade.rollbacks b SET looked_at = now() FROM no_orphan o
     WHERE o.is_gone AND b.run_id = $1 AND b.row_id = o.row_id AND b.looked_at IS NULL
)
INSERT INTO bucket_brigade.counters AS c (run_id, worker, orphans)
SELECT $1, $7, -(SELECT count(*) FROM no_orphan)
ON CONFLICT (run_id, worker) DO UPDATE SET orphans = c.orphans + excluded.orphans, seen_at = now()
RETURNING (SELECT count(*) FROM input)"
    )
}

/// One run's removals: of sources, or of orphaned copies.
#[derive(Clone, Copy)]
pub(super) struct RemovalLedger<'a> {
    pub(super) ledger: &'a PostgresLedger,
    /// The run's own.
    pub(super) column: &'a PathColumn,
    pub(super) orphans: bool,
    /// That the objects are in.
    pub(super) bucket: &'a str,
    /// That the other ends of their moves are in.
    pub(super) other_bucket: &'a str,
    /// How long ago the moves were made, or the orphans left, at least.
    pub(super) age_seconds: f64,
}

impl<'a> RemovalLedger<'a> {
    /// Of the keys that are removed.
    pub(super) fn key_prefix(&self) -> &'a str {
        let rule = self.ledger.rule();
        if self.orphans {
            rule.destination_key_prefix()
        } else {
            rule.source_key_prefix()
        }
    }

    pub(super) fn side(&self) -> BucketSide {
        if self.orphans {
            BucketSide::Destination
        } else {
            BucketSide::Source
        }
    }

    pub(super) fn route_of(&self, removal: &ObjectRemoval) -> Option<MoveRoute> {
        let rule = self.ledger.rule();
        let route = if self.orphans {
            rule.route_for(&rule.old_path(&removal.path)?).ok()?
        } else {
            rule.route_for(&removal.path).ok()?
        };
        let Some(pattern) = &removal.companion else {
            return Some(route);
        };
        let mut companions = rule.companions_of(&route).into_iter();
        let companion = companions.find(|companion| companion.pattern == pattern);
        companion.map(|companion| companion.route)
    }

    pub(super) fn interrupted(&self, rows: i64) -> Pages<'a> {
        Pages::new(self.ledger, interrupted_sql(self.orphans, rows))
    }

    /// Whether they are marked.
    pub(super) async fn begin_removals(
        &self,
        removals: &[ObjectRemoval],
        claims: &LockClaims,
    ) -> Result<bool, StatementError> {
        let query = sqlx::query(AssertSqlSafe(begin_removals_sql()))
            .bind(self.ledger.run_id())
            .bind(self.orphans)
            .bind(column(removals, |removal| removal.path.as_str()))
            .bind(column(removals, |removal| removal.object_key.as_str()))
            .bind(column(removals, |removal| removal.etag.as_str()))
            .bind(column(removals, |removal| removal.copy_etag.as_deref()))
            .bind(column(removals, |removal| removal.size_bytes))
            .bind(self.ledger.worker())
            .bind(self.bucket)
            .bind(self.has_encoded_paths())
            .bind(claims);
        let marked = with_timeout(query.execute(self.ledger.pool())).await?;
        Ok(marked.rows_affected() > 0)
    }

    /// Whether they are recorded.
    pub(super) async fn finish_removals(
        &self,
        outcomes: &[(ObjectRemoval, RemovalOutcome)],
        claims: &LockClaims,
    ) -> Result<bool, StatementError> {
        let is_gone = |outcome: &RemovalOutcome| outcome.kept_because().is_none();
        let gone = outcomes.iter();
        let gone = gone.filter(|(_, outcome)| is_gone(outcome) && !self.orphans);
        let gone: Vec<&str> = gone.map(|(removal, _)| removal.path.as_str()).collect();
        let query = sqlx::query_scalar(AssertSqlSafe(finish_removals_sql()))
            .bind(self.ledger.run_id())
            .bind(self.orphans)
            .bind(column(outcomes, |(removal, _)| removal.path.as_str()))
            .bind(column(outcomes, |(_, outcome)| is_gone(outcome)))
            .bind(column(outcomes, |(_, outcome)| outcome.delete_marker()))
            .bind(column(outcomes, |(_, outcome)| outcome.kept_because()))
            .bind(self.ledger.worker())
            .bind(column(outcomes, |(removal, _)| removal.object_key.as_str()))
            .bind(gone)
            .bind(column(outcomes, |(removal, outcome)| {
                let is_unconfirmed = matches!(outcome, RemovalOutcome::Unconfirmed(_));
                is_unconfirmed || (removal.is_request_alive && !is_gone(outcome))
            }))
            .bind(claims);
        let recorded: i64 = with_timeout(query.fetch_one(self.ledger.pool())).await?;
        Ok(recorded > 0)
    }
}

pub(super) fn keep_all(removals: &[ObjectRemoval], error: &impl Display) -> RemovalOutcomes {
    let kept = |removal: &ObjectRemoval| (removal.clone(), RemovalOutcome::Kept(error.to_string()));
    removals.iter().map(kept).collect()
}
