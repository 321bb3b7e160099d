//! Reads the application's table and its server, and changes nothing, not even the ledger: what a plan is
//! made from.

use std::time::Duration;

use bucket_brigade_common::ledger::{
    ApplicationTable, ConnectionPurpose, LedgerError, RunSpec, TableAccess, discover_table,
};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::sql::{like_prefix, quote_identifier};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

/// A table of so many rows or fewer is counted, a larger one sampled.
const MAX_COUNTED_ROWS: f32 = 1_000_000.0;

/// About so many rows are read for a sample.
const TARGET_SAMPLE_ROWS: f32 = 200_000.0;

/// The longest a count or a sample may take.
const COUNT_TIMEOUT: Duration = Duration::from_mins(1);

/// The planner's idea of the number of rows; negative before the first ANALYZE. A partitioned table's is
/// the sum of its parts'.
const SELECT_ROW_ESTIMATE: &str = "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::real,
        coalesce(bool_and(c.reltuples >= 0), false)
    FROM pg_class c
    WHERE c.oid = $1::regclass OR c.oid IN (SELECT relid FROM pg_partition_tree($1::regclass) WHERE isleaf)";

const SELECT_TABLE_SIZE: &str = "SELECT coalesce(sum(pg_relation_size(relid)), 0)::bigint
    FROM (SELECT relid FROM pg_partition_tree($1::regclass) WHERE isleaf
          UNION SELECT $1::regclass) AS parts";

const SELECT_INDEXES: &str = "SELECT i.indexrelid::regclass::text AS name, pg_relation_size(i.indexrelid) AS bytes,
        i.indisunique AS is_unique,
        EXISTS (SELECT 1 FROM pg_attribute a
                 WHERE a.attrelid = i.indrelid AND a.attname = $2
                   AND (a.attnum = ANY (i.indkey) OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)) AS has_path
    FROM pg_index i WHERE i.indrelid = $1::regclass ORDER BY 1";

/// Triggers of the application that an update of the path sets off.
const SELECT_TRIGGERS: &str =
    "SELECT coalesce(array_agg(tgname::text ORDER BY tgname), '{}') FROM pg_trigger
    WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgenabled <> 'D' AND (tgtype & 16) <> 0";

/// The packager's own number follows the version.
const SELECT_SERVER: &str = "SELECT current_user::text AS user_name,
        has_column_privilege($1::regclass::oid, $2, 'UPDATE') AS may_update,
        to_regnamespace('bucket_brigade') IS NOT NULL AS has_ledger,
        CASE WHEN to_regnamespace('bucket_brigade') IS NULL
             THEN has_database_privilege(current_database(), 'CREATE')
             ELSE has_schema_privilege('bucket_brigade', 'CREATE') END AS may_create_ledger,
        current_setting('max_connections')::bigint AS max_connections,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connections,
        (SELECT count(*) FROM pg_stat_replication) AS replicas,
        pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS may_see_lag,
        split_part(current_setting('server_version'), ' ', 1) AS version";

/// Rows by what the rule says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowCounts {
    pub(super) in_scope: u64,
    /// Already under the new prefix.
    pub(super) moved: u64,
    pub(super) outside: u64,
    /// The share of the table that was read for it, in per cent; none when all of it was counted.
    pub(super) sampled_percent: Option<u32>,
    /// The average path of the rows that were read, in bytes.
    pub(super) average_path_bytes: u32,
    /// The table's size by its rows, in bytes.
    pub(super) average_row_bytes: u32,
    /// Indexes that an update of a path writes: all of them when one holds the path, otherwise none.
    pub(super) indexes_to_write: u32,
    /// The table's own size in bytes, without its indexes.
    pub(super) table_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct TableIndex {
    pub(super) name: String,
    #[sqlx(try_from = "i64")]
    pub(super) bytes: u64,
    pub(super) is_unique: bool,
    /// Whether it depends on the path, as a column or in an expression.
    pub(super) has_path: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each answers a question of its own"
)]
pub(super) struct ServerInfo {
    /// The role we are logged in as.
    #[sqlx(rename = "user_name")]
    pub(super) user: String,
    /// Whether it may set paths.
    pub(super) may_update: bool,
    pub(super) has_ledger: bool,
    /// Whether it may make the ledger, or bring it up to date.
    pub(super) may_create_ledger: bool,
    pub(super) max_connections: i64,
    pub(super) connections: i64,
    /// Those that stream from it.
    pub(super) replicas: i64,
    /// Whether the role may see how far they are behind.
    pub(super) may_see_lag: bool,
    pub(super) version: String,
}

/// A row of a count or a sample.
#[derive(sqlx::FromRow)]
struct CountRow {
    in_scope: i64,
    moved: i64,
    total: i64,
    average_path_bytes: i32,
}

/// The application's table, found and checked, and nothing more.
#[derive(Debug)]
pub(super) struct TableInspector {
    pool: PgPool,
    table: ApplicationTable,
    path_column: String,
    rule: PathRule,
}

impl TableInspector {
    /// Finds the table and checks it as the feeder does, without making a ledger.
    pub(super) async fn open(pool: PgPool, spec: &RunSpec) -> Result<Self, LedgerError> {
        let purpose = ConnectionPurpose::Command("plan".into());
        let table = discover_table(&pool, spec, &purpose, TableAccess::Read).await?;
        Ok(Self {
            pool,
            table,
            path_column: spec.table.path_column.clone(),
            rule: spec.rule.clone(),
        })
    }

    /// The table as `schema.table`.
    pub(super) fn table_name(&self) -> String {
        self.table.name.clone()
    }

    /// What grants the right to set paths to `role`.
    pub(super) fn grant_update(&self, role: &str) -> String {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let role = quote_identifier(role);
        format!("GRANT SELECT ({id}, {path}), UPDATE ({path}) ON {sql} TO {role};")
    }

    /// Counts the rows, or estimates them from a sample where the table is large.
    pub(super) async fn count_rows(&self) -> Result<RowCounts, LedgerError> {
        let (rows, is_known): (f32, bool) = sqlx::query_as(SELECT_ROW_ESTIMATE)
            .bind(&self.table.sql)
            .fetch_one(&self.pool)
            .await?;
        let percent = (is_known && rows > MAX_COUNTED_ROWS)
            .then(|| (TARGET_SAMPLE_ROWS / rows * 100.0).max(0.001));
        let counting = self.count_or_sample(percent);
        match tokio::time::timeout(COUNT_TIMEOUT, counting).await {
            Ok(counts) => Ok(counts?),
            Err(_) => Err(LedgerError::Unreachable(format!(
                "no count of the rows within {COUNT_TIMEOUT:?}: ANALYZE the table, so that a sample suffices"
            ))),
        }
    }

    async fn count_or_sample(&self, percent: Option<f32>) -> Result<RowCounts, sqlx::Error> {
        let ApplicationTable { sql, path, .. } = &self.table;
        let sample = percent.map_or(String::new(), |percent| {
            format!("TABLESAMPLE SYSTEM ({percent})")
        });
        let statement = format!(
            r#"SELECT count(*) FILTER (WHERE {path} COLLATE "C" LIKE $1 ESCAPE '\') AS in_scope,
                count(*) FILTER (WHERE {path} COLLATE "C" LIKE $2 ESCAPE '\'
                                   AND {path} COLLATE "C" NOT LIKE $1 ESCAPE '\') AS moved,
                count(*) AS total, coalesce(avg(octet_length({path})), 0)::int AS average_path_bytes
           FROM {sql} {sample}"#
        );
        let CountRow {
            in_scope,
            moved,
            total,
            average_path_bytes,
        } = sqlx::query_as(AssertSqlSafe(statement))
            .bind(like_prefix(self.rule.old_prefix()))
            .bind(like_prefix(self.rule.new_prefix()))
            .fetch_one(&self.pool)
            .await?;
        let whole = |count: i64| scale_sample(count, percent);
        let table_bytes = self.table_size().await?;
        let row = table_bytes.checked_div(whole(total)).unwrap_or(0);
        Ok(RowCounts {
            in_scope: whole(in_scope),
            moved: whole(moved),
            outside: whole(total - in_scope - moved),
            sampled_percent: percent.map(round_percent),
            average_path_bytes: u32::try_from(average_path_bytes).unwrap_or(0),
            average_row_bytes: u32::try_from(row).unwrap_or(u32::MAX),
            indexes_to_write: self.indexes_to_write().await?,
            table_bytes,
        })
    }

    async fn table_size(&self) -> Result<u64, sqlx::Error> {
        let bytes: i64 = sqlx::query_scalar(SELECT_TABLE_SIZE)
            .bind(&self.table.sql)
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    async fn indexes_to_write(&self) -> Result<u32, sqlx::Error> {
        let indexes = self.list_indexes().await?;
        let all = u32::try_from(indexes.len()).unwrap_or(u32::MAX);
        let holds_path = indexes.iter().any(|index| index.has_path);
        Ok(if holds_path { all } else { 0 })
    }

    /// Id and path of a few rows in scope, spread over the first ones by id.
    pub(super) async fn sample_rows(
        &self,
        most: u32,
    ) -> Result<Vec<(String, String)>, sqlx::Error> {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let statement = format!(
            r#"SELECT s.id, s.path FROM (SELECT t.{id}::text AS id, t.{path}::text AS path FROM {sql} t
                WHERE t.{path} COLLATE "C" LIKE $1 ESCAPE '\' ORDER BY t.{id} LIMIT 1000) s
               ORDER BY md5(s.id) LIMIT $2"#
        );
        sqlx::query_as(AssertSqlSafe(statement))
            .bind(like_prefix(self.rule.old_prefix()))
            .bind(i64::from(most))
            .fetch_all(&self.pool)
            .await
    }

    pub(super) async fn list_indexes(&self) -> Result<Vec<TableIndex>, sqlx::Error> {
        let query = sqlx::query_as(SELECT_INDEXES).bind(&self.table.sql);
        query.bind(&self.path_column).fetch_all(&self.pool).await
    }

    /// The application's triggers that an update of a path sets off.
    pub(super) async fn update_triggers(&self) -> Result<Vec<String>, sqlx::Error> {
        let query = sqlx::query_scalar(SELECT_TRIGGERS).bind(&self.table.sql);
        query.fetch_one(&self.pool).await
    }

    pub(super) async fn server_info(&self) -> Result<ServerInfo, sqlx::Error> {
        let query = sqlx::query_as(SELECT_SERVER).bind(&self.table.sql);
        query.bind(&self.path_column).fetch_one(&self.pool).await
    }
}

/// A count of a sample, for the whole table.
fn scale_sample(count: i64, percent: Option<f32>) -> u64 {
    let count = u64::try_from(count).unwrap_or(0);
    let Some(percent) = percent else {
        return count;
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate"
    )]
    let estimate = (count as f64 * 100.0 / f64::from(percent)).round() as u64;
    estimate
}

fn round_percent(percent: f32) -> u32 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 at least, and at most 100"
    )]
    let whole = percent.round().clamp(1.0, 100.0) as u32;
    whole
}
