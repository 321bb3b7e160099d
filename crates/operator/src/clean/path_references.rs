//! Which rows name an object: rows of this run's table, and of every other run that shares the bucket. Of a
//! partition the whole table is asked: its other partitions hold rows of the same kind.

use std::collections::HashSet;
use std::fmt::Display;

use bucket_brigade_common::companions::CompanionPatterns;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    LedgerError, PostgresLedger, ensure_all_rows_visible, find_id_columns,
};
use bucket_brigade_common::may_be_bucket;
use bucket_brigade_common::path_encoding::PathEncoding;
use bucket_brigade_common::preflight::retry_transient;
use bucket_brigade_common::sql::quote_identifier;

use crate::path_column::PathColumn;

/// A column that holds paths of one or more runs.
pub(super) struct ReferringColumn {
    pub(super) at: PathColumn,
    pub(super) rules: ColumnRules,
}

/// What the paths of a column mean by the rules of all runs.
#[derive(Debug, Default)]
pub(super) struct ColumnRules {
    /// What its paths may begin with.
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
    /// What else an image has whose row has such a path.
    pub(super) companions: CompanionPatterns,
}

#[derive(sqlx::FromRow)]
struct RunSide {
    root: String,
    id_column: String,
    path_column: String,
    path_prefix: String,
    key_prefix: String,
    is_in_bucket: bool,
    encoding: Option<String>,
    companions: Option<String>,
}

/// Both sides of all runs, and whether they lie in bucket `$1`. A table whose root cannot be found (it was
/// dropped) is its own, so that asking it fails.
const SELECT_RUN_SIDES: &str = concat!(
    "WITH RECURSIVE sides AS (
    SELECT images_table, id_column, path_column, old_prefix AS path_prefix,
           source_key_prefix AS key_prefix, ",
    may_be_bucket!("source_bucket", "$1"),
    " AS is_in_bucket,
           options->>'PATH_ENCODING' AS encoding, options->>'COMPANIONS' AS companions
      FROM bucket_brigade.run
    UNION
    SELECT images_table, id_column, path_column, new_prefix, destination_key_prefix, ",
    may_be_bucket!("destination_bucket", "$1"),
    ",
           options->>'PATH_ENCODING', options->>'COMPANIONS'
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
       is_in_bucket, encoding, companions
  FROM sides LEFT JOIN roots USING (images_table, path_column) ORDER BY 1, 3, 2, 4, 5, 6, 7, 8"
);

impl PathReference {
    /// The paths by which this column would usually name the key, or an image whose companion it is.
    fn paths_of(&self, key: &str) -> Vec<String> {
        let Some(rest) = key.strip_prefix(&self.key_prefix) else {
            return Vec::new();
        };
        let images = [rest.to_owned()].into_iter();
        let images = images.chain(self.companions.owners_of(rest));
        let spellings = images.flat_map(|rest| self.encoding.usual_spellings(&rest));
        spellings
            .map(|rest| format!("{}{rest}", self.path_prefix))
            .collect()
    }

    /// Of the image that a path names, and of its companions.
    fn keys_of(&self, path: &str) -> Vec<String> {
        let rest = path.strip_prefix(&self.path_prefix);
        let Some(rest) = rest.and_then(|rest| self.encoding.decode(rest).ok()) else {
            return Vec::new();
        };
        let companions = self.companions.of_image(&rest);
        let key = |rest| format!("{}{rest}", self.key_prefix);
        companions.map(key).chain([key(rest.to_string())]).collect()
    }

    fn may_share(&self, key: &str) -> bool {
        let rest = key.strip_prefix(&self.key_prefix);
        rest.is_some_and(|rest| self.companions.may_share(rest))
    }
}

impl ColumnRules {
    fn of(sides: &[RunSide]) -> Result<Self, LedgerError> {
        let mut references = Vec::new();
        for side in sides.iter().filter(|side| side.is_in_bucket) {
            references.push(side.reference()?);
        }
        let prefixes = sides.iter().map(|side| side.path_prefix.clone());
        let mut known_prefixes: Vec<String> = prefixes.collect();
        known_prefixes.dedup();
        Ok(Self {
            known_prefixes,
            references,
        })
    }

    /// Whether an object may be a companion of an image that cannot be told from its key.
    pub(super) fn may_share(&self, key: &str) -> bool {
        self.references.iter().any(|one| one.may_share(key))
    }

    /// The paths by which rows would usually name the keys, or images whose companions they are.
    fn paths_of<'a>(&'a self, keys: &'a [String]) -> impl Iterator<Item = String> + 'a {
        let of_reference = |r: &'a PathReference| keys.iter().flat_map(|key| r.paths_of(key));
        self.references.iter().flat_map(of_reference)
    }

    fn has_encoded_paths(&self) -> bool {
        let mut encodings = self.references.iter().map(|reference| reference.encoding);
        encodings.any(|encoding| encoding != PathEncoding::None)
    }
}

/// The columns that name objects of a bucket.
pub(super) async fn path_columns(
    ledger: &PostgresLedger,
    bucket: &str,
) -> anyhow::Result<Vec<ReferringColumn>> {
    let read = async || {
        let query = sqlx::query_as(SELECT_RUN_SIDES).bind(bucket);
        query
            .fetch_all(ledger.pool())
            .await
            .map_err(LedgerError::from)
    };
    let sides: Vec<RunSide> = retry_transient(read).await?;
    let mut columns = Vec::new();
    for sides in sides.chunk_by(RunSide::is_of_column) {
        let rules = ColumnRules::of(sides)?;
        if rules.references.is_empty() {
            continue;
        }
        let side = &sides[0];
        let at = retry_transient(async || side.open_column(ledger).await).await;
        let at = at.map_err(|error| match error {
            error @ LedgerError::NotAllowed { .. } => anyhow::Error::from(error),
            error => lookup_error(&side.root, &error).into(),
        })?;
        columns.push(ReferringColumn { at, rules });
    }
    Ok(columns)
}

impl RunSide {
    fn is_of_column(&self, other: &Self) -> bool {
        self.root == other.root && self.path_column == other.path_column
    }

    fn reference(&self) -> Result<PathReference, LedgerError> {
        let unknown = |setting: &str, problem: &dyn Display| {
            LedgerError::IncompatibleLedger(format!("the {setting} of a run {problem}"))
        };
        let encoding = self.encoding.as_deref().unwrap_or("none").parse();
        let encoding = encoding.map_err(|problem: &str| unknown("PATH_ENCODING", &problem))?;
        let companions = self.companions.as_deref().map(CompanionPatterns::parse);
        let companions = companions.transpose();
        let companions = companions
            .map_err(|problem| unknown("COMPANIONS", &format_args!("cannot be used: {problem}")))?;
        Ok(PathReference {
            path_prefix: self.path_prefix.clone(),
            key_prefix: self.key_prefix.clone(),
            encoding,
            companions: companions.unwrap_or_default(),
        })
    }

    async fn open_column(&self, ledger: &PostgresLedger) -> Result<PathColumn, LedgerError> {
        ensure_all_rows_visible(ledger.pool(), &self.root).await?;
        let id = find_id_columns(ledger.pool(), &self.root, &self.id_column).await?;
        let path = quote_identifier(&self.path_column);
        PathColumn::open(ledger, self.root.clone(), path, id).await
    }
}

/// Those of the keys that some row names by one of these paths or by a usual spelling, as an image or as a companion
/// of one.
pub(super) async fn referenced_keys(
    ledger: &PostgresLedger,
    columns: &[ReferringColumn],
    keys: &[String],
    paths: &[String],
) -> Result<HashSet<String>, StatementError> {
    let mut referenced = HashSet::new();
    for ReferringColumn { at, rules } in columns {
        let mut wanted: Vec<String> = rules.paths_of(keys).collect();
        if rules.has_encoded_paths() {
            wanted.extend_from_slice(paths);
        }
        if wanted.is_empty() {
            continue;
        }
        let found = at.find_paths(ledger, &wanted, "true").await;
        let found = found.map_err(|error| lookup_error(&at.table, &error))?;
        let of_path = |path| rules.references.iter().flat_map(move |r| r.keys_of(path));
        referenced.extend(found.iter().flat_map(|path| of_path(path.as_str())));
    }
    Ok(referenced)
}

pub(super) fn lookup_error(table: &str, error: &impl Display) -> StatementError {
    StatementError::Unavailable(format!(
        "whether a row of table {table}, which a run of this ledger is about, names objects of the bucket cannot be known: {error}"
    ))
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
            companions: CompanionPatterns::default(),
        };
        let paths = reference.paths_of("i/a b.png");
        assert_eq!(paths, ["https://old.example/a b.png"]);
        assert_eq!(reference.keys_of(&paths[0]), ["i/a b.png"]);
        assert!(reference.paths_of("other/a").is_empty());
        reference.encoding = PathEncoding::Url;
        let paths = reference.paths_of("i/a b.png");
        let usual = [
            "https://old.example/a b.png",
            "https://old.example/a%20b.png",
        ];
        assert_eq!(paths, usual);
        for path in paths {
            assert_eq!(reference.keys_of(&path), ["i/a b.png"]);
        }
    }
}
