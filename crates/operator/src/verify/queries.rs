//! The ledger's side of a verification: its progress, the moves to check, and what was found.

use bucket_brigade_common::ledger::move_ledger::{MoveLedger, StatementError};
use bucket_brigade_common::ledger::{ApplicationTable, PostgresLedger, with_timeout};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::sql::like_prefix;
use sqlx::AssertSqlSafe;

use super::verification::{
    TableRow, VerificationCounts, VerificationFinding, VerificationMismatch, VerificationSpec,
    VerificationState,
};
use crate::moved_row::{MovedRow, moves_of_stretch_sql};
use crate::statements::{column, page_after, retry_statement};

const SELECT_UNFINISHED: &str = "SELECT seed, is_in_table, cursor FROM bucket_brigade.verifications
    WHERE run_id = $1 AND finished_at IS NULL AND (sample_percent, is_full, recopies) = ($2, $3, $4)";

/// Nothing goes on with a verification whose findings are being removed.
const END_VERIFICATION: &str = "UPDATE bucket_brigade.verifications SET finished_at = now()
    WHERE run_id = $1 AND finished_at IS NULL";

/// What an earlier verification found, a page of it.
const DELETE_MISMATCHES: &str =
    "DELETE FROM bucket_brigade.mismatches WHERE run_id = $1 AND row_id = ANY (ARRAY(
    SELECT row_id FROM bucket_brigade.mismatches WHERE run_id = $1 ORDER BY row_id LIMIT 10000))";

const INSERT_VERIFICATION: &str = "INSERT INTO bucket_brigade.verifications AS v (run_id, sample_percent, is_full, recopies, seed)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (run_id) DO UPDATE SET
        sample_percent = $2, is_full = $3, recopies = $4, seed = $5, is_in_table = false, cursor = NULL,
        checked = 0, sound = 0, outdated = 0, recopied = 0, table_rows = 0, table_outside = 0,
        started_at = clock_timestamp(), finished_at = NULL";

const BEGIN_TABLE_PHASE: &str = "UPDATE bucket_brigade.verifications
    SET is_in_table = true, cursor = NULL WHERE run_id = $1";

const FINISH_VERIFICATION: &str =
    "UPDATE bucket_brigade.verifications SET finished_at = now() WHERE run_id = $1
    RETURNING checked, sound, outdated, recopied, table_rows, table_outside";

/// A row that is moved once more meanwhile is another move: what was found of it is out of date.
///
/// `$1` run, `$2` ids, as the ledger sorts them, `$3` ETags and `$4` times of the moves, `$5` whether intact, `$6` source ETags, `$7`
/// sizes, `$8` new ETags, `$9` paths, `$10` codes, `$11` messages, `$12` cursor, `$13` checked, `$14`
/// intact, `$15` outdated, `$16` recopied, `$17` whether it is the application's, `$18` whether the source says
/// itself that it is what was copied; what an earlier verification saw proves it too.
/// Made again after a lost response, it counts nothing twice: the cursor is there already.
pub(super) const RECORD_FINDINGS: &str = "WITH input AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::boolean[], $6::text[], $7::bigint[],
                         $8::text[], $9::text[], $10::text[], $11::text[], $17::boolean[], $18::boolean[])
        AS i (id, etag, moved, is_sound, source_etag, size_bytes, new_etag, path, code, message, is_left,
              is_unchanged)
), written AS (
    UPDATE bucket_brigade.moves m SET
        verified_at = CASE WHEN i.is_sound THEN now() END,
        abandoned_at = CASE WHEN i.is_left AND (i.is_unchanged OR m.source_etag = i.source_etag) THEN now() END,
        source_etag = CASE WHEN i.is_sound OR (i.is_left AND (i.is_unchanged OR m.source_etag = i.source_etag))
                           THEN coalesce(i.source_etag, m.source_etag) END,
        size_bytes = coalesce(i.size_bytes, m.size_bytes),
        etag = coalesce(i.new_etag, m.etag),
        recopied_at = CASE WHEN i.new_etag IS NULL THEN m.recopied_at ELSE now() END
      FROM input i WHERE m.run_id = $1 AND m.row_id BETWEEN ($2::text[])[1] AND ($2::text[])[cardinality($2::text[])]
       AND m.row_id = i.id AND m.etag = i.etag AND (extract(epoch FROM m.moved_at) * 1000000)::bigint = i.moved
    RETURNING i.id, i.path, i.code, i.message
), wrong AS (
    INSERT INTO bucket_brigade.mismatches (run_id, row_id, path, code, message)
    SELECT $1, id, path, code, message FROM written WHERE code IS NOT NULL
    ON CONFLICT (run_id, row_id) DO UPDATE SET
        path = excluded.path, code = excluded.code, message = excluded.message, found_at = now()
)
UPDATE bucket_brigade.verifications SET
    cursor = $12, checked = checked + $13, sound = sound + $14, outdated = outdated + $15,
    recopied = recopied + $16
 WHERE run_id = $1 AND cursor IS DISTINCT FROM $12";

/// `$1` run, `$2` ids, `$3` paths, `$4` codes, `$5` messages, `$6` cursor, `$7` rows, `$8` outside.
const RECORD_TABLE_PAGE: &str = "WITH wrong AS (
    INSERT INTO bucket_brigade.mismatches (run_id, row_id, path, code, message)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
    ON CONFLICT (run_id, row_id) DO NOTHING
)
UPDATE bucket_brigade.verifications SET
    cursor = $6, table_rows = table_rows + $7, table_outside = table_outside + $8
 WHERE run_id = $1 AND cursor IS DISTINCT FROM $6";

pub(super) const SELECT_MISMATCHES: &str =
    "SELECT row_id, path, code, message FROM bucket_brigade.mismatches
    WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT 1000";

/// `$1` run, `$2` cursor, `$3` size.
pub(super) const SELECT_MOVED_IDS: &str = "SELECT row_id FROM bucket_brigade.moves
    WHERE run_id = $1 AND row_id AFTER $2 ORDER BY row_id LIMIT $3";

/// `$1` run, `$2` size, `$3` pattern of the old paths and, for all but the first page, `$4` cursor.
pub(super) fn rows_to_verify_sql(table: &ApplicationTable, is_first: bool) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let (columns, order, left_out) = (id.as_keys("t"), id.order("t"), table.is_left_out("$3"));
    let (row_id, key_order) = (id.keys_as_text("s"), id.key_order("s"));
    let after = if is_first {
        String::new()
    } else {
        format!("WHERE {}", id.is_after("t", "$4"))
    };
    format!(
        r#"WITH stretch AS MATERIALIZED (
    SELECT {columns}, t.{path}::text AS path, {left_out} AS is_left_out
      FROM {sql} t {after} ORDER BY {order} LIMIT $2
)
SELECT {row_id} AS id, coalesce(s.path, '') AS path, s.is_left_out, EXISTS (
        SELECT 1 FROM bucket_brigade.moves m JOIN bucket_brigade.verifications v USING (run_id)
         WHERE m.run_id = $1 AND m.row_id = {row_id} AND m.new_path = s.path COLLATE "C"
           AND m.verified_at >= v.started_at) AS is_checked
  FROM stretch s ORDER BY {key_order}"#
    )
}

/// A page, and the cursor after it; none when there are no more rows.
type CursorPage<T> = (Vec<T>, Option<String>);

/// Goes on with a verification of this kind that was cut off, or begins one.
pub(super) async fn begin_verification(
    ledger: &PostgresLedger,
    spec: VerificationSpec,
    anew: bool,
) -> Result<VerificationState, StatementError> {
    let VerificationSpec {
        sample_percent,
        is_full,
        recopies,
    } = spec;
    let query = sqlx::query_as(SELECT_UNFINISHED).bind(ledger.run_id());
    let query = query.bind(sample_percent).bind(is_full).bind(recopies);
    let found: Option<(i64, bool, Option<String>)> =
        with_timeout(query.fetch_optional(ledger.pool())).await?;
    let found = found.filter(|_| !anew);
    let is_resumed = found.is_some();
    let (seed, is_in_table, cursor) = found.unwrap_or((fastrand::i64(..), false, None));
    if !is_resumed {
        let run = async |sql| {
            let query = sqlx::query(sql).bind(ledger.run_id());
            let done = with_timeout(query.execute(ledger.pool())).await?;
            Ok(done.rows_affected())
        };
        retry_statement(async || run(END_VERIFICATION).await).await?;
        while retry_statement(async || run(DELETE_MISMATCHES).await).await? > 0 {}
        let insert = async || {
            let query = sqlx::query(INSERT_VERIFICATION).bind(ledger.run_id());
            let query = query.bind(sample_percent).bind(is_full).bind(recopies);
            with_timeout(query.bind(seed).execute(ledger.pool())).await
        };
        retry_statement(insert).await?;
    }
    Ok(VerificationState {
        spec,
        seed,
        is_in_table,
        cursor,
        is_resumed,
    })
}

/// The next moves of the sample, of a stretch of `size`.
pub(super) async fn moves_to_verify(
    ledger: &PostgresLedger,
    state: &VerificationState,
    cursor: Option<&str>,
    size: i64,
) -> Result<CursorPage<MovedRow>, StatementError> {
    let query = sqlx::query_scalar(page_after(SELECT_MOVED_IDS, cursor)).bind(ledger.run_id());
    let query = query.bind(cursor.unwrap_or_default());
    let mut ids: Vec<String> = with_timeout(query.bind(size).fetch_all(ledger.pool())).await?;
    let last = ids.last().cloned();
    ids.retain(|id| state.includes_row(id));
    let Some((first, end)) = ids.first().zip(ids.last()) else {
        return Ok((Vec::new(), last));
    };
    let sql = moves_of_stretch_sql(ledger.table());
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(ledger.run_id());
    let query = query.bind(&ids).bind(first).bind(end);
    let rows = with_timeout(query.fetch_all(ledger.pool())).await?;
    Ok((rows, last))
}

pub(super) async fn record_findings(
    ledger: &PostgresLedger,
    findings: &[(MovedRow, VerificationFinding)],
    cursor: &str,
) -> Result<(), StatementError> {
    let count = |is: fn(&VerificationFinding) -> bool| {
        let such = findings.iter().filter(|(_, finding)| is(finding)).count();
        i64::try_from(such).unwrap_or(i64::MAX)
    };
    let query = sqlx::query(RECORD_FINDINGS)
        .bind(ledger.run_id())
        .bind(column(findings, |(row, _)| row.id.as_str()))
        .bind(column(findings, |(row, _)| row.etag.as_str()))
        .bind(column(findings, |(row, _)| row.moved_micros))
        .bind(column(findings, |(_, finding)| finding.is_intact))
        .bind(column(findings, |(_, f)| f.source_etag.as_deref()))
        .bind(column(findings, |(_, finding)| finding.size_bytes))
        .bind(column(findings, |(_, f)| f.new_etag.as_deref()))
        .bind(column(findings, |(row, _)| row.new_path.as_str()))
        .bind(column(findings, |(_, f)| Some(f.mismatch.as_ref()?.0)))
        .bind(column(findings, |(_, f)| {
            Some(f.mismatch.as_ref()?.1.as_str())
        }))
        .bind(cursor)
        .bind(count(|_| true))
        .bind(count(|finding| finding.is_intact))
        .bind(count(|finding| finding.is_outdated))
        .bind(count(|finding| finding.new_etag.is_some()))
        .bind(column(findings, |(_, f)| f.is_outdated && !f.is_intact))
        .bind(column(findings, |(_, f)| f.is_source_unchanged));
    with_timeout(query.execute(ledger.pool())).await.map(drop)
}

pub(super) async fn begin_table_phase(ledger: &PostgresLedger) -> Result<(), StatementError> {
    let query = sqlx::query(BEGIN_TABLE_PHASE).bind(ledger.run_id());
    with_timeout(query.execute(ledger.pool())).await.map(drop)
}

/// The next rows of the table. A page that the server refuses to read is halved until the culprit is alone.
pub(super) async fn rows_to_verify(
    ledger: &PostgresLedger,
    cursor: Option<&str>,
    mut size: i64,
) -> Result<CursorPage<TableRow>, StatementError> {
    let refusal = loop {
        match read_rows(ledger, cursor, size).await {
            Err(StatementError::Rejected { .. } | StatementError::Suspect { .. }) if size > 1 => {
                size /= 2;
            }
            Err(refusal @ StatementError::Rejected { .. }) => break refusal,
            Err(refusal @ StatementError::Suspect { .. })
                if read_rows(ledger, cursor, 0).await.is_ok() =>
            {
                break refusal;
            }
            page => return page,
        }
    };
    let after = cursor.map(|cursor| RowId::from_database(cursor.to_owned()));
    let next = ledger.next_id(after.as_ref()).await?;
    let unreadable = next.map(|id| TableRow {
        id: id.as_str().to_owned(),
        unreadable: Some(refusal.to_string()),
        ..TableRow::default()
    });
    let last = unreadable.as_ref().map(|row| row.id.clone());
    Ok((unreadable.into_iter().collect(), last))
}

async fn read_rows(
    ledger: &PostgresLedger,
    cursor: Option<&str>,
    size: i64,
) -> Result<CursorPage<TableRow>, StatementError> {
    let sql = rows_to_verify_sql(ledger.table(), cursor.is_none());
    let query = sqlx::query_as(AssertSqlSafe(sql)).bind(ledger.run_id());
    let query = query
        .bind(size)
        .bind(like_prefix(ledger.rule().old_prefix()));
    let query = match cursor {
        Some(cursor) => query.bind(cursor),
        None => query,
    };
    let rows: Vec<TableRow> = with_timeout(query.fetch_all(ledger.pool())).await?;
    let last = rows.last().map(|row| row.id.clone());
    Ok((rows, last))
}

pub(super) async fn record_table_page(
    ledger: &PostgresLedger,
    mismatches: &[VerificationMismatch],
    cursor: &str,
    (rows, outside): (usize, usize),
) -> Result<(), StatementError> {
    let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
    let query = sqlx::query(RECORD_TABLE_PAGE)
        .bind(ledger.run_id())
        .bind(column(mismatches, |mismatch| mismatch.id.as_str()))
        .bind(column(mismatches, |mismatch| mismatch.path.as_str()))
        .bind(column(mismatches, |mismatch| mismatch.code.as_str()))
        .bind(column(mismatches, |mismatch| mismatch.message.as_str()))
        .bind(cursor)
        .bind(number(rows))
        .bind(number(outside));
    with_timeout(query.execute(ledger.pool())).await.map(drop)
}

/// The path a row has now; none when there is no such row.
pub(super) async fn current_path(
    ledger: &PostgresLedger,
    id: &str,
) -> Result<Option<String>, StatementError> {
    let id = RowId::from_database(id.to_owned());
    let found = ledger.read_rows(std::slice::from_ref(&id)).await?;
    Ok(found.get(&id).map(|row| row.path.clone()))
}

pub(super) async fn finish_verification(
    ledger: &PostgresLedger,
) -> Result<VerificationCounts, StatementError> {
    let finish = async || {
        let query = sqlx::query_as(FINISH_VERIFICATION).bind(ledger.run_id());
        with_timeout(query.fetch_one(ledger.pool())).await
    };
    retry_statement(finish).await
}
