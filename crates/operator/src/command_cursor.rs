//! Where a command is, in the ledger: cut off, the same command goes on there, and at its end looks at what it has
//! left behind.

use std::cell::Cell;
use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};
use sqlx::AssertSqlSafe;
use tokio::time::Instant;

use crate::statements::retry_statement;

/// What a kill repeats at most, apart from the pages under way.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

const SELECT_CURSOR: &str = "SELECT cursor FROM bucket_brigade.command_cursors
    WHERE run_id = $1 AND command = $2 AND selection = $3";

const UPSERT_CURSOR: &str = "INSERT INTO bucket_brigade.command_cursors
    (run_id, command, selection, cursor) VALUES ($1, $2, $3, $4)
    ON CONFLICT (run_id, command) DO UPDATE SET
        selection = excluded.selection, cursor = excluded.cursor";

const DELETE_CURSOR: &str = "DELETE FROM bucket_brigade.command_cursors
    WHERE run_id = $1 AND command = $2";

pub(crate) struct CommandCursor<'a> {
    ledger: &'a PostgresLedger,
    command: &'static str,
    selection: String,
    saved_at: Cell<Option<Instant>>,
}

impl<'a> CommandCursor<'a> {
    pub(crate) fn new(
        ledger: &'a PostgresLedger,
        command: &'static str,
        selection: String,
    ) -> Self {
        Self {
            ledger,
            command,
            selection,
            saved_at: Cell::new(None),
        }
    }

    pub(crate) async fn load(&self) -> Result<CursorLap, StatementError> {
        let cursor: Option<String> = retry_statement(async || {
            let query = sqlx::query_scalar(SELECT_CURSOR).bind(self.ledger.run_id());
            let query = query.bind(self.command).bind(&self.selection);
            with_timeout(query.fetch_optional(self.ledger.pool())).await
        })
        .await?;
        if cursor.is_some() {
            tracing::info!("going on where the command was cut off");
        }
        Ok(CursorLap {
            after: cursor.clone(),
            until: None,
            began_at: cursor,
        })
    }

    /// Saves it now and then.
    pub(crate) async fn save(&self, cursor: &str) -> Result<(), StatementError> {
        let is_fresh = |at: Instant| at.elapsed() < SAVE_INTERVAL;
        if self.saved_at.get().is_some_and(is_fresh) {
            return Ok(());
        }
        self.saved_at.set(Some(Instant::now()));
        let save = async || {
            let query = sqlx::query(UPSERT_CURSOR).bind(self.ledger.run_id());
            let query = query.bind(self.command).bind(&self.selection).bind(cursor);
            with_timeout(query.execute(self.ledger.pool())).await
        };
        retry_statement(save).await.map(drop)
    }

    pub(crate) async fn clear(&self) -> Result<(), StatementError> {
        let clear = async || {
            let query = sqlx::query(DELETE_CURSOR).bind(self.ledger.run_id());
            with_timeout(query.bind(self.command).execute(self.ledger.pool())).await
        };
        retry_statement(clear).await.map(drop)
    }
}

/// From a cursor to the end, and then, where that was not the beginning, from the beginning to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CursorLap {
    pub(crate) after: Option<String>,
    until: Option<String>,
    began_at: Option<String>,
}

impl CursorLap {
    /// On to the second lap; false where there is none.
    pub(crate) fn begin_again(&mut self) -> bool {
        self.until = self.began_at.take();
        self.after = None;
        self.until.is_some()
    }

    /// Whether what is worked on lies behind the cursor, which then stays.
    pub(crate) fn is_second(&self) -> bool {
        self.until.is_some()
    }

    /// A statement with this lap's conditions on `column` in the place of `AFTER`: `$2` and `$3` are its ends.
    pub(crate) fn page_sql(&self, sql: &str, column: &str) -> AssertSqlSafe<String> {
        let after = if self.after.is_some() { ">" } else { ">=" };
        let until = match self.until {
            Some(_) => format!("{column} <= $3"),
            None => "$3::text IS NULL".into(),
        };
        AssertSqlSafe(sql.replace("AFTER", &format!("{column} {after} $2 AND {until}")))
    }

    /// What `$2` and `$3` are.
    pub(crate) fn ends(&self) -> (&str, Option<&str>) {
        (
            self.after.as_deref().unwrap_or_default(),
            self.until.as_deref(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_behind_the_cursor_comes_last() {
        let mut lap = CursorLap {
            after: Some("m".into()),
            until: None,
            began_at: Some("m".into()),
        };
        assert_eq!((lap.ends(), lap.is_second()), (("m", None), false));
        let sql = |lap: &CursorLap| lap.page_sql("WHERE AFTER", "id").0;
        assert_eq!(sql(&lap), "WHERE id > $2 AND $3::text IS NULL");
        assert!(lap.begin_again());
        assert_eq!((lap.ends(), lap.is_second()), (("", Some("m")), true));
        assert_eq!(sql(&lap), "WHERE id >= $2 AND id <= $3");
        assert!(!lap.begin_again());
        assert!(!CursorLap::default().begin_again());
    }
}
