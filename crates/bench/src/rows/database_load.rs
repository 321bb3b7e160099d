//! What Postgres did for the programs meanwhile, as it counts itself.

use anyhow::Result;
use sqlx::FromRow;

use crate::rig::BenchRig;

/// Since [`DatabaseLoad::reset`].
#[derive(Debug, Clone, Copy, FromRow)]
pub(super) struct DatabaseLoad {
    pub(super) statements: f64,
    /// Pages of 8 KiB that were looked at, in memory or not.
    pub(super) buffers: f64,
    pub(super) longest_statement_ms: f64,
}

impl DatabaseLoad {
    pub(super) async fn reset(rig: &BenchRig) -> Result<()> {
        rig.execute_sql("SELECT pg_stat_statements_reset()").await
    }

    pub(super) async fn read(rig: &BenchRig) -> Result<Self> {
        Self::read_matching(rig, "%").await
    }

    /// Of what was asked of the table of images alone.
    pub(super) async fn read_of_images(rig: &BenchRig) -> Result<Self> {
        Self::read_matching(rig, "%images%").await
    }

    /// The bench marks its own statements.
    async fn read_matching(rig: &BenchRig, pattern: &str) -> Result<Self> {
        let load = sqlx::query_as(
            "SELECT coalesce(sum(calls), 0)::float8 AS statements,
                    coalesce(sum(shared_blks_hit + shared_blks_read), 0)::float8 AS buffers,
                    coalesce(max(max_exec_time), 0)::float8 AS longest_statement_ms
               FROM pg_stat_statements
              WHERE query LIKE $1 AND query NOT LIKE '%/* bench */%' AND query NOT LIKE '%pg_stat_%'",
        );
        Ok(load.bind(pattern).fetch_one(&rig.pool).await?)
    }
}

/// In seconds, of the programs' transactions that are open now.
pub(super) const OLDEST_TRANSACTION: &str = "SELECT /* bench */ coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0)::float8
           FROM pg_stat_activity WHERE application_name LIKE 'bucket-brigade%'";
