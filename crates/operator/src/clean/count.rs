//! What a clean would do, in numbers, at a cost that does not grow: of a large ledger a sample is counted, and what
//! may go exactly where it is little. Nothing is written.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use sqlx::AssertSqlSafe;

use super::candidates::CLEANABLE;
use super::removals::{ObjectRemoval, RemovalLedger};
use crate::statements::retry_statement;

/// Pages of the ledger's table that are read; of a larger one a sample: some 100,000 moves.
const SAMPLED_PAGES: f64 = 2000.0;

/// Rows up to which what may go is counted one by one.
const MAX_COUNTED: u32 = 5_000;

/// The moves of the run, by whether their sources may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, sqlx::FromRow)]
pub(super) struct EligibleMoves {
    /// Moves whose source is there, as far as we did not remove it.
    pub(super) moves: i64,
    /// Of these: not verified since they were made.
    pub(super) unverified: i64,
    /// Of these: verified, but made too short a time ago.
    pub(super) young: i64,
    pub(super) objects: i64,
    pub(super) bytes: i64,
    /// Objects beside these that an earlier clean was about to remove, and perhaps has.
    #[sqlx(default)]
    pub(super) in_removal: i64,
    /// Whether these are the numbers of a sample, multiplied.
    #[sqlx(skip)]
    pub(super) is_estimate: bool,
}

/// `$1` relation.
const SELECT_PAGES: &str =
    "SELECT pg_relation_size($1::regclass) / current_setting('block_size')::double precision";

/// `$1` run, `$2` age in seconds, `$3` per cent: a part of the moves, or of the orphans.
const SAMPLE: &str = "TABLESAMPLE SYSTEM ($3::real) WHERE m.run_id = $1";

/// `$1` run, `$2` age in seconds, `$3` rows: the first of what may go.
fn first_rows(orphans: bool) -> String {
    if orphans {
        "WHERE m.run_id = $1 ORDER BY m.destination_key LIMIT $3::bigint".into()
    } else {
        format!("WHERE m.run_id = $1 AND {CLEANABLE} ORDER BY m.old_path LIMIT $3::bigint")
    }
}

fn count_sql(orphans: bool, part: &str) -> String {
    let columns = if orphans {
        "m.destination_key AS old_path, NULL::bigint AS size_bytes, '' AS source_etag, true AS is_there,
           octet_length(m.new_path) <= 2600 AS is_cleanable, m.seen_at > now() - make_interval(secs => $2) AS is_young
      FROM bucket_brigade.orphans m"
            .into()
    } else {
        format!(
            "m.old_path, m.size_bytes, m.source_etag,
           (m.source_settled_at >= m.moved_at) IS NOT TRUE AND octet_length(m.old_path) <= 2600 AS is_there,
           ({CLEANABLE}) IS TRUE AS is_cleanable, m.moved_at > now() - make_interval(secs => $2) AS is_young
      FROM bucket_brigade.moves m"
        )
    };
    format!(
        "WITH part AS MATERIALIZED (
    SELECT {columns} {part}
), objects AS (
    SELECT max(size_bytes) AS bytes FROM part WHERE is_cleanable GROUP BY old_path
    HAVING bool_and(source_etag IS NOT NULL AND NOT is_young)
)
SELECT count(*) FILTER (WHERE is_there) AS moves, count(*) FILTER (WHERE is_there AND NOT is_cleanable) AS unverified,
       count(*) FILTER (WHERE is_cleanable AND is_young) AS young, (SELECT count(*) FROM objects) AS objects,
       (SELECT coalesce(sum(bytes), 0)::bigint FROM objects) AS bytes
  FROM part"
    )
}

pub(super) fn count_first_sql(orphans: bool) -> String {
    count_sql(orphans, &first_rows(orphans))
}

impl EligibleMoves {
    pub(super) fn has_objects(&self) -> bool {
        self.objects + self.in_removal > 0
    }

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
            in_removal: 0,
            is_estimate: true,
        }
    }
}

impl RemovalLedger<'_> {
    pub(super) async fn count_eligible(&self) -> anyhow::Result<EligibleMoves> {
        let mut eligible = retry_statement(async || self.count_uninterrupted().await).await?;
        eligible.in_removal = self.count_interrupted().await?;
        Ok(eligible)
    }

    async fn count_uninterrupted(&self) -> Result<EligibleMoves, StatementError> {
        let (pool, orphans) = (self.ledger.pool(), self.orphans);
        let table = if orphans { "orphans" } else { "moves" };
        let query = sqlx::query_scalar(SELECT_PAGES).bind(format!("bucket_brigade.{table}"));
        let pages: f64 = with_timeout(query.fetch_one(pool)).await?;
        let factor = (pages / SAMPLED_PAGES).max(1.0);
        let sampled = self
            .count(count_sql(orphans, SAMPLE), 100.0 / factor)
            .await?;
        if factor <= 1.0 {
            return Ok(sampled);
        }
        let first = self.count(count_first_sql(orphans), MAX_COUNTED.into());
        let first = first.await?;
        let estimate = sampled.scale(factor);
        if first.moves < i64::from(MAX_COUNTED) {
            let (moves, unverified) = (estimate.moves, estimate.unverified);
            return Ok(EligibleMoves {
                moves,
                unverified,
                is_estimate: true,
                ..first
            });
        }
        // At least these, however few the sample has met.
        let objects = estimate.objects.max(first.objects);
        Ok(EligibleMoves {
            objects,
            ..estimate
        })
    }

    async fn count(&self, sql: String, part: f64) -> Result<EligibleMoves, StatementError> {
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.ledger.run_id());
        let query = query.bind(self.age_seconds).bind(part);
        with_timeout(query.fetch_one(self.ledger.pool())).await
    }

    /// What an earlier clean was about to remove, and may not go by what this one was asked for. The others are
    /// counted with the rest.
    async fn count_interrupted(&self) -> anyhow::Result<i64> {
        let (mut pages, mut count) = (self.interrupted(1000), 0);
        while let Some(page) = pages.next(|one: &ObjectRemoval| &one.path).await? {
            let page = self.mark_interrupted(page).await?;
            count += page.iter().filter(|removal| !removal.is_marked).count();
        }
        Ok(i64::try_from(count)?)
    }
}
