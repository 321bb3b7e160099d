//! Which rows name an object: rows of this run's table, and of every other run that shares the bucket.

use std::collections::HashSet;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    LedgerError, PostgresLedger, ensure_all_rows_visible, without_timeout,
};
use bucket_brigade_common::sql::quote_identifier;
use sqlx::AssertSqlSafe;

use crate::statements::retry_query;

/// A column whose paths under a prefix name objects of one bucket.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub(super) struct PathReference {
    /// Quoted, as the run that knows it has it.
    #[sqlx(rename = "images_table")]
    table: String,
    path_column: String,
    path_prefix: String,
    key_prefix: String,
}

/// The runs' two sides that lie in bucket `$1`. Several runs of one table are one reference.
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

/// The columns that name objects of a bucket.
///
/// # Errors
/// [`LedgerError::NotAllowed`] where rows of one of their tables are hidden from us.
pub(super) async fn path_references(
    ledger: &PostgresLedger,
    bucket: &str,
) -> Result<Vec<PathReference>, LedgerError> {
    let query = sqlx::query_as(SELECT_PATH_REFERENCES).bind(bucket);
    let found: Vec<PathReference> = query.fetch_all(ledger.pool()).await?;
    for reference in &found {
        ensure_all_rows_visible(ledger.pool(), &reference.table).await?;
    }
    Ok(found)
}

/// Those of the keys that some row names. Not under the statement timeout: without an index on the path it
/// reads the table.
pub(super) async fn referenced_keys(
    ledger: &PostgresLedger,
    references: &[PathReference],
    keys: &[&str],
) -> Result<HashSet<String>, StatementError> {
    let mut referenced = HashSet::new();
    for reference in references {
        let paths = keys.iter().filter_map(|key| reference.path_of(key));
        let paths: Vec<String> = paths.collect();
        if paths.is_empty() {
            continue;
        }
        let look_up = async || {
            let query = sqlx::query_scalar(AssertSqlSafe(reference.lookup_sql()));
            query.bind(&paths).fetch_all(ledger.pool()).await
        };
        let found = without_timeout(retry_query(look_up)).await;
        let found: Vec<String> = found.map_err(|error| reference.lookup_error(&error))?;
        referenced.extend(found.iter().filter_map(|path| reference.key_of(path)));
    }
    Ok(referenced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_its_path_lead_to_each_other() {
        let reference = PathReference {
            table: r#""public"."images""#.into(),
            path_column: "path".into(),
            path_prefix: "https://old.example/".into(),
            key_prefix: "i/".into(),
        };
        let path = reference.path_of("i/a b.png").unwrap();
        assert_eq!(path, "https://old.example/a b.png");
        assert_eq!(reference.key_of(&path).unwrap(), "i/a b.png");
        assert_eq!(reference.path_of("other/a"), None);
    }
}
