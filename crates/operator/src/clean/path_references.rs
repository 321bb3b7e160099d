//! Which rows name an object: rows of this run's table, and of every other run that shares the bucket. Of a
//! partition the whole table is asked: its other partitions hold rows of the same kind.

use std::collections::HashSet;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    LedgerError, PostgresLedger, ensure_all_rows_visible, is_statement_timeout, statement_error,
};
use bucket_brigade_common::path_encoding::PathEncoding;
use bucket_brigade_common::sql::quote_identifier;
use sqlx::AssertSqlSafe;

use crate::statements::retry_query;

/// The most that a look into a table without an index on its path may take.
const SCAN_TIMEOUT: &str = "SET LOCAL statement_timeout = '15min'";

/// A column that holds paths of one or more runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ReferringColumn {
    /// Quoted; the root of its partitions or heirs.
    pub(super) table: String,
    pub(super) id_column: String,
    pub(super) path_column: String,
    /// What its paths may begin with by the rules of all runs.
    pub(super) known_prefixes: Vec<String>,
    /// Those that name objects of the bucket.
    pub(super) references: Vec<PathReference>,
}

/// A prefix of paths that name objects of the bucket, that of their keys, and how one spells the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathReference {
    pub(super) path_prefix: String,
    pub(super) key_prefix: String,
    pub(super) encoding: PathEncoding,
}

/// One side of one run.
#[derive(sqlx::FromRow)]
struct RunSide {
    root: String,
    id_column: String,
    path_column: String,
    path_prefix: String,
    key_prefix: String,
    is_in_bucket: bool,
    encoding: Option<String>,
}

/// Both sides of all runs, and whether they lie in bucket `$1`. A table whose root cannot be found (it was
/// dropped) is its own, so that asking it fails.
const SELECT_RUN_SIDES: &str = "WITH RECURSIVE sides AS (
    SELECT images_table, id_column, path_column, old_prefix AS path_prefix,
           source_key_prefix AS key_prefix, source_bucket = $1 AS is_in_bucket,
           options->>'PATH_ENCODING' AS encoding
      FROM bucket_brigade.run
    UNION
    SELECT images_table, id_column, path_column, new_prefix, destination_key_prefix, destination_bucket = $1,
           options->>'PATH_ENCODING'
      FROM bucket_brigade.run
), tree AS (
    SELECT DISTINCT images_table, path_column, to_regclass(images_table)::oid AS oid FROM sides
    UNION
    SELECT t.images_table, t.path_column, i.inhparent
      FROM tree t JOIN pg_inherits i ON i.inhrelid = t.oid
      JOIN pg_attribute a ON a.attrelid = i.inhparent AND a.attname = t.path_column
), roots AS (
    SELECT t.images_table, t.path_column, format('%I.%I', n.nspname, c.relname) AS root
      FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE NOT EXISTS (SELECT 1 FROM pg_inherits i
                       JOIN pg_attribute a ON a.attrelid = i.inhparent AND a.attname = t.path_column
                        WHERE i.inhrelid = t.oid)
)
SELECT DISTINCT coalesce(root, images_table) AS root, id_column, path_column, path_prefix, key_prefix,
       is_in_bucket, encoding
  FROM sides LEFT JOIN roots USING (images_table, path_column) ORDER BY 1, 3, 2, 4, 5, 6, 7";

impl PathReference {
    /// The paths by which this column would usually name the key.
    fn paths_of(&self, key: &str) -> Vec<String> {
        let Some(rest) = key.strip_prefix(&self.key_prefix) else {
            return Vec::new();
        };
        let spellings = self.encoding.usual_spellings(rest).into_iter();
        spellings
            .map(|rest| format!("{}{rest}", self.path_prefix))
            .collect()
    }

    fn key_of(&self, path: &str) -> Option<String> {
        let rest = path.strip_prefix(&self.path_prefix)?;
        let rest = self.encoding.decode(rest).ok()?;
        Some(format!("{}{rest}", self.key_prefix))
    }
}

impl ReferringColumn {
    /// The sides of one column, put together.
    fn from_side(side: &RunSide) -> Self {
        Self {
            table: side.root.clone(),
            id_column: side.id_column.clone(),
            path_column: side.path_column.clone(),
            known_prefixes: Vec::new(),
            references: Vec::new(),
        }
    }

    fn is_column_of(&self, side: &RunSide) -> bool {
        self.table == side.root && self.path_column == side.path_column
    }

    fn add_side(&mut self, side: RunSide, encoding: PathEncoding) {
        let reference = PathReference {
            path_prefix: side.path_prefix.clone(),
            key_prefix: side.key_prefix,
            encoding,
        };
        if side.is_in_bucket && !self.references.contains(&reference) {
            self.references.push(reference);
        }
        self.known_prefixes.push(side.path_prefix);
    }

    fn paths_of<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = String> + 'a {
        let of_reference = |r: &'a PathReference| keys.iter().flat_map(|key| r.paths_of(key));
        self.references.iter().flat_map(of_reference)
    }

    fn has_encoded_paths(&self) -> bool {
        let mut encodings = self.references.iter().map(|reference| reference.encoding);
        encodings.any(|encoding| encoding != PathEncoding::None)
    }

    pub(super) fn lookup_error(&self, error: &StatementError) -> StatementError {
        StatementError::Unavailable(format!(
            "whether a row of table {}, which a run of this ledger is about, names objects of the bucket cannot be known: {error}",
            self.table
        ))
    }

    /// `$1` paths. Compared under the column's own collation, so that its index serves: one that is not
    /// deterministic finds more rows than name the object, never fewer.
    pub(super) fn lookup_sql(&self) -> String {
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
pub(super) async fn path_columns(
    ledger: &PostgresLedger,
    bucket: &str,
) -> Result<Vec<ReferringColumn>, LedgerError> {
    let query = sqlx::query_as(SELECT_RUN_SIDES).bind(bucket);
    let sides: Vec<RunSide> = query.fetch_all(ledger.pool()).await?;
    let mut columns: Vec<ReferringColumn> = Vec::new();
    for side in sides {
        if !columns.last().is_some_and(|last| last.is_column_of(&side)) {
            columns.push(ReferringColumn::from_side(&side));
        }
        let encoding = side.encoding.as_deref().unwrap_or("none").parse();
        let encoding = encoding.map_err(|problem: &str| {
            LedgerError::IncompatibleLedger(format!("the PATH_ENCODING of a run {problem}"))
        })?;
        if let Some(column) = columns.last_mut() {
            column.add_side(side, encoding);
        }
    }
    columns.retain(|column| !column.references.is_empty());
    for column in &columns {
        ensure_all_rows_visible(ledger.pool(), &column.table).await?;
    }
    Ok(columns)
}

/// Those of the keys that some row names by one of these paths or by a usual spelling.
pub(super) async fn referenced_keys(
    ledger: &PostgresLedger,
    columns: &[ReferringColumn],
    keys: &[String],
    paths: &[String],
) -> Result<HashSet<String>, StatementError> {
    let mut referenced = HashSet::new();
    for column in columns {
        let mut wanted: Vec<String> = column.paths_of(keys).collect();
        if column.has_encoded_paths() {
            wanted.extend_from_slice(paths);
        }
        if wanted.is_empty() {
            continue;
        }
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let found = query_paths(ledger, &column.lookup_sql(), &wanted, None).await;
        let found = found.map_err(|error| column.lookup_error(&error))?;
        let of_path = |path| column.references.iter().filter_map(move |r| r.key_of(path));
        referenced.extend(found.iter().flat_map(|path| of_path(path.as_str())));
    }
    Ok(referenced)
}

/// Asks rows by their paths, `$1`, and by the run, `$2`, where the statement has it. With an index on the path it
/// takes as long as there are paths; without one it reads the table, for which the connection's own time may be
/// too short.
pub(super) async fn query_paths(
    ledger: &PostgresLedger,
    sql: &str,
    paths: &[&str],
    run: Option<i64>,
) -> Result<Vec<String>, StatementError> {
    let build = || {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).bind(paths);
        match run {
            Some(run) => query.bind(run),
            None => query,
        }
    };
    let found = retry_query(async || build().fetch_all(ledger.pool()).await).await;
    let found = match found {
        Err(error) if is_statement_timeout(&error) => {
            tracing::warn!(
                "no row is found by its path in time: each page reads the whole table; an index on the path column helps (CREATE INDEX CONCURRENTLY)"
            );
            let scan = async {
                let mut transaction = ledger.pool().begin().await?;
                sqlx::query(SCAN_TIMEOUT).execute(&mut *transaction).await?;
                build().fetch_all(&mut *transaction).await
            };
            scan.await
        }
        found => found,
    };
    found.map_err(|error| statement_error(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_and_its_path_lead_to_each_other() {
        let mut reference = PathReference {
            path_prefix: "https://old.example/".into(),
            key_prefix: "i/".into(),
            encoding: PathEncoding::None,
        };
        let paths = reference.paths_of("i/a b.png");
        assert_eq!(paths, ["https://old.example/a b.png"]);
        assert_eq!(reference.key_of(&paths[0]).unwrap(), "i/a b.png");
        assert!(reference.paths_of("other/a").is_empty());
        reference.encoding = PathEncoding::Url;
        let paths = reference.paths_of("i/a b.png");
        let usual = [
            "https://old.example/a b.png",
            "https://old.example/a%20b.png",
        ];
        assert_eq!(paths, usual);
        for path in paths {
            assert_eq!(reference.key_of(&path).unwrap(), "i/a b.png");
        }
    }
}
