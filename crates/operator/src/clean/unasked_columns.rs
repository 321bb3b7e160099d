//! Columns that name such objects, too, and that no run is of: they are not asked whether an object may go.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::settings::SettingsError;
use sqlx::AssertSqlSafe;

use super::path_references::ReferringColumn;

const FLAG: &str = "--ignore-columns";

/// `$1` tables that are asked, `$2` their columns, both in quotes, `$3` a prefix: other columns of text, and whether they
/// hold such paths. By the statistics; of columns without any, SQL that reads their first rows. Last those that the role
/// may not read, whose statistics it does not see either.
const SELECT_UNASKED: &str = r#"WITH RECURSIVE asked AS (
    SELECT to_regclass(a.root)::oid AS oid, a.name FROM unnest($1::text[], $2::text[]) AS a (root, name)
    UNION SELECT i.inhrelid, a.name FROM asked a JOIN pg_inherits i ON i.inhparent = a.oid
), columns AS (
    SELECT n.nspname, c.relname, a.attname,
           has_column_privilege(c.oid, a.attnum, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE') AS may_read
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_type t ON t.oid = a.atttypid LEFT JOIN pg_type e ON e.oid = t.typelem
     WHERE c.relkind IN ('r', 'm') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'bucket_brigade')
       AND (t.typcategory = 'S' OR t.typname IN ('json', 'jsonb', 'xml') OR t.typcategory = 'A' AND e.typcategory = 'S')
       AND NOT EXISTS (SELECT FROM asked k WHERE k.oid = c.oid AND k.name = '"' || replace(a.attname::text, '"', '""') || '"')
), known AS (
    SELECT c.*, NOT may_read OR coalesce(s.most_common_vals::text, s.histogram_bounds::text) IS NOT NULL AS is_known,
           concat(s.most_common_vals::text, s.histogram_bounds::text) AS sample
      FROM columns c LEFT JOIN pg_stats s
        ON (s.schemaname, s.tablename, s.attname) = (c.nspname, c.relname, c.attname) AND NOT s.inherited
)
SELECT format('%I.%I.%I', nspname, relname, attname), may_read,
       CASE WHEN NOT is_known THEN format(
           'SELECT EXISTS (SELECT FROM (SELECT %I::text AS v FROM %I.%I LIMIT 1000) s '
           'WHERE starts_with(v, $1) OR strpos(v, ''"'' || $1) + strpos(v, ''{'' || $1) + strpos(v, '','' || $1) > 0)',
           attname, nspname, relname) END
  FROM known
 WHERE NOT may_read OR NOT is_known OR (strpos(sample, '{' || $3) + strpos(sample, ',' || $3) + strpos(sample, '"' || $3)) > 0
 ORDER BY may_read DESC, is_known DESC, 1 LIMIT 500"#;

/// By name: schema, table and column.
pub(super) struct UnaskedColumns {
    names: Vec<String>,
    prefix: String,
}

impl UnaskedColumns {
    /// Warns of those that are not in `ignored`. None, if they cannot be found.
    pub(super) async fn find(
        ledger: &PostgresLedger,
        asked: &[ReferringColumn],
        prefix: &str,
        ignored: &[String],
    ) -> Self {
        let mut names = match find_names(ledger, asked, prefix).await {
            Ok(names) => names,
            Err(error) => {
                tracing::warn!(
                    "whether columns that no run is of name such objects is not known: {error}"
                );
                Vec::new()
            }
        };
        // A shell takes quotes away.
        let plain = |name: &str| name.replace('"', "");
        names.retain(|name| !ignored.iter().any(|ignored| plain(ignored) == plain(name)));
        let prefix = prefix.to_owned();
        Self { names, prefix }
    }

    /// Nothing that they name is to go before somebody has looked at them.
    pub(super) fn refuse(&self) -> Result<(), SettingsError> {
        match self.problem() {
            Some(problem) => Err(SettingsError::for_setting(FLAG, problem)),
            None => Ok(()),
        }
    }

    pub(super) fn warn(&self) {
        if let Some(problem) = self.problem() {
            tracing::warn!("{problem}");
        }
    }

    fn problem(&self) -> Option<String> {
        let (names, prefix) = (self.names.join(","), &self.prefix);
        (!names.is_empty()).then(|| {
            format!(
                "no run is of {names}, though paths with '{prefix}' stand there: the objects that these name would go too; move them by runs of their own, or add {FLAG} {names} if they need none of these objects"
            )
        })
    }
}

async fn find_names(
    ledger: &PostgresLedger,
    asked: &[ReferringColumn],
    prefix: &str,
) -> Result<Vec<String>, StatementError> {
    // All other text begins with an empty one, too.
    if prefix.is_empty() {
        return Ok(Vec::new());
    }
    let (tables, columns): (Vec<&str>, Vec<&str>) = asked
        .iter()
        .map(|column| (&*column.at.table, &*column.at.path))
        .unzip();
    let query = sqlx::query_as(SELECT_UNASKED);
    let query = query.bind(&tables).bind(&columns).bind(prefix);
    let found: Vec<(String, bool, Option<String>)> =
        with_timeout(query.fetch_all(ledger.pool())).await?;
    let (readable, closed): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|(_, may_read, _)| *may_read);
    warn_of_closed(&closed.iter().map(|(name, ..)| &**name).collect::<Vec<_>>());
    let mut names = Vec::new();
    for (name, _, sample) in readable {
        let Some(sample) = sample else {
            names.push(name);
            continue;
        };
        let query = sqlx::query_scalar(AssertSqlSafe(sample)).bind(prefix);
        match with_timeout(query.fetch_one(ledger.pool())).await {
            Ok(false) => {}
            Ok(true) => names.push(name),
            // A policy hides its rows, it is locked, or gone.
            Err(error) => {
                tracing::warn!("whether {name} names such objects is not known: {error}");
                // The rest would take as long.
                if matches!(error, StatementError::Unavailable(_)) {
                    break;
                }
            }
        }
    }
    Ok(names)
}

fn warn_of_closed(names: &[&str]) {
    let Some(first) = names.first() else {
        return;
    };
    tracing::warn!(
        "{} of no run may not be read by this role, {first} for one: whether they name such objects is not known (GRANT pg_read_all_data, or SELECT on them)",
        counted(names.len(), "column of text", "columns of text")
    );
}
