//! Every statement of the commands, and of feeding and deciding, over a table that grows, with the plan that it must
//! have: on a million rows it goes through an index, sorts no more than its page, and touches a few rows for each row
//! of the page.

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::feed_source::{FeedSource as _, PageReader as _};
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, MoveFailure, MoveLedger as _, OrphanedCopy, PendingMove,
};
use bucket_brigade_common::ledger::{
    ApplicationTable, DatabasePool, PostgresLedger, RunOptions, RunSpec, SecondRun, TableSpec,
    create_pool, later_path_check_sql,
};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_private_postgres::Cluster;
use serde_json::Value;
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use crate::failures::SELECT_FAILURES;
use crate::report::SELECT_PAGE;
use crate::retry::DELETE_FAILURES;
use crate::statements::page_after;

/// A statement, and what it may cost.
pub(crate) struct PlannedStatement {
    pub(crate) name: &'static str,
    pub(crate) sql: String,
    /// As SQL, in the order of its parameters.
    pub(crate) values: Vec<String>,
    /// Of the table that grows.
    pub(crate) index: &'static str,
    /// Rows of tables that it may touch.
    pub(crate) max_rows: f64,
    /// Whether it is made so seldom that it is planned for its values each time.
    pub(crate) is_rare: bool,
}

pub(crate) fn page(
    name: &'static str,
    sql: impl Into<String>,
    values: &[&str],
    index: &'static str,
    max_rows: f64,
) -> PlannedStatement {
    PlannedStatement {
        name,
        sql: sql.into(),
        values: values.iter().map(|value| (*value).to_owned()).collect(),
        index,
        max_rows,
        is_rare: false,
    }
}

/// Statements: name, SQL, values, index, rows.
macro_rules! planned {
    ($($name:literal: $sql:expr, [$($value:expr),*], $index:literal, $rows:literal;)*) => {
        vec![$($crate::statement_plans::page($name, $sql, &[$($value),*], $index, $rows)),*]
    };
}
pub(crate) use planned;

/// An array of texts made of the numbers of a page in the middle.
pub(crate) fn texts(prefix: &str, count: u32) -> String {
    let texts: Vec<String> = (600_000..600_000 + count)
        .map(|number| format!("'{prefix}{number}'"))
        .collect();
    format!("ARRAY[{}]::text[]", texts.join(","))
}

/// When the moves of [`texts`] were made, in microseconds.
pub(crate) fn times(count: u32) -> String {
    let times: Vec<String> = (600_000..600_000 + i64::from(count))
        .map(|number| (FIRST_MOVE_SECONDS * 1_000_000 + number * 100_000).to_string())
        .collect();
    format!("ARRAY[{}]::bigint[]", times.join(","))
}

/// An array with the same value for each.
pub(crate) fn repeated(value: &str, count: usize, kind: &str) -> String {
    format!("array_fill({value}::{kind}, ARRAY[{count}])")
}

/// When the first row moved; ten followed a second.
pub(crate) const FIRST_MOVE_SECONDS: i64 = 1_767_225_600;

const ROWS: &str = "
INSERT INTO images SELECT n, 'avatar/' || n FROM generate_series(1, 1000000) n;
UPDATE images SET path = 'image/' || id || '?v=2' WHERE id % 10000 = 0;
CREATE INDEX images_path ON images (path);
INSERT INTO bucket_brigade.moves
    (run_id, row_id, old_path, new_path, etag, consumer, moved_at, verified_at, source_etag, source_settled_at)
SELECT 1, n::text, 'image/' || n, 'avatar/' || n, 'e', 'c', t, CASE WHEN n % 10 > 0 THEN t + interval '1 hour' END, 'e',
       CASE WHEN n <= 500000 THEN t + interval '2 hours' END
  FROM (SELECT n, to_timestamp(1767225600) + n * interval '0.1 second' AS t FROM generate_series(1, 1000000) n) AS rows;
INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
SELECT 1, n::text, 'image/' || n, 'NoSuchKey', 'm', true FROM generate_series(550001, 650000) n;
INSERT INTO bucket_brigade.changes (run_id, row_id, old_path)
SELECT 1, n::text, 'image/' || n FROM generate_series(550001, 650000) n;
INSERT INTO bucket_brigade.orphans (run_id, destination_key, new_path, etag, row_id)
SELECT 1, 'avatar/' || n, 'avatar/' || n, 'e', n::text FROM generate_series(550001, 650000) n;
INSERT INTO bucket_brigade.removals (run_id, is_orphan, path, bucket, object_key, etag, operator, removing_at, removed_at)
SELECT 1, false, 'image/' || n, 'b', 'image/' || n, 'e', 'o', now(), CASE WHEN n % 1000 > 0 THEN now() END
  FROM generate_series(550001, 650000) n;
INSERT INTO bucket_brigade.rollbacks
    (run_id, row_id, old_path, new_path, etag, moved_at, consumer, operator, looked_at)
SELECT 1, n::text, 'image/' || n, 'avatar/' || n, 'e', now(), 'c', 'o', CASE WHEN n % 1000 > 0 THEN now() END
  FROM generate_series(550001, 650000) n;
INSERT INTO bucket_brigade.mismatches (run_id, row_id, path, code, message)
SELECT 1, n::text, 'avatar/' || n, 'CopyGone', 'm' FROM generate_series(550001, 650000) n;
INSERT INTO bucket_brigade.verifications (run_id, sample_percent, is_full, recopies, seed) VALUES (1, 100, true, false, 1);";

const GROWING: [&str; 8] = [
    "moves",
    "images",
    "failures",
    "changes",
    "orphans",
    "removals",
    "rollbacks",
    "mismatches",
];

/// The ledger, and its own statements.
async fn create_tables(pool: &DatabasePool) -> (PostgresLedger, Vec<PlannedStatement>) {
    let run = |sql: String| async move {
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&**pool)
            .await
            .unwrap();
    };
    run("CREATE TABLE images (id bigint PRIMARY KEY, path text NOT NULL)".into()).await;
    let spec = RunSpec {
        name: None,
        table: TableSpec {
            table: "images".into(),
            id_column: "id".into(),
            path_column: "path".into(),
        },
        rule: PathRule::new("image/", "avatar/", None, None).unwrap(),
        source_bucket: "old".into(),
        destination_bucket: "new".into(),
        options: RunOptions::default(),
    };
    let ledger = PostgresLedger::open(pool.clone(), &spec, "plans", SecondRun::Refused);
    let ledger = ledger.await.unwrap();
    let of_ledger = ledger_statements(pool, &ledger).await;
    run(ROWS.into()).await;
    run(crate::clean::plans::create_index_sql()).await;
    run("VACUUM ANALYZE".into()).await;
    (ledger, of_ledger)
}

/// A statement of any page but the first.
pub(crate) fn after(sql: &str) -> String {
    page_after(sql, Some("")).0
}

/// The plan as it was carried out, in a transaction that is rolled back.
async fn explain(pool: &PgPool, statement: &PlannedStatement, mode: &str) -> Value {
    let mut connection = pool.acquire().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let prepare = format!(
        "SET LOCAL plan_cache_mode = {mode}; PREPARE planned AS {}",
        statement.sql
    );
    let prepared = sqlx::raw_sql(AssertSqlSafe(prepare))
        .execute(&mut *transaction)
        .await;
    prepared.unwrap_or_else(|error| panic!("{}: {error}", statement.name));
    let values = match statement.values.as_slice() {
        [] => String::new(),
        values => format!("({})", values.join(", ")),
    };
    let sql = format!("EXPLAIN (ANALYZE, TIMING OFF, FORMAT JSON) EXECUTE planned{values}");
    let row = sqlx::raw_sql(AssertSqlSafe(sql))
        .fetch_one(&mut *transaction)
        .await;
    let row = row.unwrap_or_else(|error| panic!("{}: {error}", statement.name));
    let plan: String = row.try_get_unchecked(0).unwrap();
    transaction.rollback().await.unwrap();
    sqlx::raw_sql("DEALLOCATE planned")
        .execute(&mut *connection)
        .await
        .unwrap();
    serde_json::from_str(&plan).unwrap()
}

fn nodes(plan: &Value) -> Vec<&Value> {
    let children = plan["Plans"].as_array().into_iter().flatten();
    std::iter::once(plan)
        .chain(children.flat_map(nodes))
        .collect()
}

/// What is wrong with a plan.
fn find_problems(statement: &PlannedStatement, plan: &Value) -> Vec<String> {
    let nodes = nodes(&plan[0]["Plan"]);
    let number = |node: &Value, name: &str| node[name].as_f64().unwrap_or(0.0);
    let mut problems = Vec::new();
    let mut touched = 0.0;
    for node in &nodes {
        let kind = node["Node Type"].as_str().unwrap();
        let rows = number(node, "Actual Rows")
            + number(node, "Rows Removed by Filter")
            + number(node, "Rows Removed by Index Recheck");
        let rows = rows * number(node, "Actual Loops");
        let table = node["Relation Name"].as_str().unwrap_or_default();
        if kind == "Seq Scan" && GROWING.contains(&table) {
            problems.push(format!("reads all of {table}"));
        }
        if kind.contains("Scan") && GROWING.contains(&table) {
            touched += rows;
        }
        if kind == "Sort" && rows > statement.max_rows {
            problems.push(format!("sorts {rows} rows"));
        }
    }
    if touched > statement.max_rows {
        problems.push(format!("touches {touched} rows of {}", statement.max_rows));
    }
    let mut indexes = nodes.iter().filter_map(|node| node["Index Name"].as_str());
    if !indexes.any(|index| index == statement.index) {
        problems.push(format!("does not use {}", statement.index));
    }
    problems
}

fn statements(table: &ApplicationTable) -> Vec<PlannedStatement> {
    let mut all = crate::clean::plans::statements(table);
    all.extend(crate::rollback::plans::statements(table));
    all.extend(crate::verify::plans::statements(table));
    all.extend(planned! {
        "a page of failures goes": after(DELETE_FAILURES), ["1", "NULL", "'6'", "2000"], "failures_pkey", 6000.0;
        "a page of failures": after(SELECT_FAILURES), ["1", "'6'"], "failures_pkey", 1500.0;
        "a page of the report": after(SELECT_PAGE), ["1", "'6'"], "moves_pkey", 8000.0;
    });
    all
}

/// The ledger's own, as its sessions have them prepared once it was used.
async fn ledger_statements(pool: &PgPool, ledger: &PostgresLedger) -> Vec<PlannedStatement> {
    let id = RowId::from_database("600000".into());
    ledger.read(Some(&id), 1000).await.unwrap();
    ledger.read_rows(&[id]).await.unwrap();
    write_one_of_each(ledger).await;
    drop(ledger.settle_stale_failures(None).await.unwrap());
    ledger.count_scope_stretch().await.unwrap();
    ledger.list_sample_paths().await.unwrap();
    ledger.has_interrupted_rollback().await.unwrap();
    let mut sessions = Vec::new();
    let mut statements: Vec<String> = Vec::new();
    for _ in 0..2 {
        let mut session = pool.acquire().await.unwrap();
        let query = sqlx::query_scalar("SELECT statement FROM pg_prepared_statements");
        statements.extend(query.fetch_all(&mut *session).await.unwrap());
        sessions.push(session);
    }
    let find = |part: &str| {
        let mut found = statements.iter().filter(|sql| sql.contains(part));
        found.next().unwrap_or_else(|| panic!("{part}")).clone()
    };
    let (pattern, ids) = ("'image/%'", texts("", 50));
    let (old, new, keys) = (
        texts("image/", 50),
        texts("avatar/", 50),
        texts("avatar/", 50),
    );
    let (code, yes) = (repeated("'e'", 50, "text"), repeated("true", 50, "boolean"));
    let sizes = repeated("1", 50, "bigint");
    // The first one's path is another.
    let rest = |prefix: &str| format!("({})[2:]", texts(prefix, 50));
    planned! {
        "feed": find("AS is_last"), ["1", pattern, "1000", "'600000'"], "images_pkey", 3000.0;
        "count in scope": find("scope_counted +"), ["1", pattern, "1000", "NULL"], "images_pkey", 5000.0;
        "settle": find("stale AS"), ["1", pattern, "'w'", "'600000'", "1000"], "failures_pkey", 6000.0;
        "decide": find("copy_etag"), ["1", &ids], "images_pkey", 500.0;
        "commit": find("no_orphan AS"), [&ids, &old, &new, &code, &sizes, &keys, "1", "'w'", "'{}'", "'w'", "0", "'{}'", "'1s'"],
            "images_pkey", 500.0;
        "changes": find("found_path, is_final, orphan_key"), ["1", "'w'", &ids, &old, &new, &yes, &keys, &code, &new], "images_pkey", 500.0;
        "failures": find("standing AS"), ["1", "'w'", &ids, &old, &code, &code, &yes, &keys, &code, &new],
            "images_pkey", 500.0;
        "sample of paths": find("WITH last AS"), ["1", "'image/'"], "images_pkey", 3000.0;
        "interrupted rollback": find("looked_at IS NULL"), ["1"], "rollbacks_unseen", 10.0;
        "the late check": later_path_check_sql(ledger.table()), [&rest(""), &rest("avatar/")], "images_pkey", 200.0;
    }
}

async fn write_one_of_each(ledger: &PostgresLedger) {
    let (id, old_path, new_path) = (RowId::from_database("1".into()), "image/1", "avatar/1");
    let orphan = Some(OrphanedCopy {
        destination_key: new_path.into(),
        etag: "e".into(),
    });
    let changed = ChangedRow {
        id: id.clone(),
        old_path: old_path.into(),
        new_path: new_path.into(),
        found_path: None,
        is_final: true,
        orphan: orphan.clone(),
    };
    ledger.record_changed_rows(&[changed]).await.unwrap();
    let failure = MoveFailure {
        id: id.clone(),
        path: old_path.into(),
        code: "c".into(),
        message: "m".into(),
        permanent: true,
        orphan,
    };
    ledger.record_failures(&[failure]).await.unwrap();
    let moved = PendingMove {
        id,
        old_path: old_path.into(),
        new_path: new_path.into(),
        destination_key: new_path.into(),
        etag: "e".into(),
        size_bytes: None,
        is_source_gone: false,
        is_found: false,
        companions: CompanionCopies::default(),
        fence: 0,
    };
    ledger.commit(&[&moved]).await.unwrap();
}

#[tokio::test]
async fn each_statement_touches_only_its_page_on_a_million_rows() {
    let cluster = Cluster::start().await;
    let cluster = cluster.unwrap();
    let url = cluster.create_database().await.unwrap();
    let pool = create_pool(url.parse().unwrap(), 2);
    let (ledger, of_ledger) = create_tables(&pool).await;
    let mut problems = Vec::new();
    let mut all = statements(ledger.table());
    all.extend(of_ledger);
    for statement in all {
        let modes = ["force_custom_plan", "force_generic_plan"];
        let modes = &modes[..if statement.is_rare { 1 } else { 2 }];
        for mode in modes {
            let plan = explain(&pool, &statement, mode).await;
            for problem in find_problems(&statement, &plan) {
                problems.push(format!("{} ({mode}) {problem}", statement.name));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}
