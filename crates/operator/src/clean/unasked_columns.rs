//! Columns that name such objects, too, and that no run is of: they are not asked whether an object may go.

use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};

use super::path_references::ReferringColumn;

/// `$1` tables that are asked, `$2` their columns, both in quotes, `$3` a prefix. By the statistics, so that no table is read.
const SELECT_UNASKED: &str = r#"WITH RECURSIVE asked AS (
    SELECT to_regclass(a.root)::oid AS oid, a.name FROM unnest($1::text[], $2::text[]) AS a (root, name)
    UNION SELECT i.inhrelid, a.name FROM asked a JOIN pg_inherits i ON i.inhparent = a.oid)
SELECT DISTINCT format('%I.%I.%I', s.schemaname, s.tablename, s.attname) FROM pg_stats s,
       concat(s.most_common_vals::text, s.histogram_bounds::text) AS sample
 WHERE s.schemaname NOT IN ('pg_catalog', 'information_schema', 'bucket_brigade')
   AND (strpos(sample, '{' || $3) + strpos(sample, ',' || $3) + strpos(sample, '"' || $3)) > 0
   AND NOT EXISTS (
        SELECT 1 FROM asked a JOIN pg_class c ON c.oid = a.oid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = s.schemaname AND c.relname = s.tablename
           AND a.name = '"' || replace(s.attname::text, '"', '""') || '"')
 ORDER BY 1 LIMIT 10"#;

/// Warns of them, unless the statistics cannot be read.
pub(super) async fn warn_of_unasked_columns(
    ledger: &PostgresLedger,
    columns: &[ReferringColumn],
    prefix: &str,
) {
    let (tables, names): (Vec<&str>, Vec<&str>) = columns
        .iter()
        .map(|column| (&*column.at.table, &*column.at.path))
        .unzip();
    let query = sqlx::query_scalar(SELECT_UNASKED);
    let query = query.bind(&tables).bind(&names).bind(prefix);
    match with_timeout(query.fetch_all(ledger.pool())).await {
        Ok(unasked) if unasked.is_empty() => {}
        Ok(unasked) => {
            let unasked: Vec<String> = unasked;
            let columns = unasked.join(", ");
            tracing::warn!(
                columns,
                "not asked whether an object may go, as no run is of them, though they hold paths with '{prefix}': {columns}"
            );
        }
        Err(error) => tracing::debug!(%error, "other columns are not known"),
    }
}
