//! Indexes that say which rows are left: a partial one that a sweep goes through, so that it costs what is
//! left, and one on the path that says whether a sweep is needed at all.

use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgPool, PgTransaction};

use super::feed::is_wanted;
use super::{
    ApplicationTable, IdColumns, PostgresLedger, before_timeout, is_unavailable, statement_error,
};
use crate::ledger::feed_source::SweepAccess;
use crate::ledger::move_ledger::StatementError;
use crate::path_rule::PathRule;
use crate::sql::{like_prefix, quote_identifier, quote_literal};

/// The planner sees no other way than an index, however small or old its statistics make the table. The
/// costs by which it does are no reason to compile the statement.
const INDEX_ONLY: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off;
    SET LOCAL enable_sort = off; SET LOCAL jit = off";

/// Indexes of a table and its partitions, as plans name them; and of those that hold all rows the first column.
const SELECT_INDEXES: &str = "WITH RECURSIVE tables AS (
        SELECT $1::regclass::oid AS oid
        UNION SELECT i.inhrelid FROM pg_inherits i JOIN tables t ON t.oid = i.inhparent)
    SELECT quote_ident(c.relname), CASE WHEN i.indpred IS NULL THEN coalesce(a.attname::text, '') END
      FROM tables t JOIN pg_index i ON i.indrelid = t.oid JOIN pg_class c ON c.oid = i.indexrelid
      LEFT JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = i.indkey[0]
     WHERE i.indisvalid ORDER BY 1";

/// Rows by which an index on the path is asked whether any is to be fed.
const LOOKED_AT_ROWS: u32 = 1000;

/// The condition of the index that pages go through, shared by the clones of a ledger; none for stretches of
/// ids.
#[derive(Debug, Default)]
pub(super) struct FeedIndex(Mutex<Option<Arc<str>>>);

impl FeedIndex {
    pub(super) fn condition(&self) -> Option<Arc<str>> {
        self.0.lock().clone()
    }

    pub(super) fn set(&self, condition: Option<&str>) {
        *self.0.lock() = condition.map(Into::into);
    }
}

/// What indexes serve, of which the predicate of a partial index follows: under the column's own collation where LIKE
/// takes it, and written out, since nothing follows of a parameter. It holds of more rows than are in scope where the
/// column's type ignores case.
fn has_prefix(table: &ApplicationTable, rule: &PathRule) -> String {
    let pattern = quote_literal(&like_prefix(rule.old_prefix()));
    format!("t.{}{} LIKE {pattern}", table.path, table.like_collation)
}

/// With the filter, of which the predicate may need it too; and without, where it is asked of each row.
fn conditions(table: &ApplicationTable, rule: &PathRule) -> Vec<String> {
    let has_prefix = has_prefix(table, rule);
    let filter = table.filter.iter();
    let filtered = filter.map(|filter| format!("{has_prefix} AND {}", filter.sql()));
    filtered.chain([has_prefix.clone()]).collect()
}

/// What makes a sweep cost what is left.
pub fn create_index_sql(table: &ApplicationTable, rule: &PathRule) -> String {
    let (path, columns) = (&table.path, table.id.index_list());
    let pattern = quote_literal(&like_prefix(rule.old_prefix()));
    let collation = table.like_collation;
    let index = format!("({columns}) WHERE {path}{collation} LIKE {pattern}");
    create_concurrently_sql(&table.sql, table.is_partitioned, &index)
}

/// Postgres makes no index of a partitioned table concurrently.
pub fn create_concurrently_sql(table: &str, is_partitioned: bool, index: &str) -> String {
    if is_partitioned {
        format!("for each PARTITION of {table}: CREATE INDEX CONCURRENTLY ON PARTITION {index};")
    } else {
        format!("CREATE INDEX CONCURRENTLY ON {table} {index};")
    }
}

/// A partial index over the rows in scope, and the condition by which the planner takes it.
pub struct PartialIndex {
    pub name: String,
    condition: String,
}

/// The partial index that holds the rows in scope and, a filter apart, no others, by the server's planner.
pub async fn find_partial_index(
    pool: &PgPool,
    table: &ApplicationTable,
    rule: &PathRule,
) -> Result<Option<PartialIndex>, sqlx::Error> {
    for condition in conditions(table, rule) {
        let found = find_index_with(pool, &table.sql, &table.id, &condition).await?;
        if let Some(name) = found {
            return Ok(Some(PartialIndex { name, condition }));
        }
    }
    Ok(None)
}

/// The partial index that holds the rows `t` with a condition, and no others, in the order of their ids.
pub async fn find_index_with(
    pool: &PgPool,
    table: &str,
    id: &IdColumns,
    condition: &str,
) -> Result<Option<String>, sqlx::Error> {
    let names = index_names(pool, table, |first| first.is_none()).await?;
    if names.is_empty() {
        return Ok(None);
    }
    let order = id.order("t");
    let page = format!("SELECT 1 FROM {table} t WHERE {condition} ORDER BY {order} LIMIT 1000");
    let mut transaction = begin_index_only(pool).await?;
    let plan = explain(&mut transaction, &page).await?;
    Ok(index_of_plan(&plan, &names))
}

/// Whether an index leads to the rows with one of some paths, as texts. `path` is the column's quoted name.
pub async fn has_path_index(pool: &PgPool, table: &str, path: &str) -> Result<bool, sqlx::Error> {
    // An expression has no name.
    let is_path = |first: Option<String>| {
        first.is_some_and(|name| name.is_empty() || quote_identifier(&name) == path)
    };
    let names = index_names(pool, table, is_path).await?;
    let mut transaction = begin_index_only(pool).await?;
    let lookup = format!("SELECT 1 FROM {table} t WHERE t.{path}::text = ANY ('{{a,b}}'::text[])");
    let plan = explain(&mut transaction, &lookup).await?;
    Ok(index_of_plan(&plan, &names).is_some() && seeks_index(&plan))
}

async fn index_names(
    pool: &PgPool,
    table: &str,
    is_wanted: impl Fn(Option<String>) -> bool,
) -> Result<Vec<String>, sqlx::Error> {
    let query = sqlx::query_as(SELECT_INDEXES).bind(table);
    let indexes: Vec<(String, Option<String>)> = query.fetch_all(pool).await?;
    let wanted = indexes
        .into_iter()
        .filter_map(|(name, first)| is_wanted(first).then_some(name));
    Ok(wanted.collect())
}

/// A transaction in which the planner takes an index.
pub(super) async fn begin_index_only(pool: &PgPool) -> Result<PgTransaction<'static>, sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::raw_sql(INDEX_ONLY).execute(&mut *transaction).await?;
    Ok(transaction)
}

/// The plan of a statement, as a prepared one, which is one statement.
pub(super) async fn explain(
    connection: &mut PgConnection,
    statement: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let statement = AssertSqlSafe(format!("EXPLAIN (COSTS OFF) {statement}"));
    let query = sqlx::query_scalar(statement).persistent(false);
    query.fetch_all(connection).await
}

/// The first index of a plan that does nothing but read these, in their order. What it filters is not in the
/// predicate: the index has rows that are not in scope, perhaps all of them.
fn index_of_plan(plan: &[String], names: &[String]) -> Option<String> {
    let mut found = None;
    if plan
        .iter()
        .any(|line| line.trim_start().starts_with("Filter:"))
    {
        return None;
    }
    for node in nodes_of_plan(plan) {
        match scanned_index(node) {
            Some(index) if names.iter().any(|name| name == index) => {
                found = found.or_else(|| Some(index.to_owned()));
            }
            None if matches!(node, "Limit" | "Append" | "Merge Append" | "Result") => {}
            _ => return None,
        }
    }
    found
}

/// The first line, and those with an arrow before them.
fn nodes_of_plan(plan: &[String]) -> impl Iterator<Item = &str> {
    let node = |(number, line): (usize, &'_ String)| match line.trim_start().strip_prefix("->") {
        Some(_) => Some(number),
        None => (number == 0).then_some(0),
    };
    let lines = plan.iter().enumerate().filter_map(node);
    lines.map(|number| plan[number].trim_start().trim_start_matches("->").trim())
}

/// Of `Index Scan using "a b" on images t`.
fn scanned_index(node: &str) -> Option<&str> {
    let node = node.strip_prefix("Index ")?;
    let node = node.strip_prefix("Only ").unwrap_or(node);
    let (index, _) = node.strip_prefix("Scan using ")?.rsplit_once(" on ")?;
    Some(index)
}

/// Whether each scan of a plan is that of an index with a condition.
fn seeks_index(plan: &[String]) -> bool {
    let scans = nodes_of_plan(plan).filter(|node| node.contains(" Scan "));
    let conditions = plan
        .iter()
        .filter(|line| line.trim_start().starts_with("Index Cond:"));
    let scans = scans.count();
    scans > 0 && scans == conditions.count()
}

/// `$1` run, `$2` pattern, `$3` rows: whether any of so many is to be fed, and whether these were all.
fn existence_sql(table: &ApplicationTable, condition: &str) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (in_scope, columns) = (table.in_scope("$2"), id.as_keys("t"));
    let is_wanted = is_wanted(table);
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT {columns}, t.{path}::text AS path, {in_scope} AS is_in_scope FROM {sql} t WHERE {condition} LIMIT $3
)
SELECT coalesce(bool_or({is_wanted}), false), count(*) < $3 FROM stretch s"
    )
}

/// None where the server refuses to tell, or takes too long: a sweep finds it out, which has time for each row and
/// passes over those that cannot be read. An outage is no such answer, or a moment of it would cost a sweep of the
/// whole table.
pub(super) async fn unless_refused<T>(
    question: impl Future<Output = Result<Option<T>, sqlx::Error>>,
) -> Result<Option<T>, StatementError> {
    match before_timeout(question).await {
        Some(Err(error)) if is_unavailable(&error) => Err(statement_error(&error)),
        read => Ok(read.and_then(Result::ok).flatten()),
    }
}

impl PostgresLedger {
    /// Whether any row is to be fed, where an index says so; none elsewhere.
    pub(super) async fn probe_index(&self) -> Result<Option<bool>, sqlx::Error> {
        let table = &self.table;
        let mut transaction = begin_index_only(&self.pool).await?;
        let condition = if let Some(condition) = self.feed_index.condition() {
            condition
        } else {
            let has_prefix = has_prefix(table, &self.rule);
            let probe = format!(
                "SELECT 1 FROM {} t WHERE {has_prefix} LIMIT 1000",
                table.sql
            );
            if !seeks_index(&explain(&mut transaction, &probe).await?) {
                return Ok(None);
            }
            has_prefix.into()
        };
        let query =
            sqlx::query_as(AssertSqlSafe(existence_sql(table, &condition))).persistent(false);
        let query = query.bind(self.run_id).bind(self.scope_pattern());
        let query = query.bind(i64::from(LOOKED_AT_ROWS));
        let (has_rows, are_all): (bool, bool) = query.fetch_one(&mut *transaction).await?;
        Ok((has_rows || are_all).then_some(has_rows))
    }

    /// Looks at the indexes anew: one may have been made, or dropped, meanwhile.
    pub(super) async fn choose_access(&self) -> Result<SweepAccess, StatementError> {
        let index = unless_refused(find_partial_index(&self.pool, &self.table, &self.rule)).await?;
        let condition = index.as_ref().map(|index| &*index.condition);
        self.feed_index.set(condition);
        let probed = unless_refused(self.probe_index()).await?;
        Ok(match (probed, index) {
            (Some(false), _) => SweepAccess::NothingLeft,
            (_, Some(index)) => SweepAccess::Index(index.name),
            (_, None) => match self.heap_start().await? {
                Some(start) => SweepAccess::Heap(start),
                None => SweepAccess::Stretches,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_outage_is_no_answer_about_indexes() {
        let ask = async |error| unless_refused::<()>(async { Err(error) }).await;
        let away = ask(sqlx::Error::PoolTimedOut).await;
        assert!(matches!(away, Err(StatementError::Unavailable(_))));
        assert!(matches!(ask(sqlx::Error::WorkerCrashed).await, Ok(None)));
    }

    fn index(plan: &[&str]) -> Option<String> {
        let plan: Vec<String> = plan.iter().map(|line| (*line).to_owned()).collect();
        index_of_plan(&plan, &["left_idx".into(), "\"a on b\"".into()])
    }

    #[test]
    fn a_plan_reads_partial_indexes_and_nothing_else() {
        let one = ["Limit", "  ->  Index Scan using left_idx on images t"];
        assert_eq!(index(&one).as_deref(), Some("left_idx"));
        let only = [
            "Limit",
            "  ->  Index Only Scan using \"a on b\" on \"x on y\" t",
            "        Filter: (a)",
        ];
        assert_eq!(
            index(&only),
            None,
            "a table's name that cannot be told from an index's"
        );
        let partitions = [
            "Limit",
            "  ->  Merge Append",
            "        Sort Key: t.id",
            "        ->  Index Scan using left_idx on images_1 t_1",
            "        ->  Index Only Scan using left_idx on images_2 t_2",
        ];
        assert_eq!(index(&partitions).as_deref(), Some("left_idx"));
        for other in [
            "  ->  Index Scan using images_pkey on images t",
            "  ->  Seq Scan on images t",
            "  ->  Sort",
            "  ->  Bitmap Heap Scan on images t",
            "        Filter: (path ~~ 'image/%'::text)",
        ] {
            assert_eq!(index(&["Limit", other]), None, "{other}");
            assert_eq!(index(&[one[0], one[1], other]), None, "{other}");
        }
    }
}
