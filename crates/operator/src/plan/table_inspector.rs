//! Reads the application's table and its server, and changes nothing, not even the ledger: what a plan is
//! made from.

use bucket_brigade_common::ledger::{
    ApplicationTable, ConnectionPurpose, DatabasePool, LedgerError, RunSpec, TableAccess,
    discover_table, is_statement_timeout,
};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::sql::like_prefix;
use serde::Serialize;
use sqlx::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection as _, Decode, PgConnection, Type};

/// A table of so many bytes or fewer is counted, a larger one sampled. The size is always known, the number of
/// rows only since the last ANALYZE, which autovacuum never runs on a partitioned table.
const MAX_COUNTED_BYTES: f64 = 128.0 * 1024.0 * 1024.0;

/// About so many bytes are read for a sample.
const TARGET_SAMPLE_BYTES: f64 = 16.0 * 1024.0 * 1024.0;

/// Rows that were too long are named up to this number.
const MAX_NAMED_ROWS: i64 = 5;

/// `tables`: a table, its partitions, and the tables that inherit from it.
macro_rules! with_tables {
    ($statement:literal) => {
        concat!(
            "WITH RECURSIVE tables AS (SELECT $1::regclass::oid AS oid
                UNION SELECT i.inhrelid FROM pg_inherits i JOIN tables t ON t.oid = i.inhparent) ",
            $statement
        )
    };
}

const SELECT_TABLE_SIZE: &str =
    with_tables!("SELECT coalesce(sum(pg_relation_size(oid)), 0)::bigint FROM tables");

/// Those with rows of which the server knows nothing.
pub(super) const COUNT_UNANALYSED: &str = with_tables!(
    "SELECT count(*) FROM tables t JOIN pg_class c ON c.oid = t.oid
      WHERE c.relkind = 'r' AND c.relpages = 0 AND pg_relation_size(c.oid) > 0"
);

/// Those that a crash of the server empties.
pub(super) const COUNT_UNLOGGED: &str = with_tables!(
    "SELECT count(*) FROM tables t JOIN pg_class c ON c.oid = t.oid WHERE c.relpersistence = 'u'"
);

/// How many characters the column holds at most, declared or by its domain.
const SELECT_MAX_PATH_CHARS: &str =
    "SELECT (coalesce(nullif(a.atttypmod, -1), nullif(t.typtypmod, -1)) - 4)::integer
    FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
    WHERE a.attrelid = $1::regclass AND a.attname = $2";

/// Tables whose updates a publication publishes, and which do not say which row was updated; and the index that
/// could. `$1` table, `$2` id columns.
const SELECT_WITHOUT_IDENTITY: &str = with_tables!(
    "SELECT c.oid::regclass::text AS name, (SELECT min(quote_ident(named.relname))
        FROM pg_index i JOIN pg_class named ON named.oid = i.indexrelid
       WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indisvalid
         AND NOT EXISTS (SELECT 1 FROM unnest(i.indkey::smallint[]) WITH ORDINALITY k (number, place)
                LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
               WHERE k.place <= i.indnkeyatts AND (a.attname = ANY ($2)) IS NOT TRUE)) AS unique_index
    FROM tables t JOIN pg_class c ON c.oid = t.oid
    WHERE c.relkind = 'r' AND (c.relreplident = 'n' OR c.relreplident = 'd' AND NOT EXISTS (
            SELECT 1 FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))
      AND EXISTS (SELECT 1 FROM pg_publication_tables pt JOIN pg_publication pb USING (pubname),
                pg_class x JOIN pg_namespace n ON n.oid = x.relnamespace
           WHERE pb.pubupdate AND x.oid IN (c.oid, $1::regclass::oid)
             AND (pt.schemaname, pt.tablename) = (n.nspname, x.relname))
    ORDER BY 1 LIMIT 3"
);

const SELECT_INDEXES: &str = "SELECT i.indexrelid::regclass::text AS name, pg_relation_size(i.indexrelid) AS bytes,
        i.indisunique AS is_unique,
        EXISTS (SELECT 1 FROM pg_attribute a
                 WHERE a.attrelid = i.indrelid AND a.attname = $2
                   AND (a.attnum = ANY (i.indkey) OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL))
        OR EXISTS (SELECT 1 FROM pg_attribute g
                 WHERE g.attrelid = i.indrelid AND g.attgenerated <> '' AND g.attnum = ANY (i.indkey)) AS has_path
    FROM pg_index i WHERE i.indrelid = $1::regclass ORDER BY 1";

/// Triggers of the application that an update of the path sets off.
pub(super) const SELECT_TRIGGERS: &str =
    "SELECT coalesce(array_agg(tgname::text ORDER BY tgname), '{}') FROM pg_trigger
    WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgenabled <> 'D' AND (tgtype & 16) <> 0";

/// `$1` backend, which may have become another client's.
const CANCEL_STATEMENT: &str = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity
    WHERE pid = $1 AND application_name = current_setting('application_name')";

/// The packager's own number follows the version.
const SELECT_SERVER: &str = "SELECT current_user::text AS user_name,
        has_column_privilege($1::regclass::oid, $2, 'UPDATE') AS may_update,
        to_regnamespace('bucket_brigade') IS NOT NULL AS has_schema,
        to_regclass('bucket_brigade.run') IS NOT NULL AS has_ledger,
        CASE WHEN to_regnamespace('bucket_brigade') IS NULL
             THEN has_database_privilege(current_database(), 'CREATE')
             ELSE has_schema_privilege('bucket_brigade', 'CREATE') END AS may_create_ledger,
        current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint
            AS max_connections,
        CASE WHEN NOT r.rolsuper THEN nullif(d.datconnlimit, -1)::bigint END AS database_limit,
        CASE WHEN NOT r.rolsuper THEN nullif(r.rolconnlimit, -1)::bigint END AS role_limit,
        -- Of other roles, activity does not say what it is.
        (SELECT sum(numbackends)::bigint FROM pg_stat_database) AS connections,
        (SELECT count(*) FROM pg_stat_replication) AS replicas,
        to_regproc('aurora_version') IS NOT NULL AS is_aurora,
        to_regproc('aurora_replica_status') IS NOT NULL AS has_aurora_status,
        pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') AS may_see_lag,
        split_part(current_setting('server_version'), ' ', 1) AS version
    FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = session_user";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct RowCounts {
    pub(super) in_scope: u64,
    #[serde(rename = "moved_already")]
    pub(super) moved: u64,
    pub(super) outside: u64,
    /// Null or empty.
    pub(super) without_path: u64,
    /// The share of the table that was read for it, in per cent; none when all of it was counted.
    #[serde(rename = "estimated_from_percent")]
    pub(super) sampled_percent: Option<u32>,
    #[serde(skip)]
    pub(super) average_path_bytes: u32,
    /// The table's size by its rows, in bytes.
    #[serde(skip)]
    pub(super) average_row_bytes: u32,
    /// Indexes that an update of a path writes: all of them when one holds the path, otherwise none.
    #[serde(skip)]
    pub(super) indexes_to_write: u32,
    #[serde(skip)]
    pub(super) table_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct TableIndex {
    pub(super) name: String,
    #[sqlx(try_from = "i64")]
    pub(super) bytes: u64,
    pub(super) is_unique: bool,
    /// Whether it may depend on the path: as a column, in an expression, or by a generated column.
    pub(super) has_path: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each answers a question of its own"
)]
pub(super) struct ServerInfo {
    #[sqlx(rename = "user_name")]
    pub(super) user: String,
    pub(super) may_update: bool,
    /// Whether there is a schema for the ledger, which an administrator may have made.
    pub(super) has_schema: bool,
    pub(super) has_ledger: bool,
    /// Whether it may make the ledger, or bring it up to date.
    pub(super) may_create_ledger: bool,
    pub(super) max_connections: i64,
    pub(super) connections: i64,
    pub(super) database_limit: Option<i64>,
    /// Of this role alone; superusers have none.
    pub(super) role_limit: Option<i64>,
    pub(super) is_aurora: bool,
    pub(super) has_aurora_status: bool,
    pub(super) replicas: i64,
    pub(super) may_see_lag: bool,
    pub(super) version: String,
}

impl ServerInfo {
    /// What may not have so many connections, and how many it may.
    pub(super) fn lower_limit(&self, needed: i64) -> Option<(&'static str, i64)> {
        let limits = [("DATABASE", self.database_limit), ("ROLE", self.role_limit)];
        let limits = limits
            .into_iter()
            .filter_map(|(name, limit)| Some((name, limit?)));
        limits
            .filter(|(_, limit)| *limit < needed)
            .min_by_key(|(_, limit)| *limit)
    }
}

#[derive(sqlx::FromRow)]
struct CountRow {
    in_scope: i64,
    moved: i64,
    without_path: i64,
    total: i64,
    average_path_bytes: i32,
}

#[derive(Debug)]
pub(super) struct TableInspector {
    pub(super) pool: DatabasePool,
    pub(super) table: ApplicationTable,
    pub(super) rule: PathRule,
    path_column: String,
    backend: i32,
}

impl TableInspector {
    /// Finds the table and checks it as the feeder does, without making a ledger.
    pub(super) async fn open(database: DatabasePool, spec: &RunSpec) -> Result<Self, LedgerError> {
        let purpose = ConnectionPurpose::Plan;
        let table = discover_table(&database, spec, &purpose, TableAccess::Read).await?;
        let backend = sqlx::query_scalar("SELECT pg_backend_pid()");
        Ok(Self {
            backend: backend.fetch_one(&*database).await?,
            pool: database,
            table,
            path_column: spec.table.path_column.clone(),
            rule: spec.rule.clone(),
        })
    }

    /// Ends the statement that is under way. A client that only goes away is noticed later.
    pub(super) async fn cancel_statement(&self) -> Result<(), sqlx::Error> {
        let mut connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
        let query = sqlx::query(CANCEL_STATEMENT).bind(self.backend);
        query.execute(&mut connection).await?;
        connection.close().await
    }

    pub(super) fn grant_update(&self, role: &str) -> String {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let id = id.list();
        format!("GRANT SELECT ({id}, {path}), UPDATE ({path}) ON {sql} TO {role};")
    }

    pub(super) fn widen_path(&self) -> String {
        let ApplicationTable { sql, path, .. } = &self.table;
        format!("ALTER TABLE {sql} ALTER COLUMN {path} TYPE text;")
    }

    /// Counts the rows, or estimates them from a sample where the table is large. None when the server took too
    /// long even for that.
    pub(super) async fn count_rows(&self) -> Result<Option<RowCounts>, sqlx::Error> {
        let percent = self.sample_percent().await?;
        none_on_timeout(self.count_or_sample(percent).await)
    }

    /// The share of the table that a sample reads; none when all of it is read.
    async fn sample_percent(&self) -> Result<Option<f64>, sqlx::Error> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let bytes = self.table_size().await? as f64;
        Ok((bytes > MAX_COUNTED_BYTES).then(|| (TARGET_SAMPLE_BYTES / bytes * 100.0).max(1e-5)))
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "1 per cent at least, and at most 100"
    )]
    async fn count_or_sample(&self, percent: Option<f64>) -> Result<RowCounts, sqlx::Error> {
        let ApplicationTable { sql, path, .. } = &self.table;
        let (sample, in_scope) = (sample_clause(percent), self.table.in_scope("$1"));
        let statement = format!(
            r#"SELECT count(*) FILTER (WHERE {in_scope}) AS in_scope,
                count(*) FILTER (WHERE {path}::text COLLATE "C" LIKE $2 ESCAPE '\'
                                   AND {path}::text COLLATE "C" NOT LIKE $1 ESCAPE '\'
                                   AND {path}::text <> '') AS moved,
                count(*) FILTER (WHERE coalesce({path}::text, '') = '') AS without_path,
                count(*) AS total, coalesce(avg(octet_length({path}::text)), 0)::int AS average_path_bytes
           FROM {sql} t {sample}"#
        );
        let CountRow {
            in_scope,
            moved,
            without_path,
            total,
            average_path_bytes,
        } = sqlx::query_as(AssertSqlSafe(statement))
            .bind(like_prefix(self.rule.old_prefix()))
            .bind(like_prefix(self.rule.new_prefix()))
            .fetch_one(&*self.pool)
            .await?;
        let whole = |count: i64| scale_sample(count, percent);
        let (table_bytes, indexes) = (self.table_size().await?, self.list_indexes().await?);
        let row = table_bytes.checked_div(whole(total)).unwrap_or(0);
        Ok(RowCounts {
            in_scope: whole(in_scope),
            moved: whole(moved),
            outside: whole(total - in_scope - moved - without_path),
            without_path: whole(without_path),
            sampled_percent: percent.map(|percent| percent.round().max(1.0) as u32),
            average_path_bytes: u32::try_from(average_path_bytes).unwrap_or(0),
            average_row_bytes: u32::try_from(row).unwrap_or(u32::MAX),
            indexes_to_write: if indexes.iter().any(|index| index.has_path) {
                u32::try_from(indexes.len()).unwrap_or(u32::MAX)
            } else {
                0
            },
            table_bytes,
        })
    }

    async fn table_size(&self) -> Result<u64, sqlx::Error> {
        let bytes: i64 = self.ask(SELECT_TABLE_SIZE).await?;
        Ok(u64::try_from(bytes).unwrap_or(0))
    }

    /// One value of the table, which is `$1`.
    pub(super) async fn ask<T>(&self, sql: &'static str) -> Result<T, sqlx::Error>
    where
        T: for<'r> Decode<'r, Postgres> + Type<Postgres> + Send + Unpin,
    {
        let query = sqlx::query_scalar(sql).bind(&self.table.sql);
        query.fetch_one(&*self.pool).await
    }

    /// Id and path of a few rows in scope, from anywhere in the table. `searches` for those that a sample misses.
    pub(super) async fn sample_rows(
        &self,
        most: usize,
        searches: bool,
    ) -> Result<Vec<(String, String)>, sqlx::Error> {
        let percent = self.sample_percent().await?;
        let sampled = self
            .select_rows(sample_clause(percent), "ORDER BY md5(s.id)", most)
            .await?;
        if percent.is_some() && sampled.is_empty() && searches {
            // Few are left: the first that a search finds in time.
            let found = self.select_rows(String::new(), "", most).await;
            return Ok(none_on_timeout(found)?.unwrap_or_default());
        }
        Ok(sampled)
    }

    /// Those of the paths that some row has; all of them where that took the server too long.
    pub(super) async fn find_paths(&self, paths: &[String]) -> Result<Vec<String>, sqlx::Error> {
        let ApplicationTable { sql, path, .. } = &self.table;
        let sql = format!(
            "SELECT DISTINCT t.{path}::text FROM {sql} t WHERE t.{path} = ANY ($1::text[])"
        );
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(paths);
        let found = none_on_timeout(query.fetch_all(&*self.pool).await)?;
        Ok(found.unwrap_or_else(|| paths.to_vec()))
    }

    async fn select_rows(
        &self,
        sample: String,
        order: &str,
        most: usize,
    ) -> Result<Vec<(String, String)>, sqlx::Error> {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let (row_id, in_scope) = (id.as_text("t"), self.table.in_scope("$1"));
        let statement = format!(
            "SELECT s.id, s.path FROM (
                SELECT {row_id} AS id, t.{path}::text AS path FROM {sql} t {sample} WHERE {in_scope}) s
             {order} LIMIT $2"
        );
        sqlx::query_as(AssertSqlSafe(statement))
            .bind(like_prefix(self.rule.old_prefix()))
            .bind(i64::try_from(most).unwrap_or(i64::MAX))
            .fetch_all(&*self.pool)
            .await
    }

    /// The column's length in characters, where it has one, and ids of rows whose new path is longer; none
    /// of these when the server took too long to look at all.
    pub(super) async fn find_too_long_paths(
        &self,
    ) -> Result<Option<(i32, Option<Vec<String>>)>, sqlx::Error> {
        let query = sqlx::query_scalar(SELECT_MAX_PATH_CHARS).bind(&self.table.sql);
        let query = query.bind(&self.path_column);
        let Some(most) = query.fetch_one(&*self.pool).await? else {
            return Ok(None);
        };
        Ok(Some((
            most,
            none_on_timeout(self.select_longer_than(most).await)?,
        )))
    }

    async fn select_longer_than(&self, most: i32) -> Result<Vec<String>, sqlx::Error> {
        let ApplicationTable { sql, id, path, .. } = &self.table;
        let chars = |prefix: &str| i32::try_from(prefix.chars().count()).unwrap_or(i32::MAX);
        let (old, new) = (self.rule.old_prefix(), self.rule.new_prefix());
        let (row_id, in_scope) = (id.as_text("t"), self.table.in_scope("$1"));
        let statement = format!(
            "SELECT {row_id} FROM {sql} t WHERE {in_scope} AND char_length(t.{path}::text) > $2 LIMIT $3"
        );
        sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(like_prefix(old))
            .bind(most.saturating_add(chars(old)).saturating_sub(chars(new)))
            .bind(MAX_NAMED_ROWS)
            .fetch_all(&*self.pool)
            .await
    }

    /// SQL that lets published tables be updated; empty where they can be.
    pub(super) async fn missing_replica_identity(&self) -> Result<Vec<String>, sqlx::Error> {
        let query = sqlx::query_as(SELECT_WITHOUT_IDENTITY).bind(&self.table.sql);
        let query = query.bind(self.table.id.plain_names());
        let tables: Vec<(String, Option<String>)> = query.fetch_all(&*self.pool).await?;
        let mend = |(table, index): (String, Option<String>)| {
            let identity = index.map_or("FULL".into(), |index| format!("USING INDEX {index}"));
            format!("ALTER TABLE {table} REPLICA IDENTITY {identity};")
        };
        Ok(tables.into_iter().map(mend).collect())
    }

    pub(super) async fn list_indexes(&self) -> Result<Vec<TableIndex>, sqlx::Error> {
        let query = sqlx::query_as(SELECT_INDEXES).bind(&self.table.sql);
        query.bind(&self.path_column).fetch_all(&*self.pool).await
    }

    pub(super) async fn server_info(&self) -> Result<ServerInfo, sqlx::Error> {
        let query = sqlx::query_as(SELECT_SERVER).bind(&self.table.sql);
        query.bind(&self.path_column).fetch_one(&*self.pool).await
    }
}

fn sample_clause(percent: Option<f64>) -> String {
    percent.map_or(String::new(), |percent| {
        format!("TABLESAMPLE SYSTEM ({percent})")
    })
}

fn none_on_timeout<T>(result: Result<T, sqlx::Error>) -> Result<Option<T>, sqlx::Error> {
    match result {
        Err(error) if is_statement_timeout(&error) => Ok(None),
        result => result.map(Some),
    }
}

/// A count of a sample, for the whole table.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn scale_sample(count: i64, percent: Option<f64>) -> u64 {
    let count = u64::try_from(count).unwrap_or(0);
    percent.map_or(count, |percent| {
        (count as f64 * 100.0 / percent).round() as u64
    })
}
