//! What a clean would do, in numbers, at a cost that does not grow: of a large ledger a sample is counted, and what
//! may go exactly where it is little. Nothing is written.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use sqlx::AssertSqlSafe;

use super::candidates::CLEANABLE;
use super::removals::RemovalLedger;
use crate::statements::retry_statement;

/// Pages of the ledger's table that are read; of a larger one a sample: some 150,000 moves.
const SAMPLED_PAGES: f64 = 4000.0;

/// Rows up to which what may go is counted one by one.
const MAX_COUNTED: i64 = 20_000;

/// The moves of the run, by whether their sources may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, sqlx::FromRow)]
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
    /// Whether these are the numbers of a sample, multiplied.
    #[sqlx(skip)]
    pub(super) is_estimate: bool,
}

/// The first of what may go.
#[derive(sqlx::FromRow)]
struct FirstObjects {
    rows: i64,
    young: i64,
    objects: i64,
    bytes: i64,
}

/// `$1` relation.
const SELECT_PAGES: &str =
    "SELECT pg_relation_size($1::regclass) / current_setting('block_size')::double precision";

/// `$1` run, `$2` age in seconds, `$3` per cent.
pub(super) fn sample_moves_sql() -> String {
    format!(
        "WITH sample AS MATERIALIZED (
    SELECT m.old_path, m.size_bytes, m.source_etag, m.moved_at > now() - make_interval(secs => $2) AS is_young,
           (m.source_settled_at >= m.moved_at) IS NOT TRUE AS is_there, ({CLEANABLE}) IS TRUE AS is_cleanable
      FROM bucket_brigade.moves m TABLESAMPLE SYSTEM ($3::real) WHERE m.run_id = $1
), sources AS (
    SELECT max(size_bytes) AS bytes FROM sample WHERE is_cleanable GROUP BY old_path
    HAVING bool_and(source_etag IS NOT NULL AND NOT is_young)
)
SELECT count(*) FILTER (WHERE is_there) AS moves, count(*) FILTER (WHERE is_there AND NOT is_cleanable) AS unverified,
       count(*) FILTER (WHERE is_cleanable AND is_young) AS young, (SELECT count(*) FROM sources) AS objects,
       (SELECT coalesce(sum(bytes), 0)::bigint FROM sources) AS bytes
  FROM sample"
    )
}

/// The same of orphans.
const SAMPLE_ORPHANS: &str =
    "SELECT 0::bigint AS moves, 0::bigint AS unverified, 0::bigint AS young, count(*) AS objects,
       0::bigint AS bytes
  FROM bucket_brigade.orphans TABLESAMPLE SYSTEM ($3::real)
 WHERE run_id = $1 AND seen_at <= now() - make_interval(secs => $2)";

/// `$1` run, `$2` age in seconds, `$3` rows. Through the index of the sources that are left.
pub(super) fn first_sources_sql() -> String {
    format!(
        "WITH first AS MATERIALIZED (
    SELECT m.old_path, m.size_bytes, m.source_etag, m.moved_at > now() - make_interval(secs => $2) AS is_young
      FROM bucket_brigade.moves m WHERE m.run_id = $1 AND {CLEANABLE} ORDER BY m.old_path LIMIT $3
), sources AS (
    SELECT max(size_bytes) AS bytes FROM first GROUP BY old_path
    HAVING bool_and(source_etag IS NOT NULL AND NOT is_young)
)
SELECT count(*) AS rows, count(*) FILTER (WHERE is_young) AS young, (SELECT count(*) FROM sources) AS objects,
       (SELECT coalesce(sum(bytes), 0)::bigint FROM sources) AS bytes
  FROM first"
    )
}

/// The same of orphans.
pub(super) const FIRST_ORPHANS: &str = "WITH first AS MATERIALIZED (
    SELECT seen_at <= now() - make_interval(secs => $2) AS may_go FROM bucket_brigade.orphans
     WHERE run_id = $1 ORDER BY destination_key LIMIT $3
)
SELECT count(*) AS rows, 0::bigint AS young, count(*) FILTER (WHERE may_go) AS objects, 0::bigint AS bytes FROM first";

impl EligibleMoves {
    fn scale(self, factor: f64) -> Self {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            reason = "an estimate"
        )]
        let scaled = |count: i64| (count as f64 * factor).round() as i64;
        Self {
            moves: scaled(self.moves),
            unverified: scaled(self.unverified),
            young: scaled(self.young),
            objects: scaled(self.objects),
            bytes: scaled(self.bytes),
            is_estimate: true,
        }
    }
}

impl RemovalLedger<'_> {
    /// Counts the moves by whether their sources may go, and what may be removed.
    pub(super) async fn count_eligible(&self) -> anyhow::Result<EligibleMoves> {
        let (relation, sample, first) = if self.orphans {
            (
                "bucket_brigade.orphans",
                SAMPLE_ORPHANS.into(),
                FIRST_ORPHANS.into(),
            )
        } else {
            (
                "bucket_brigade.moves",
                sample_moves_sql(),
                first_sources_sql(),
            )
        };
        let count = async || self.count_by(relation, &sample, &first).await;
        let mut eligible = retry_statement(count).await?;
        eligible.objects += self.count_interrupted().await?;
        Ok(eligible)
    }

    async fn count_by(
        &self,
        relation: &str,
        sample: &str,
        first: &str,
    ) -> Result<EligibleMoves, StatementError> {
        let (pool, run) = (self.ledger.pool(), self.ledger.run_id());
        let query = sqlx::query_scalar(SELECT_PAGES).bind(relation);
        let pages: f64 = with_timeout(query.fetch_one(pool)).await?;
        let factor = (pages / SAMPLED_PAGES).max(1.0);
        let query = sqlx::query_as(AssertSqlSafe(sample)).bind(run);
        let query = query.bind(self.age_seconds).bind(100.0 / factor);
        let sampled: EligibleMoves = with_timeout(query.fetch_one(pool)).await?;
        if factor <= 1.0 {
            return Ok(sampled);
        }
        let query = sqlx::query_as(AssertSqlSafe(first)).bind(run);
        let query = query.bind(self.age_seconds).bind(MAX_COUNTED);
        let first: FirstObjects = with_timeout(query.fetch_one(pool)).await?;
        let estimate = sampled.scale(factor);
        Ok(if first.rows == MAX_COUNTED {
            // At least these, however few the sample has met.
            EligibleMoves {
                objects: estimate.objects.max(first.objects),
                ..estimate
            }
        } else {
            EligibleMoves {
                young: first.young,
                objects: first.objects,
                bytes: first.bytes,
                ..estimate
            }
        })
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
