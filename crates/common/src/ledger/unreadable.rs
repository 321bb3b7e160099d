//! Rows that the server refuses to read: a damaged value, text that is not in the column's encoding.

use sqlx::AssertSqlSafe;

use super::{ApplicationTable, PostgresLedger, with_batch_timeout, with_timeout};
use crate::ledger::feed_source::RowPage;
use crate::ledger::move_ledger::{MoveFailure, StatementError};
use crate::row_id::RowId;

/// Where a failure holds the path: the row cannot be read. No rule has it in scope.
const UNREADABLE: &str = "";

const MAX_PLAIN_LENGTH: usize = 1000;

/// A condition that a failure, its id and its path given, still stands for its row.
///
/// `OFFSET 0` keeps the planner from joining: it would read the paths of other rows, too, and a damaged one
/// would make every statement fail.
pub(super) fn failure_applies(table: &ApplicationTable, id: &str, failed_path: &str) -> String {
    let ApplicationTable { sql, path, .. } = table;
    let is_row = table.id.matches("t", id);
    format!(
        r#"EXISTS (SELECT 1 FROM {sql} t WHERE {is_row}
            AND ({failed_path} = '{UNREADABLE}' OR t.{path} COLLATE "C" = {failed_path}) OFFSET 0)"#
    )
}

impl PostgresLedger {
    /// A page that is refused is halved until the culprit is alone, and passed over.
    pub(super) async fn read_page_in_halves(
        &self,
        cursor: Option<&RowId>,
        mut size: u32,
    ) -> Result<RowPage, StatementError> {
        loop {
            let read = |rows| self.read_page(cursor, rows);
            let (code, message) = match self.stretch_length.run(size, read).await {
                Err(StatementError::Rejected { code, message }) => (code, message),
                Err(StatementError::Suspect { code, message })
                    if with_timeout(self.read_page(cursor, 0)).await.is_ok() =>
                {
                    (code, message)
                }
                Err(StatementError::Unavailable(why))
                    if self.feed_index.condition().is_some()
                        && self.stretch_length.is_least()
                        && with_timeout(self.read_page(cursor, 0)).await.is_ok() =>
                {
                    // It was dropped, or all that it holds is dead: stretches of all rows end.
                    tracing::warn!(
                        "the partial index serves no page in time, the sweep goes on without it: {why}"
                    );
                    self.feed_index.set(None);
                    self.stretch_length.reset();
                    continue;
                }
                page => return page,
            };
            if size > 1 {
                size /= 2;
                continue;
            }
            match self.next_id(cursor).await {
                Err(StatementError::Rejected { .. } | StatementError::Suspect { .. })
                    if self.feed_index.condition().is_some() =>
                {
                    self.feed_index.set(None);
                }
                next => {
                    let id = next?;
                    let failure = |id| self.unreadable_row(id, code, &message);
                    return Ok(RowPage {
                        last_id: id.clone(),
                        unreadable: id.map(failure),
                        ..RowPage::default()
                    });
                }
            }
        }
    }

    fn unreadable_row(&self, id: RowId, code: String, message: &str) -> MoveFailure {
        let table = &self.table.name;
        tracing::warn!(row = %id, code, "row {id} of {table} cannot be read: {message}");
        MoveFailure {
            id,
            path: UNREADABLE.into(),
            code,
            message: format!("the row cannot be read: {message}"),
            permanent: true,
            orphan: None,
        }
    }

    /// Reads nothing else of the row, but what a partial index does.
    pub async fn next_id(&self, cursor: Option<&RowId>) -> Result<Option<RowId>, StatementError> {
        let ApplicationTable { sql, id, .. } = &self.table;
        let (row_id, after, order) = (id.as_text("t"), id.is_after("t", "$1"), id.order("t"));
        let condition = self.feed_index.condition();
        let condition = condition.as_deref().unwrap_or("true");
        let statement = format!(
            "SELECT {row_id} FROM {sql} t WHERE ($1::text IS NULL OR {after}) AND {condition} ORDER BY {order} LIMIT 1"
        );
        let next = sqlx::query_scalar(AssertSqlSafe(statement)).bind(cursor.map(RowId::as_str));
        let next: Option<String> = with_timeout(next.fetch_optional(&self.pool)).await?;
        Ok(next.map(RowId::from_database))
    }

    /// What of one failure the database refuses is left out: text that its encoding does not have, or its index no
    /// room for; then the path of a row that cannot even be compared with it.
    pub(super) async fn record_failures_in_full(
        &self,
        failures: &[MoveFailure],
    ) -> Result<(), StatementError> {
        let mut written = with_batch_timeout(failures.len(), self.write_failures(failures)).await;
        if let [failure] = failures {
            let plain = MoveFailure {
                code: plain_text(&failure.code),
                message: plain_text(&failure.message),
                ..failure.clone()
            };
            let pathless = MoveFailure {
                path: UNREADABLE.into(),
                orphan: None,
                ..plain.clone()
            };
            for reduced in [plain, pathless] {
                if is_refused(&written) {
                    written = with_timeout(self.write_failures(&[reduced])).await;
                }
            }
        }
        written
    }
}

fn is_refused(written: &Result<(), StatementError>) -> bool {
    use StatementError::{Rejected, Suspect};
    matches!(written, Err(Rejected { .. } | Suspect { .. }))
}

/// What every encoding and every index holds of a text.
pub(crate) fn plain_text(text: &str) -> String {
    let plain = |character: char| if character.is_ascii() { character } else { '?' };
    text.chars().map(plain).take(MAX_PLAIN_LENGTH).collect()
}
