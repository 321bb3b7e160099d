//! A look at the application's table and its server that changes nothing, not even the ledger: what a
//! plan is made from.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::run::discover_table;
use super::table::TableAccess;
use super::{ApplicationTable, ConnectionPurpose, LedgerError, RunSpec};
use crate::path_rule::PathRule;
use crate::row_id::RowId;
use crate::sql::like_prefix;

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

const SELECT_INDEXES: &str = "SELECT i.indexrelid::regclass::text, pg_relation_size(i.indexrelid),
        i.indisunique,
        EXISTS (SELECT 1 FROM pg_attribute a
                 WHERE a.attrelid = i.indrelid AND a.attname = $2
                   AND (a.attnum = ANY (i.indkey) OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL))
    FROM pg_index i WHERE i.indrelid = $1::regclass ORDER BY 1";

/// Triggers of the application that an update of the path sets off.
const SELECT_TRIGGERS: &str =
    "SELECT coalesce(array_agg(tgname::text ORDER BY tgname), '{}') FROM pg_trigger
    WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgenabled <> 'D' AND (tgtype & 16) <> 0";

const SELECT_SERVER: &str = "SELECT current_user::text,
        has_column_privilege($1::regclass::oid, $2, 'UPDATE'),
        to_regnamespace('bucket_brigade') IS NOT NULL,
        CASE WHEN to_regnamespace('bucket_brigade') IS NULL
             THEN has_database_privilege(current_database(), 'CREATE')
             ELSE has_schema_privilege('bucket_brigade', 'CREATE') END,
        current_setting('max_connections')::int,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),
        (SELECT count(*) FROM pg_stat_replication),
        pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
        current_setting('server_version')";

/// A row of [`SERVER`].
type ServerColumns = (String, bool, bool, bool, i32, i64, i64, bool, String);

/// Rows by what the rule says of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowCounts {
    /// Still to move.
    pub in_scope: u64,
    /// Already under the new prefix.
    pub moved: u64,
    /// Neither.
    pub outside: u64,
    /// The share of the table that was read for it, in per cent; none when all of it was counted.
    pub sampled_percent: Option<u32>,
    /// The average path of the rows that were read, in bytes.
    pub average_path_bytes: u32,
    /// The table's size by its rows, in bytes.
    pub average_row_bytes: u32,
    /// Indexes that an update of a path writes: all of them when one holds the path, otherwise none.
    pub indexes_to_write: u32,
    /// The table's own size in bytes, without its indexes.
    pub table_bytes: u64,
}

/// An index of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableIndex {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Whether it is unique.
    pub is_unique: bool,
    /// Whether it depends on the path, as a column or in an expression.
    pub has_path: bool,
}

/// What of the server matters.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each answers a question of its own"
)]
pub struct ServerInfo {
    /// The role we are logged in as.
    pub user: String,
    /// Whether it may set paths.
    pub may_update: bool,
    /// Whether there is a ledger.
    pub has_ledger: bool,
    /// Whether it may make the ledger, or bring it up to date.
    pub may_create_ledger: bool,
    /// Connections the server allows.
    pub max_connections: u32,
    /// Connections there are.
    pub connections: u32,
    /// Replicas that stream from it.
    pub replicas: u32,
    /// Whether the role may see how far they are behind.
    pub may_see_lag: bool,
    /// Its version.
    pub version: String,
}

/// The application's table, found and checked, and nothing more.
#[derive(Debug)]
pub struct TableInspector {
    pool: PgPool,
    table: ApplicationTable,
    path_column: String,
    rule: PathRule,
}

impl TableInspector {
    /// Finds the table and checks it as the feeder does, without making a ledger.
    ///
    /// # Errors
    /// A [`LedgerError`] that names the culprit.
    pub async fn open(pool: PgPool, spec: &RunSpec) -> Result<Self, LedgerError> {
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
    pub fn table_name(&self) -> String {
        self.table.name.to_string()
    }

    /// What grants the right to set paths to `role`.
    pub fn grant_update(&self, role: &str) -> String {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let role = crate::sql::quote_identifier(role);
        format!("GRANT SELECT ({id}, {path}), UPDATE ({path}) ON {sql} TO {role};")
    }

    /// Counts the rows, or estimates them from a sample where the table is large.
    ///
    /// # Errors
    /// [`LedgerError::Database`], also when it takes longer than a minute.
    pub async fn count_rows(&self) -> Result<RowCounts, LedgerError> {
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
            r#"SELECT count(*) FILTER (WHERE {path} COLLATE "C" LIKE $1 ESCAPE '\'),
                count(*) FILTER (WHERE {path} COLLATE "C" LIKE $2 ESCAPE '\'
                                   AND {path} COLLATE "C" NOT LIKE $1 ESCAPE '\'),
                count(*), coalesce(avg(octet_length({path})), 0)::int
           FROM {sql} {sample}"#
        );
        let (in_scope, moved, all, average): (i64, i64, i64, i32) =
            sqlx::query_as(AssertSqlSafe(statement))
                .bind(like_prefix(self.rule.old_prefix()))
                .bind(like_prefix(self.rule.new_prefix()))
                .fetch_one(&self.pool)
                .await?;
        let whole = |count: i64| scale_sample(count, percent);
        let table_bytes = self.table_size().await?;
        let row = table_bytes.checked_div(whole(all)).unwrap_or(0);
        Ok(RowCounts {
            in_scope: whole(in_scope),
            moved: whole(moved),
            outside: whole(all - in_scope - moved),
            sampled_percent: percent.map(round_percent),
            average_path_bytes: u32::try_from(average).unwrap_or(0),
            average_row_bytes: u32::try_from(row).unwrap_or(u32::MAX),
            indexes_to_write: self.indexes_to_write().await?,
            table_bytes,
        })
    }

    async fn table_size(&self) -> Result<u64, sqlx::Error> {
        let (bytes,): (i64,) = sqlx::query_as(SELECT_TABLE_SIZE)
            .bind(&self.table.sql)
            .fetch_one(&self.pool)
            .await?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    async fn indexes_to_write(&self) -> Result<u32, sqlx::Error> {
        let indexes = self.read_indexes().await?;
        let all = u32::try_from(indexes.len()).unwrap_or(u32::MAX);
        let holds_path = indexes.iter().any(|index| index.has_path);
        Ok(if holds_path { all } else { 0 })
    }

    /// A few rows in scope, spread over the first ones by id.
    ///
    /// # Errors
    /// [`LedgerError::Database`]
    pub async fn sample_rows(&self, most: u32) -> Result<Vec<(RowId, String)>, LedgerError> {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let statement = format!(
            r#"SELECT s.id, s.path FROM (SELECT t.{id}::text AS id, t.{path}::text AS path FROM {sql} t
                WHERE t.{path} COLLATE "C" LIKE $1 ESCAPE '\' ORDER BY t.{id} LIMIT 1000) s
               ORDER BY md5(s.id) LIMIT $2"#
        );
        let rows: Vec<(String, String)> = sqlx::query_as(AssertSqlSafe(statement))
            .bind(like_prefix(self.rule.old_prefix()))
            .bind(i64::from(most))
            .fetch_all(&self.pool)
            .await?;
        let row = |(id, path)| (RowId::from_database(id), path);
        Ok(rows.into_iter().map(row).collect())
    }

    /// The table's indexes.
    ///
    /// # Errors
    /// [`LedgerError::Database`]
    pub async fn list_indexes(&self) -> Result<Vec<TableIndex>, LedgerError> {
        Ok(self.read_indexes().await?)
    }

    async fn read_indexes(&self) -> Result<Vec<TableIndex>, sqlx::Error> {
        let found: Vec<(String, i64, bool, bool)> = sqlx::query_as(SELECT_INDEXES)
            .bind(&self.table.sql)
            .bind(&self.path_column)
            .fetch_all(&self.pool)
            .await?;
        let index = |(name, bytes, is_unique, has_path)| TableIndex {
            name,
            bytes: u64::try_from(bytes).unwrap_or(0),
            is_unique,
            has_path,
        };
        Ok(found.into_iter().map(index).collect())
    }

    /// The application's triggers that an update of a path sets off.
    ///
    /// # Errors
    /// [`LedgerError::Database`]
    pub async fn update_triggers(&self) -> Result<Vec<String>, LedgerError> {
        let query = sqlx::query_scalar(SELECT_TRIGGERS).bind(&self.table.sql);
        Ok(query.fetch_one(&self.pool).await?)
    }

    /// What of the server matters.
    ///
    /// # Errors
    /// [`LedgerError::Database`]
    pub async fn server_info(&self) -> Result<ServerInfo, LedgerError> {
        let found: ServerColumns = sqlx::query_as(SELECT_SERVER)
            .bind(&self.table.sql)
            .bind(&self.path_column)
            .fetch_one(&self.pool)
            .await?;
        let number = |count: i64| u32::try_from(count).unwrap_or(0);
        Ok(ServerInfo {
            user: found.0,
            may_update: found.1,
            has_ledger: found.2,
            may_create_ledger: found.3,
            max_connections: number(i64::from(found.4)),
            connections: number(found.5),
            replicas: number(found.6),
            may_see_lag: found.7,
            // The packager's own number follows the version.
            version: found.8.split(' ').next().unwrap_or_default().to_owned(),
        })
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
