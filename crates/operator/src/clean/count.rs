//! What a clean would do, in numbers: counted stretch by stretch, and nothing written.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use tokio_util::sync::CancellationToken;

use super::candidates::CLEANABLE;
use super::removals::RemovalLedger;
use crate::command_throttle::CommandThrottle;
use crate::statements::{page_after, retry_statement};

/// Rows of one statement: a few tenths of a second, cold.
const STRETCH_ROWS: i64 = 20_000;

/// The moves of the run, by whether their sources may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub(super) struct EligibleMoves {
    /// Moves whose source is there, as far as we did not remove it.
    pub(super) moves: i64,
    /// Of these: not verified since they were made.
    pub(super) unverified: i64,
    /// Of these: verified, but made too short a time ago.
    pub(super) young: i64,
    /// Objects that may be removed.
    pub(super) objects: i64,
    /// Their bytes.
    pub(super) bytes: i64,
}

/// `$1` run, `$2` cursor, `$3` size, `$4` age in seconds.
pub(super) fn count_moves_sql() -> String {
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT row_id, moved_at, verified_at, abandoned_at, source_settled_at
      FROM bucket_brigade.moves WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT $3
), marked AS (
    SELECT row_id, (m.source_settled_at >= m.moved_at) IS NOT TRUE AS is_there, ({CLEANABLE}) IS TRUE AS is_cleanable,
           m.moved_at > now() - make_interval(secs => $4) AS is_young
      FROM stretch m
)
SELECT max(row_id) AS last, count(*) FILTER (WHERE is_there) AS moves,
       count(*) FILTER (WHERE is_there AND NOT is_cleanable) AS unverified,
       count(*) FILTER (WHERE is_cleanable AND is_young) AS young, 0::bigint AS objects, 0::bigint AS bytes
  FROM marked"
    )
}

/// The same, through the index of those that are left. All moves off the last source belong to the stretch.
pub(super) fn count_sources_sql() -> String {
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT m.old_path, m.moved_at, m.size_bytes, m.source_etag
      FROM bucket_brigade.moves m
     WHERE m.run_id = $1 AND {CLEANABLE} AND m.old_path AFTER $2
     ORDER BY m.old_path FETCH FIRST $3 ROWS WITH TIES
), sources AS (
    SELECT max(size_bytes) AS bytes FROM stretch GROUP BY old_path
    HAVING bool_and(source_etag IS NOT NULL AND moved_at <= now() - make_interval(secs => $4))
)
SELECT (SELECT max(old_path) FROM stretch) AS last, 0::bigint AS moves, 0::bigint AS unverified,
       0::bigint AS young, count(*) AS objects, coalesce(sum(bytes), 0)::bigint AS bytes
  FROM sources"
    )
}

pub(super) const COUNT_ORPHANS: &str = "WITH stretch AS MATERIALIZED (
    SELECT destination_key, seen_at FROM bucket_brigade.orphans
     WHERE run_id = $1 AND destination_key AFTER $2 ORDER BY destination_key LIMIT $3
)
SELECT max(destination_key) AS last, 0::bigint AS moves, 0::bigint AS unverified, 0::bigint AS young,
       count(*) FILTER (WHERE seen_at <= now() - make_interval(secs => $4)) AS objects, 0::bigint AS bytes
  FROM stretch";

#[derive(sqlx::FromRow)]
struct CountedStretch {
    /// None at the end.
    last: Option<String>,
    moves: i64,
    unverified: i64,
    young: i64,
    objects: i64,
    bytes: i64,
}

impl EligibleMoves {
    fn add(&mut self, stretch: &CountedStretch) {
        self.moves += stretch.moves;
        self.unverified += stretch.unverified;
        self.young += stretch.young;
        self.objects += stretch.objects;
        self.bytes += stretch.bytes;
    }
}

impl RemovalLedger<'_> {
    /// Counts the moves by whether their sources may go, and what may be removed.
    pub(super) async fn count_eligible(
        &self,
        throttle: &CommandThrottle<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<EligibleMoves> {
        let statements = if self.orphans {
            vec![count_moves_sql(), COUNT_ORPHANS.to_owned()]
        } else {
            vec![count_moves_sql(), count_sources_sql()]
        };
        let mut eligible = EligibleMoves {
            objects: self.count_interrupted().await?,
            ..EligibleMoves::default()
        };
        for sql in statements {
            let mut cursor: Option<String> = None;
            loop {
                throttle.wait_while_held(stop).await;
                if stop.is_cancelled() {
                    return Ok(eligible);
                }
                let count = async || self.count_stretch(&sql, cursor.as_deref()).await;
                let stretch = retry_statement(count).await?;
                eligible.add(&stretch);
                let Some(last) = stretch.last else { break };
                cursor = Some(last);
                throttle.advance_by(usize::try_from(STRETCH_ROWS)?);
            }
        }
        Ok(eligible)
    }

    async fn count_stretch(
        &self,
        sql: &str,
        cursor: Option<&str>,
    ) -> Result<CountedStretch, StatementError> {
        let query = sqlx::query_as(page_after(sql, cursor)).bind(self.ledger.run_id());
        let query = query.bind(cursor.unwrap_or_default()).bind(STRETCH_ROWS);
        let query = query.bind(self.age_seconds);
        with_timeout(query.fetch_one(self.ledger.pool())).await
    }

    /// What an earlier clean was about to remove, and may not go by what this one was asked for. The others are
    /// counted with the rest.
    async fn count_interrupted(&self) -> anyhow::Result<i64> {
        let (mut cursor, mut count) = (None::<String>, 0);
        loop {
            let read = async || {
                let page = self.interrupted_removals(cursor.as_deref(), 1000).await?;
                self.mark_interrupted(page).await
            };
            let page = retry_statement(read).await?;
            let Some(last) = page.last() else {
                return Ok(count);
            };
            cursor = Some(last.path.clone());
            let others = page.iter().filter(|removal| !removal.is_marked).count();
            count += i64::try_from(others)?;
        }
    }
}
