//! Which rows name an object: rows of this run's table, and of every other run that shares the bucket.

use std::collections::HashSet;

use sqlx::AssertSqlSafe;

use super::table::ensure_all_rows_visible;
use super::{LedgerError, PostgresLedger, without_timeout};
use crate::move_ledger::StatementError;
use crate::sql::quote_identifier;

/// A column whose paths under a prefix name objects of one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathReference {
    /// The table, quoted, as the run that knows it has it.
    pub table: String,
    path_column: String,
    path_prefix: String,
    key_prefix: String,
}

/// The runs' two sides that lie in bucket `$1`. Several runs of one table are one namer.
const SELECT_PATH_REFERENCES: &str =
    "SELECT DISTINCT images_table, path_column, path_prefix, key_prefix FROM (
    SELECT images_table, path_column, old_prefix, source_key_prefix
      FROM bucket_brigade.run WHERE source_bucket = $1
    UNION ALL
    SELECT images_table, path_column, new_prefix, destination_key_prefix
      FROM bucket_brigade.run WHERE destination_bucket = $1
) AS sides (images_table, path_column, path_prefix, key_prefix) ORDER BY 1, 2, 3, 4";

impl PathReference {
    /// The path by which this column would name the key.
    fn path_of(&self, key: &str) -> Option<String> {
        let rest = key.strip_prefix(&self.key_prefix)?;
        Some(format!("{}{rest}", self.path_prefix))
    }

    fn key_of(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(&self.path_prefix)?;
        Some(format!("{}{rest}", self.key_prefix))
    }

    fn lookup_error(&self, error: &StatementError) -> StatementError {
        StatementError::Unavailable(format!(
            "whether a row of table {}, which a run of this ledger is about, names objects of the bucket cannot be known: {error}",
            self.table
        ))
    }

    /// `$1` paths. Compared under the column's own collation, so that its index serves: one that is not
    /// deterministic finds more rows than name the object, never fewer.
    fn lookup_sql(&self) -> String {
        let path = quote_identifier(&self.path_column);
        format!(
            "SELECT DISTINCT {path}::text FROM {} WHERE {path} = ANY ($1::text[])",
            self.table
        )
    }
}

impl PostgresLedger {
    /// The columns that name objects of a bucket.
    ///
    /// # Errors
    /// [`LedgerError::NotAllowed`] where rows of one of their tables are hidden from us.
    pub async fn path_references(&self, bucket: &str) -> Result<Vec<PathReference>, LedgerError> {
        let query = sqlx::query_as(SELECT_PATH_REFERENCES).bind(bucket);
        let found: Vec<(String, String, String, String)> = query.fetch_all(&self.pool).await?;
        for (table, ..) in &found {
            ensure_all_rows_visible(&self.pool, table).await?;
        }
        let namer = |(table, path_column, path_prefix, key_prefix)| PathReference {
            table,
            path_column,
            path_prefix,
            key_prefix,
        };
        Ok(found.into_iter().map(namer).collect())
    }

    /// Those of the keys that some row names. Not under the statement timeout: without an index on the
    /// path it reads the table.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn referenced_keys(
        &self,
        namers: &[PathReference],
        keys: &[&str],
    ) -> Result<HashSet<String>, StatementError> {
        let mut named = HashSet::new();
        for namer in namers {
            let paths: Vec<String> = keys.iter().filter_map(|key| namer.path_of(key)).collect();
            if paths.is_empty() {
                continue;
            }
            let query = sqlx::query_as(AssertSqlSafe(namer.lookup_sql())).bind(paths);
            let found = without_timeout(query.fetch_all(&self.pool)).await;
            let found: Vec<(String,)> = found.map_err(|error| namer.lookup_error(&error))?;
            let found = found.iter().filter_map(|(path,)| namer.key_of(path));
            named.extend(found);
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_its_path_lead_to_each_other() {
        let namer = PathReference {
            table: r#""public"."images""#.into(),
            path_column: "path".into(),
            path_prefix: "https://old.example/".into(),
            key_prefix: "i/".into(),
        };
        let path = namer.path_of("i/a b.png").unwrap();
        assert_eq!(path, "https://old.example/a b.png");
        assert_eq!(namer.key_of(&path).unwrap(), "i/a b.png");
        assert_eq!(namer.path_of("other/a"), None);
    }
}
