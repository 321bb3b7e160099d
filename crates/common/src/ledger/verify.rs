//! The ledger's side of a verification: its place, the moves to look at, and what was found.

use sqlx::AssertSqlSafe;

use super::moved_row::{MovedColumns, moved_columns, moved_joins};
use super::verification::{
    TableRow, VerificationCounts, VerificationFinding, VerificationMismatch, VerificationSpec,
    VerificationState,
};
use super::{ApplicationTable, MovedRow, PostgresLedger, with_timeout};
use crate::move_ledger::StatementError;
use crate::row_id::RowId;

/// The sample, by a hash of the id: the same rows however often it is resumed. `$2` seed, `$3` percent.
const IN_SAMPLE: &str = "(hashtextextended(ID, $2) & 1048575) < $3 * 10485.76";

const SELECT_UNFINISHED: &str = "SELECT seed, is_in_table, cursor FROM bucket_brigade.verifications
    WHERE run_id = $1 AND finished_at IS NULL AND (sample_percent, is_full, recopies) = ($2, $3, $4)";

const INSERT_VERIFICATION: &str = "WITH forgotten AS (DELETE FROM bucket_brigade.mismatches WHERE run_id = $1)
    INSERT INTO bucket_brigade.verifications AS v (run_id, sample_percent, is_full, recopies, seed)
    VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (run_id) DO UPDATE SET
        sample_percent = $2, is_full = $3, recopies = $4, seed = $5, is_in_table = false, cursor = NULL,
        checked = 0, sound = 0, outdated = 0, recopied = 0, table_rows = 0, table_outside = 0,
        started_at = clock_timestamp(), finished_at = NULL";

const SELECT_COUNTS: &str = "SELECT checked, sound, outdated, recopied, table_rows, table_outside
    FROM bucket_brigade.verifications WHERE run_id = $1";

const SELECT_MOVED_TOTAL: &str =
    "SELECT coalesce(sum(moved), 0)::bigint FROM bucket_brigade.counters WHERE run_id = $1";

const BEGIN_TABLE_PHASE: &str = "UPDATE bucket_brigade.verifications
    SET is_in_table = true, cursor = NULL WHERE run_id = $1";

const MARK_FINISHED: &str =
    "UPDATE bucket_brigade.verifications SET finished_at = now() WHERE run_id = $1";

/// A row that is locked is being moved once more: what was found of it is out of date already.
///
/// `$1` run, `$2` ids, `$3` ETags and `$4` times of the moves, `$5` whether sound, `$6` source ETags, `$7`
/// sizes, `$8` new ETags, `$9` paths, `$10` codes, `$11` messages, `$12` cursor, `$13` checked, `$14`
/// sound, `$15` outdated, `$16` recopied.
const RECORD_FINDINGS: &str = "WITH input AS (
    SELECT * FROM unnest($2::text[], $3::text[], $4::bigint[], $5::boolean[], $6::text[], $7::bigint[],
                         $8::text[], $9::text[], $10::text[], $11::text[])
        AS i (id, etag, moved, is_sound, source_etag, size_bytes, new_etag, path, code, message)
), locked AS MATERIALIZED (
    SELECT i.* FROM bucket_brigade.moves m JOIN input i
        ON m.row_id = i.id AND m.etag = i.etag
       AND (extract(epoch FROM m.moved_at) * 1000000)::bigint = i.moved
     WHERE m.run_id = $1 ORDER BY m.row_id FOR NO KEY UPDATE OF m SKIP LOCKED
), written AS (
    UPDATE bucket_brigade.moves m SET
        verified_at = CASE WHEN l.is_sound THEN now() END,
        source_etag = CASE WHEN l.is_sound THEN coalesce(l.source_etag, m.source_etag) END,
        size_bytes = coalesce(l.size_bytes, m.size_bytes),
        etag = coalesce(l.new_etag, m.etag),
        recopied_at = CASE WHEN l.new_etag IS NULL THEN m.recopied_at ELSE now() END
      FROM locked l WHERE m.run_id = $1 AND m.row_id = l.id
    RETURNING l.id, l.path, l.code, l.message
), wrong AS (
    INSERT INTO bucket_brigade.mismatches (run_id, row_id, path, code, message)
    SELECT $1, id, path, code, message FROM written WHERE code IS NOT NULL
    ON CONFLICT (run_id, row_id) DO UPDATE SET
        path = excluded.path, code = excluded.code, message = excluded.message, found_at = now()
)
UPDATE bucket_brigade.verifications SET
    cursor = $12, checked = checked + $13, sound = sound + $14, outdated = outdated + $15,
    recopied = recopied + $16
 WHERE run_id = $1";

/// `$1` run, `$2` ids, `$3` paths, `$4` codes, `$5` messages, `$6` cursor, `$7` rows, `$8` outside.
const RECORD_TABLE_PAGE: &str = "WITH wrong AS (
    INSERT INTO bucket_brigade.mismatches (run_id, row_id, path, code, message)
    SELECT $1, * FROM unnest($2::text[], $3::text[], $4::text[], $5::text[])
    ON CONFLICT (run_id, row_id) DO NOTHING
)
UPDATE bucket_brigade.verifications SET
    cursor = $6, table_rows = table_rows + $7, table_outside = table_outside + $8
 WHERE run_id = $1";

const SELECT_MISMATCHES: &str = "SELECT row_id, path, code, message FROM bucket_brigade.mismatches
    WHERE run_id = $1 AND row_id > $2 ORDER BY row_id LIMIT $3";

const SELECT_FIRST_MISMATCHES: &str =
    "SELECT row_id, path, code, message FROM bucket_brigade.mismatches
    WHERE run_id = $1 AND row_id >= $2 ORDER BY row_id LIMIT $3";

/// `$1` run, `$2` seed, `$3` percent, `$4` size, `$5` cursor. The last row of the stretch comes in any case.
fn moves_to_verify_sql(table: &ApplicationTable, is_first: bool) -> String {
    let after = if is_first { ">=" } else { ">" };
    let columns = moved_columns(table);
    let joins = moved_joins(table);
    let in_sample = IN_SAMPLE.replace("ID", "row_id");
    format!(
        "WITH stretch AS MATERIALIZED (
    SELECT s.*, {in_sample} AS is_wanted, lead(row_id) OVER (ORDER BY row_id) IS NULL AS is_last
      FROM (SELECT * FROM bucket_brigade.moves WHERE run_id = $1 AND row_id {after} $5
             ORDER BY row_id LIMIT $4) s
)
SELECT {columns}, m.is_wanted FROM stretch m {joins}
 WHERE m.is_wanted OR m.is_last ORDER BY m.row_id"
    )
}

/// `$1` run, `$2` seed, `$3` percent, `$4` size and, for all but the first page, `$5` cursor.
fn rows_to_verify_sql(table: &ApplicationTable, is_first: bool) -> String {
    let ApplicationTable { sql, id, path, .. } = table;
    let id_type = table.id_type.sql_type();
    let after = if is_first {
        String::new()
    } else {
        format!("WHERE t.{id} > $5::text::{id_type}")
    };
    let in_sample = IN_SAMPLE.replace("ID", "s.key::text");
    format!(
        r#"WITH stretch AS MATERIALIZED (
    SELECT t.{id} AS key, t.{path}::text AS path FROM {sql} t {after} ORDER BY t.{id} LIMIT $4
)
SELECT s.key::text AS id, coalesce(s.path, '') AS path, {in_sample} AND NOT EXISTS (
        SELECT 1 FROM bucket_brigade.moves m JOIN bucket_brigade.verifications v USING (run_id)
         WHERE m.run_id = $1 AND m.row_id = s.key::text AND m.new_path = s.path COLLATE "C"
           AND m.verified_at >= v.started_at) AS is_wanted
  FROM stretch s ORDER BY s.key"#
    )
}

/// The columns of a [`MovedRow`] and whether it is more than the end of its page.
type VerifyColumns = (
    String,
    String,
    String,
    String,
    Option<i64>,
    i64,
    Option<String>,
    bool,
    bool,
    bool,
);

fn split_columns(columns: VerifyColumns) -> (MovedRow, bool) {
    let (id, old, new, etag, size, moved, current, gone, going, is_wanted) = columns;
    let columns: MovedColumns = (id, old, new, etag, size, moved, current, gone, going);
    (MovedRow::from_columns(columns), is_wanted)
}

/// A page, and the cursor after it; none when there are no more rows.
type CursorPage<T> = (Vec<T>, Option<String>);

impl PostgresLedger {
    /// Goes on with a verification of this kind that was cut off, or begins one.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn begin_verification(
        &self,
        spec: VerificationSpec,
        anew: bool,
    ) -> Result<VerificationState, StatementError> {
        let query = sqlx::query_as(SELECT_UNFINISHED).bind(self.run_id);
        let query = query.bind(spec.sample_percent).bind(spec.is_full);
        let found: Option<(i64, bool, Option<String>)> =
            with_timeout(query.bind(spec.recopies).fetch_optional(&self.pool)).await?;
        if let Some((seed, is_in_table, cursor)) = found.filter(|_| !anew) {
            return Ok(VerificationState {
                spec,
                seed,
                is_in_table,
                cursor,
                is_resumed: true,
            });
        }
        let seed = fastrand::i64(..);
        let query = sqlx::query(INSERT_VERIFICATION).bind(self.run_id);
        let query = query.bind(spec.sample_percent).bind(spec.is_full);
        with_timeout(query.bind(spec.recopies).bind(seed).execute(&self.pool)).await?;
        Ok(VerificationState {
            spec,
            seed,
            is_in_table: false,
            cursor: None,
            is_resumed: false,
        })
    }

    /// How many rows have moved, by the counters.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn count_moves(&self) -> Result<u64, StatementError> {
        let query = sqlx::query_as(SELECT_MOVED_TOTAL).bind(self.run_id);
        let (count,): (i64,) = with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// The next moves of the sample, of a stretch of `size`.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn moves_to_verify(
        &self,
        place: &VerificationState,
        size: i64,
    ) -> Result<CursorPage<MovedRow>, StatementError> {
        let sql = moves_to_verify_sql(&self.table, place.cursor.is_none());
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.run_id);
        let query = query.bind(place.seed).bind(place.spec.sample_percent);
        let query = query
            .bind(size)
            .bind(place.cursor.clone().unwrap_or_default());
        let found = with_timeout(query.fetch_all(&self.pool)).await?;
        let found: Vec<(MovedRow, bool)> = found.into_iter().map(split_columns).collect();
        let last = found.last().map(|(row, _)| row.id.clone());
        let wanted = found.into_iter().filter(|(_, is_wanted)| *is_wanted);
        Ok((wanted.map(|(row, _)| row).collect(), last))
    }

    /// Writes down what was found of a page of moves, and the place after it.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn record_findings(
        &self,
        findings: &[(MovedRow, VerificationFinding)],
        cursor: &str,
    ) -> Result<(), StatementError> {
        let row = |of: fn(&MovedRow) -> &str| {
            let texts = findings.iter().map(|(row, _)| of(row));
            texts.collect::<Vec<&str>>()
        };
        let text = |of: fn(&VerificationFinding) -> Option<&str>| {
            let texts = findings.iter().map(|(_, finding)| of(finding));
            texts.collect::<Vec<Option<&str>>>()
        };
        let count = |is: fn(&VerificationFinding) -> bool| {
            let such = findings.iter().filter(|(_, finding)| is(finding)).count();
            i64::try_from(such).unwrap_or(i64::MAX)
        };
        let each = findings.iter();
        let query = sqlx::query(RECORD_FINDINGS).bind(self.run_id);
        let query = query.bind(row(|row| &row.id)).bind(row(|row| &row.etag));
        let query = query.bind(
            each.clone()
                .map(|(row, _)| row.moved_micros)
                .collect::<Vec<_>>(),
        );
        let query = query.bind(each.clone().map(|(_, f)| f.is_intact).collect::<Vec<_>>());
        let query = query.bind(text(|finding| finding.source_etag.as_deref()));
        let query = query.bind(
            each.map(|(_, finding)| finding.size_bytes)
                .collect::<Vec<_>>(),
        );
        let query = query.bind(text(|finding| finding.new_etag.as_deref()));
        let query = query.bind(row(|row| &row.new_path));
        let query = query.bind(text(|finding| Some(finding.mismatch.as_ref()?.0)));
        let query = query.bind(text(|finding| Some(&finding.mismatch.as_ref()?.1)));
        let query = query.bind(cursor).bind(count(|_| true));
        let query = query.bind(count(|finding| finding.is_intact));
        let query = query.bind(count(|finding| finding.is_outdated));
        let query = query.bind(count(|finding| finding.new_etag.is_some()));
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    /// The moves are done: on to the rows of the table.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn begin_table_phase(&self) -> Result<(), StatementError> {
        let query = sqlx::query(BEGIN_TABLE_PHASE).bind(self.run_id);
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    /// The next `size` rows of the table.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn rows_to_verify(
        &self,
        place: &VerificationState,
        size: i64,
    ) -> Result<CursorPage<TableRow>, StatementError> {
        let sql = rows_to_verify_sql(&self.table, place.cursor.is_none());
        let query = sqlx::query_as(AssertSqlSafe(sql)).bind(self.run_id);
        let query = query.bind(place.seed).bind(place.spec.sample_percent);
        let query = query.bind(size);
        let query = match &place.cursor {
            Some(cursor) => query.bind(cursor),
            None => query,
        };
        let rows: Vec<(String, String, bool)> = with_timeout(query.fetch_all(&self.pool)).await?;
        let row = |(id, path, is_wanted)| TableRow {
            id,
            path,
            needs_check: is_wanted,
        };
        let rows: Vec<TableRow> = rows.into_iter().map(row).collect();
        let last = rows.last().map(|row| row.id.clone());
        Ok((rows, last))
    }

    /// Writes down what was found of a page of the table, and the place after it.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn record_unresolved(
        &self,
        wrong: &[VerificationMismatch],
        cursor: &str,
        (rows, outside): (usize, usize),
    ) -> Result<(), StatementError> {
        let text =
            |of: fn(&VerificationMismatch) -> &str| wrong.iter().map(of).collect::<Vec<&str>>();
        let number = |count| i64::try_from(count).unwrap_or(i64::MAX);
        let query = sqlx::query(RECORD_TABLE_PAGE).bind(self.run_id);
        let query = query.bind(text(|m| &m.id)).bind(text(|m| &m.path));
        let query = query.bind(text(|m| &m.code)).bind(text(|m| &m.message));
        let query = query.bind(cursor).bind(number(rows)).bind(number(outside));
        with_timeout(query.execute(&self.pool)).await.map(drop)
    }

    /// The path a row has now; none when there is no such row.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn current_path(&self, id: &str) -> Result<Option<String>, StatementError> {
        let id = RowId::from_database(id.to_owned());
        let found = with_timeout(self.fetch_rows(std::slice::from_ref(&id))).await?;
        Ok(found.get(&id).map(|row| row.path.clone()))
    }

    /// Writes down that the verification is complete; its numbers.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn finish_verification(&self) -> Result<VerificationCounts, StatementError> {
        with_timeout(
            sqlx::query(MARK_FINISHED)
                .bind(self.run_id)
                .execute(&self.pool),
        )
        .await?;
        let query = sqlx::query_as(SELECT_COUNTS).bind(self.run_id);
        let (checked, sound, outdated, recopied, table_rows, table_outside) =
            with_timeout(query.fetch_one(&self.pool)).await?;
        Ok(VerificationCounts {
            checked,
            sound,
            outdated,
            recopied,
            table_rows,
            table_outside,
        })
    }

    /// A page of what the verification found wrong, after the given row.
    ///
    /// # Errors
    /// [`CatalogError`]
    pub async fn list_mismatches(
        &self,
        after: Option<&str>,
        size: i64,
    ) -> Result<Vec<VerificationMismatch>, StatementError> {
        let sql = if after.is_some() {
            SELECT_MISMATCHES
        } else {
            SELECT_FIRST_MISMATCHES
        };
        let query = sqlx::query_as(sql).bind(self.run_id);
        let query = query.bind(after.unwrap_or_default()).bind(size);
        let found: Vec<(String, String, String, String)> =
            with_timeout(query.fetch_all(&self.pool)).await?;
        let mismatch = |(id, path, code, message)| VerificationMismatch {
            id,
            path,
            code,
            message,
        };
        Ok(found.into_iter().map(mismatch).collect())
    }
}
