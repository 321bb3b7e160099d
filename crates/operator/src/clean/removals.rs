//! The ledger's side of clean: which objects may go, and what became of them.
//!
//! ```text
//!   marked ── removing_at ── (DeleteObjects) ── removed_at
//!     │            └─ killed here: the next clean checks whether the object is there
//!     └─ left_because
//! ```

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout, without_timeout};

use crate::statements::{column, page_after};

/// An object that is to be removed.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct ObjectRemoval {
    /// The path that named it.
    pub(super) path: String,
    pub(super) object_key: String,
    /// The ETag it must have.
    pub(super) etag: String,
    /// For a source: its copy's ETag.
    pub(super) copy_etag: Option<String>,
    pub(super) size_bytes: Option<i64>,
    /// Whether an earlier clean was about to remove it.
    pub(super) is_in_removal: bool,
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
}

impl RemovalOutcome {
    pub(super) fn delete_marker(&self) -> Option<&str> {
        match self {
            Self::Removed(marker) => marker.as_deref(),
            Self::Kept(_) => None,
        }
    }

    pub(super) fn kept_because(&self) -> Option<&str> {
        match self {
            Self::Removed(_) => None,
            Self::Kept(reason) => Some(reason),
        }
    }
}

/// Objects and what became of them.
pub(super) type RemovalOutcomes = Vec<(ObjectRemoval, RemovalOutcome)>;

/// The moves of the run, by whether their sources may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub(super) struct EligibleMoves {
    /// Moves whose source is there, as far as we did not remove it.
    pub(super) moves: i64,
    /// Of these: not verified since they were made.
    pub(super) unverified: i64,
    /// Of these: verified, but made too short a time ago.
    pub(super) young: i64,
    /// Objects that are marked to be removed.
    pub(super) objects: i64,
    /// Their bytes.
    pub(super) bytes: i64,
}

/// Drops marks of an earlier clean. Those of a removal that was cut off stay.
const DELETE_MARKS: &str = "DELETE FROM bucket_brigade.removals
    WHERE run_id = $1 AND is_orphan = $2 AND removed_at IS NULL AND removing_at IS NULL";

/// A source may go when each of the moves off it is verified and old enough: several rows can share it. The
/// newest verification is the one that both objects must still match.
/// `$1` run, `$2` age in seconds, `$3` operator, `$4` bucket, `$5` key prefix, `$6` characters of the path
/// prefix. A source that was removed before is not marked again, unless something moved off it since.
const MARK_SOURCES: &str = "WITH kept AS (
    SELECT m.* FROM bucket_brigade.moves m LEFT JOIN bucket_brigade.removals r
        ON r.run_id = m.run_id AND NOT r.is_orphan AND r.path = m.old_path
     WHERE m.run_id = $1 AND (r.removed_at >= m.moved_at) IS NOT TRUE
), sources AS (
    SELECT old_path, (array_agg(source_etag ORDER BY verified_at DESC, row_id))[1] AS etag,
           (array_agg(etag ORDER BY verified_at DESC, row_id))[1] AS copy_etag, max(size_bytes) AS size_bytes,
           count(*) AS moved_rows
      FROM kept GROUP BY old_path
    HAVING bool_and(coalesce(verified_at > moved_at AND moved_at <= now() - make_interval(secs => $2)
                             AND source_etag IS NOT NULL, false))
)
INSERT INTO bucket_brigade.removals AS r
       (run_id, is_orphan, path, bucket, object_key, etag, copy_etag, size_bytes, moved_rows, operator)
SELECT $1, false, old_path, $4, $5 || substr(old_path, $6 + 1), etag, copy_etag, size_bytes, moved_rows, $3
  FROM sources
ON CONFLICT (run_id, is_orphan, path) DO UPDATE SET
    etag = excluded.etag, copy_etag = excluded.copy_etag, size_bytes = excluded.size_bytes,
    moved_rows = excluded.moved_rows, operator = excluded.operator, delete_marker = NULL,
    removing_at = CASE WHEN r.removed_at IS NULL THEN r.removing_at END, removed_at = NULL,
    left_because = NULL";

/// `$1` run, `$2` age in seconds, `$3` operator, `$4` bucket.
const MARK_ORPHANS: &str = "INSERT INTO bucket_brigade.removals AS r
       (run_id, is_orphan, path, bucket, object_key, etag, operator)
SELECT run_id, true, new_path, $4, destination_key, etag, $3 FROM bucket_brigade.orphans
 WHERE run_id = $1 AND seen_at <= now() - make_interval(secs => $2)
ON CONFLICT (run_id, is_orphan, path) DO UPDATE SET
    etag = excluded.etag, operator = excluded.operator, delete_marker = NULL,
    removing_at = CASE WHEN r.removed_at IS NULL THEN r.removing_at END, removed_at = NULL,
    left_because = NULL";

const COUNT_MOVES: &str = "SELECT count(*),
       count(*) FILTER (WHERE (m.verified_at > m.moved_at) IS NOT TRUE),
       count(*) FILTER (WHERE m.verified_at > m.moved_at
                          AND m.moved_at > now() - make_interval(secs => $2))
    FROM bucket_brigade.moves m LEFT JOIN bucket_brigade.removals r
      ON r.run_id = m.run_id AND NOT r.is_orphan AND r.path = m.old_path
   WHERE m.run_id = $1 AND (r.removed_at >= m.moved_at) IS NOT TRUE";

const COUNT_MARKED: &str = "SELECT count(*), coalesce(sum(size_bytes), 0)::bigint
    FROM bucket_brigade.removals WHERE run_id = $1 AND is_orphan = $2 AND removed_at IS NULL";

/// `$1` run, `$2` whether orphans, `$3` cursor, `$4` size, `$5` operator.
const SELECT_REMOVALS: &str =
    "SELECT path, object_key, etag, copy_etag, size_bytes, removing_at IS NOT NULL AS is_in_removal,
           operator = $5 AS is_marked
    FROM bucket_brigade.removals
    WHERE run_id = $1 AND is_orphan = $2 AND removed_at IS NULL AND path AFTER $3
    ORDER BY path LIMIT $4";

/// `$1` run, `$2` whether orphans, `$3` paths, `$4` keys, `$5` whether other paths may spell them.
const BEGIN_REMOVALS: &str = "UPDATE bucket_brigade.removals r SET
        removing_at = now(), left_because = NULL, object_key = i.object_key, is_encoded = $5
    FROM unnest($3::text[], $4::text[]) AS i (path, object_key)
    WHERE r.run_id = $1 AND r.is_orphan = $2 AND r.path = i.path";

/// `$1` run, `$2` whether orphans, `$3` paths, `$4` whether gone, `$5` delete markers, `$6` reasons, `$7`
/// operator. An orphan that is gone is none any more.
const FINISH_REMOVALS: &str = "WITH input AS (
    SELECT * FROM unnest($3::text[], $4::boolean[], $5::text[], $6::text[])
        AS i (path, is_gone, delete_marker, left_because)
), ended AS (
    UPDATE bucket_brigade.removals r SET
        removed_at = CASE WHEN i.is_gone THEN now() END, delete_marker = i.delete_marker,
        removing_at = CASE WHEN i.is_gone THEN coalesce(r.removing_at, now()) END,
        left_because = i.left_because
      FROM input i WHERE r.run_id = $1 AND r.is_orphan = $2 AND r.path = i.path
), no_orphan AS (
    DELETE FROM bucket_brigade.orphans o USING input i
     WHERE $2 AND i.is_gone AND o.run_id = $1 AND o.new_path = i.path RETURNING 1
)
INSERT INTO bucket_brigade.counters AS c (run_id, worker, orphans)
SELECT $1, $7, -(SELECT count(*) FROM no_orphan)
ON CONFLICT (run_id, worker) DO UPDATE SET orphans = c.orphans + excluded.orphans, seen_at = now()";

/// One run's removals: of sources, or of orphaned copies.
#[derive(Clone, Copy)]
pub(super) struct RemovalLedger<'a> {
    pub(super) ledger: &'a PostgresLedger,
    pub(super) orphans: bool,
}

impl RemovalLedger<'_> {
    /// Marks what may go: sources of moves older than `age_seconds`, or orphans as old. Not under the
    /// statement timeout: it reads all moves.
    pub(super) async fn mark_removals(
        &self,
        bucket: &str,
        age_seconds: f64,
    ) -> Result<(), StatementError> {
        let (run_id, pool) = (self.ledger.run_id(), self.ledger.pool());
        let unmark = sqlx::query(DELETE_MARKS).bind(run_id).bind(self.orphans);
        without_timeout(unmark.execute(pool)).await?;
        let sql = if self.orphans {
            MARK_ORPHANS
        } else {
            MARK_SOURCES
        };
        let query = sqlx::query(sql).bind(run_id).bind(age_seconds);
        let mut query = query.bind(self.ledger.worker()).bind(bucket);
        if !self.orphans {
            let rule = self.ledger.rule();
            let characters = rule.old_prefix().chars().count();
            query = query.bind(rule.source_key_prefix());
            query = query.bind(i32::try_from(characters).unwrap_or(i32::MAX));
        }
        without_timeout(query.execute(pool)).await.map(drop)
    }

    /// Counts the moves by whether their sources may go, and what is marked. It reads all moves.
    pub(super) async fn count_eligible(
        &self,
        age_seconds: f64,
    ) -> Result<EligibleMoves, StatementError> {
        let (run_id, pool) = (self.ledger.run_id(), self.ledger.pool());
        let query = sqlx::query_as(COUNT_MOVES).bind(run_id).bind(age_seconds);
        let (moves, unverified, young) = without_timeout(query.fetch_one(pool)).await?;
        let query = sqlx::query_as(COUNT_MARKED).bind(run_id).bind(self.orphans);
        let (objects, bytes) = without_timeout(query.fetch_one(pool)).await?;
        Ok(EligibleMoves {
            moves,
            unverified,
            young,
            objects,
            bytes,
        })
    }

    /// The next marked objects, by path.
    pub(super) async fn next_removals(
        &self,
        cursor: Option<&str>,
        size: i64,
    ) -> Result<Vec<ObjectRemoval>, StatementError> {
        let query = sqlx::query_as(page_after(SELECT_REMOVALS, cursor)).bind(self.ledger.run_id());
        let query = query.bind(self.orphans).bind(cursor.unwrap_or_default());
        let query = query.bind(size).bind(self.ledger.worker());
        let removals: Vec<ObjectRemoval> =
            with_timeout(query.fetch_all(self.ledger.pool())).await?;
        let decoded = removals.into_iter().map(|one| self.decode_key(one));
        Ok(decoded.collect())
    }

    /// Records that these are removed from now on.
    pub(super) async fn begin_removals(
        &self,
        removals: &[ObjectRemoval],
    ) -> Result<(), StatementError> {
        let query = sqlx::query(BEGIN_REMOVALS).bind(self.ledger.run_id());
        let query = query.bind(self.orphans);
        let query = query.bind(column(removals, |removal| removal.path.as_str()));
        let query = query.bind(column(removals, |removal| removal.object_key.as_str()));
        let query = query.bind(self.has_encoded_paths());
        with_timeout(query.execute(self.ledger.pool()))
            .await
            .map(drop)
    }

    pub(super) async fn finish_removals(
        &self,
        outcomes: &[(ObjectRemoval, RemovalOutcome)],
    ) -> Result<(), StatementError> {
        let query = sqlx::query(FINISH_REMOVALS)
            .bind(self.ledger.run_id())
            .bind(self.orphans)
            .bind(column(outcomes, |(removal, _)| removal.path.as_str()))
            .bind(column(outcomes, |(_, outcome)| {
                outcome.kept_because().is_none()
            }))
            .bind(column(outcomes, |(_, outcome)| outcome.delete_marker()))
            .bind(column(outcomes, |(_, outcome)| outcome.kept_because()))
            .bind(self.ledger.worker());
        with_timeout(query.execute(self.ledger.pool()))
            .await
            .map(drop)
    }
}
