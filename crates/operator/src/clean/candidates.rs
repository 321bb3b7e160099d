//! Which objects may go, page by page: sources by their paths, through an index of nothing but those that are
//! left; orphans by their keys.

use std::collections::{HashMap, HashSet};

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    IS_REQUEST_ALIVE, IdColumns, before_timeout, is_statement_timeout, statement_error,
    with_timeout,
};
use sqlx::AssertSqlSafe;

use super::removals::{ObjectRemoval, RemovalLedger};
use crate::command_cursor::CursorLap;
use crate::statements::retry_statement;

/// A move that verify has settled since it was made, and whose source is there as far as we know, unless its path is
/// too long for an index. As the index `moves_cleanable` has it, to the letter.
pub(super) const CLEANABLE: &str = "(m.verified_at > m.moved_at OR m.abandoned_at > m.moved_at)
       AND (m.source_settled_at >= m.moved_at) IS NOT TRUE AND octet_length(m.old_path) <= 2600";

/// `$1` run, `$2` and `$3` the lap's ends, `$4` size. Paths, in the order of the index.
pub(super) fn cleanable_paths_sql() -> String {
    format!(
        "SELECT DISTINCT old_path FROM (
            SELECT m.old_path FROM bucket_brigade.moves m
             WHERE m.run_id = $1 AND {CLEANABLE} AND AFTER ORDER BY m.old_path LIMIT $4) AS page
          ORDER BY old_path"
    )
}

/// `$1` run, `$2` age in seconds. By the index that knows of each stretch of the table from when to when its moves are,
/// so that young moves are not read.
pub(super) const HAS_OLD_MOVES: &str = "SELECT EXISTS (SELECT 1 FROM bucket_brigade.moves
    WHERE run_id = $1 AND moved_at <= now() - make_interval(secs => $2))";

/// `$1` run, `$2` paths, `$3` age in seconds. A source may go when each of the moves off it is settled and old
/// enough: several rows can share it. The newest verification is the one that both objects must still match.
/// Where the application has replaced or left the copy there is none to match.
pub(super) fn sources_sql() -> String {
    format!(
        "SELECT m.old_path AS path, max(m.new_path) AS new_path,
           (array_agg(m.source_etag ORDER BY coalesce(m.verified_at, m.abandoned_at) DESC, m.row_id))[1] AS etag,
           (array_agg(m.etag ORDER BY m.verified_at DESC, m.row_id) FILTER (WHERE m.verified_at > m.moved_at))[1] AS copy_etag,
           max(m.size_bytes) AS size_bytes, bool_or(r.removed_at >= m.moved_at) IS TRUE AS is_gone,
           bool_and(m.source_etag IS NOT NULL AND m.moved_at <= now() - make_interval(secs => $3)) AS may_go
      FROM bucket_brigade.moves m LEFT JOIN bucket_brigade.removals r
        ON r.run_id = m.run_id AND NOT r.is_orphan AND r.path = m.old_path
     WHERE m.run_id = $1 AND m.old_path = ANY ($2) AND {CLEANABLE}
     GROUP BY m.old_path"
    )
}

/// Whether the move of a row `t` is not settled.
pub(super) fn is_unsettled(run: i64, id: &IdColumns) -> String {
    let row_id = id.as_text("t");
    format!(
        "EXISTS (SELECT 1 FROM bucket_brigade.moves m WHERE m.run_id = {run} AND m.row_id = {row_id}
            AND (m.verified_at > m.moved_at OR m.abandoned_at > m.moved_at) IS NOT TRUE)"
    )
}

/// Moves whose sources are gone leave the index.
pub(super) fn settle_gone_sql() -> String {
    format!(
        "UPDATE bucket_brigade.moves m SET source_settled_at = now()
          WHERE m.run_id = $1 AND m.old_path = ANY ($2) AND {CLEANABLE}"
    )
}

/// `$1` run, `$2` and `$3` the lap's ends, `$4` size, `$5` age in seconds.
pub(super) fn orphans_page_sql() -> String {
    orphans_sql("$5", "AFTER ORDER BY destination_key LIMIT $4")
}

/// `$1` run, `$2` keys, `$3` age in seconds.
pub(super) fn orphans_by_key_sql() -> String {
    orphans_sql("$3", "destination_key = ANY ($2)")
}

fn orphans_sql(age: &str, condition: &str) -> String {
    format!(
        "SELECT destination_key AS object_key, new_path AS path, etag, NULL::text AS copy_etag,
                NULL::bigint AS size_bytes, removal.is_request_alive IS NOT NULL AS is_in_removal,
                coalesce(removal.is_request_alive, false) AS is_request_alive, seen_at <= now() - make_interval(secs => {age}) AS is_marked
           FROM bucket_brigade.orphans o LEFT JOIN LATERAL (
               SELECT {IS_REQUEST_ALIVE} AS is_request_alive FROM bucket_brigade.removals r
                WHERE r.run_id = o.run_id AND r.is_orphan AND r.path = o.new_path
                  AND r.removing_at IS NOT NULL AND r.removed_at IS NULL) removal ON true
          WHERE run_id = $1 AND octet_length(o.new_path) <= 2600 AND {condition}"
    )
}

#[derive(sqlx::FromRow)]
struct SourceRow {
    path: String,
    new_path: String,
    etag: Option<String>,
    copy_etag: Option<String>,
    size_bytes: Option<i64>,
    is_gone: bool,
    may_go: bool,
}

/// Objects of a stretch that may go, and where it ends; none at the end of the lap.
pub(super) type CandidatePage = (Vec<ObjectRemoval>, Option<String>);

impl RemovalLedger<'_> {
    /// False where all moves are younger than asked for.
    pub(super) async fn has_old_moves(&self) -> Result<bool, StatementError> {
        let read = async || {
            let query = sqlx::query_scalar(HAS_OLD_MOVES).bind(self.ledger.run_id());
            let query = query.bind(self.age_seconds);
            match before_timeout(query.fetch_one(self.ledger.pool())).await {
                // The planner has taken another way.
                None => Ok(true),
                Some(Err(error)) if is_statement_timeout(&error) => Ok(true),
                Some(found) => found.map_err(|error| statement_error(&error)),
            }
        };
        retry_statement(read).await
    }

    pub(super) async fn next_candidates(
        &self,
        lap: &CursorLap,
        size: i64,
    ) -> Result<CandidatePage, StatementError> {
        let (pool, run, (after, until)) = (self.ledger.pool(), self.ledger.run_id(), lap.ends());
        let read = async || {
            if self.orphans {
                let sql = lap.page_sql(&orphans_page_sql(), "destination_key");
                let query = sqlx::query_as(sql).bind(run).bind(after).bind(until);
                let query = query.bind(size).bind(self.age_seconds);
                let mut page: Vec<ObjectRemoval> = with_timeout(query.fetch_all(pool)).await?;
                let last = page.last().map(|orphan| orphan.object_key.clone());
                page.retain(|orphan| orphan.is_marked);
                return Ok((page, last));
            }
            let sql = lap.page_sql(&cleanable_paths_sql(), "m.old_path");
            let query = sqlx::query_scalar(sql).bind(run).bind(after).bind(until);
            let paths: Vec<String> = with_timeout(query.bind(size).fetch_all(pool)).await?;
            let last = paths.last().cloned();
            Ok((self.removable_sources(&paths).await?, last))
        };
        retry_statement(read).await
    }

    async fn removable_sources(
        &self,
        paths: &[String],
    ) -> Result<Vec<ObjectRemoval>, StatementError> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let query = sqlx::query_as(AssertSqlSafe(sources_sql())).bind(self.ledger.run_id());
        let query = query.bind(paths).bind(self.age_seconds);
        let sources: Vec<SourceRow> = with_timeout(query.fetch_all(self.ledger.pool())).await?;
        let (gone, mut sources): (Vec<_>, Vec<_>) =
            sources.into_iter().partition(|source| source.is_gone);
        self.settle_gone(&gone).await?;
        sources.retain(|source| source.may_go);
        let unsettled = self.unsettled_copies(&sources).await?;
        sources.retain(|source| !unsettled.contains(&source.new_path));
        sources.sort_by(|one, other| one.path.cmp(&other.path));
        let removals = sources.into_iter();
        Ok(removals.map(|source| self.source_removal(source)).collect())
    }

    fn source_removal(&self, source: SourceRow) -> ObjectRemoval {
        let rule = self.ledger.rule();
        let object_key = match rule.route_for(&source.path) {
            Ok(route) => route.source_key,
            // What cannot be a key is no object, and is left alone for that reason.
            Err(_) => source.path.clone(),
        };
        ObjectRemoval {
            object_key,
            path: source.path,
            etag: source.etag.unwrap_or_default(),
            copy_etag: source.copy_etag,
            size_bytes: source.size_bytes,
            is_marked: true,
            ..ObjectRemoval::default()
        }
    }

    /// A row that shares a source with a settled move may have one that is not, which is in no index of ours: it
    /// is found by the row, which names the copy. One that names it no more needs neither.
    async fn unsettled_copies(
        &self,
        sources: &[SourceRow],
    ) -> Result<HashSet<String>, StatementError> {
        if sources.is_empty() {
            return Ok(HashSet::new());
        }
        let copies: Vec<String> = sources.iter().map(|one| one.new_path.clone()).collect();
        let condition = is_unsettled(self.ledger.run_id(), &self.column.id);
        self.column
            .find_paths(self.ledger, &copies, &condition)
            .await
    }

    async fn settle_gone(&self, gone: &[SourceRow]) -> Result<(), StatementError> {
        if gone.is_empty() {
            return Ok(());
        }
        let paths: Vec<&str> = gone.iter().map(|source| source.path.as_str()).collect();
        let query = sqlx::query(AssertSqlSafe(settle_gone_sql())).bind(self.ledger.run_id());
        with_timeout(query.bind(paths).execute(self.ledger.pool()))
            .await
            .map(drop)
    }

    /// Whether what an earlier clean was about to remove may still go, by what this one was asked for: that one may
    /// have been asked for more.
    pub(super) async fn mark_interrupted(
        &self,
        page: Vec<ObjectRemoval>,
    ) -> Result<Vec<ObjectRemoval>, StatementError> {
        let paths: Vec<String> = page.iter().map(|one| one.path.clone()).collect();
        let found = retry_statement(async || {
            if !self.orphans {
                return self.removable_sources(&paths).await;
            }
            let keys: Vec<&str> = page.iter().map(|one| one.object_key.as_str()).collect();
            let query = sqlx::query_as(AssertSqlSafe(orphans_by_key_sql()));
            let query = query.bind(self.ledger.run_id()).bind(keys);
            let query = query.bind(self.age_seconds);
            with_timeout(query.fetch_all(self.ledger.pool())).await
        })
        .await?;
        let mut found: HashMap<String, ObjectRemoval> = found
            .into_iter()
            .filter(|removal| removal.is_marked)
            .map(|removal| (removal.path.clone(), removal))
            .collect();
        let marked = page.into_iter().map(|removal| {
            let is_request_alive = removal.is_request_alive;
            let fresh = found.remove(&removal.path).unwrap_or(removal);
            ObjectRemoval {
                is_in_removal: true,
                is_request_alive,
                ..fresh
            }
        });
        Ok(marked.collect())
    }
}
