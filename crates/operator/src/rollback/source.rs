//! The ids of the moves that are to be undone, page by page.
//!
//! What was moved lately is found by the time of the moves: their ids are collected once, through an index that
//! knows of each stretch of the ledger's table from when to when its moves are. Where they are too many to keep,
//! or their time cannot be found fast, all moves are gone through.

use std::time::UNIX_EPOCH;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    PostgresLedger, is_statement_timeout, statement_error, with_timeout, with_timeout_or_else,
};
use futures::TryStreamExt;

use super::selection::MoveSelection;
use crate::command_cursor::CursorLap;
use crate::statements::retry_statement;

/// Few enough that what was read of a page's copies is fresh when its rows are set.
pub(super) const PAGE_ROWS: usize = 100;

/// Moves that are gone through by one statement where not all are selected.
const STRETCH_ROWS: i64 = 1000;

/// What the collected ids take of memory at most, and what each takes beside its text.
const MAX_COLLECTED_BYTES: usize = 24 << 20;
const BYTES_PER_ID: usize = 40;

/// `$1` run, `$2` and `$3` the lap's ends, `$4` size, `$5` seconds since 1970, or null for all.
pub(super) const SELECT_STRETCH: &str = "SELECT row_id, (moved_at >= to_timestamp($5)) IS NOT FALSE
    FROM bucket_brigade.moves WHERE run_id = $1 AND AFTER ORDER BY row_id LIMIT $4";

/// `$1` run, `$2` seconds since 1970.
pub(super) const SELECT_SINCE: &str = "SELECT row_id FROM bucket_brigade.moves
    WHERE run_id = $1 AND moved_at >= to_timestamp($2)";

/// By the database's clock. `$1` seconds.
const SELECT_AGO: &str =
    "SELECT extract(epoch FROM now() - make_interval(secs => $1))::double precision";

pub(super) enum RowSource<'a> {
    Collected(Vec<String>),
    /// All moves, or those since then.
    Walk {
        ledger: &'a PostgresLedger,
        lap: CursorLap,
        since: Option<f64>,
    },
}

/// Ids, which may be none of a stretch, and the cursor after them.
pub(super) type IdPage = (Vec<String>, Option<String>);

impl<'a> RowSource<'a> {
    /// `lap` is where all moves are gone on with.
    pub(super) async fn open(
        ledger: &'a PostgresLedger,
        selection: &MoveSelection,
        lap: CursorLap,
    ) -> Result<Self, StatementError> {
        let since = match selection {
            MoveSelection::Ids(ids) => return Ok(Self::Collected(ids.clone())),
            MoveSelection::All => {
                let since = None;
                return Ok(Self::Walk { ledger, lap, since });
            }
            MoveSelection::Since(time) => {
                let since = time.duration_since(UNIX_EPOCH);
                since.map_or(0.0, |since| since.as_secs_f64())
            }
            MoveSelection::Within(time) => {
                retry_statement(async || {
                    let query = sqlx::query_scalar(SELECT_AGO).bind(time.as_secs_f64());
                    with_timeout(query.fetch_one(ledger.pool())).await
                })
                .await?
            }
        };
        let collected = retry_statement(async || collect_since(ledger, since).await).await?;
        Ok(collected.map_or(
            Self::Walk {
                ledger,
                lap: CursorLap::default(),
                since: Some(since),
            },
            Self::Collected,
        ))
    }

    pub(super) async fn next_page(&mut self) -> Result<Option<IdPage>, StatementError> {
        let (ledger, lap, since) = match self {
            Self::Collected(ids) => {
                let page = ids.split_off(ids.len().saturating_sub(PAGE_ROWS));
                return Ok((!page.is_empty()).then_some((page, None)));
            }
            Self::Walk { ledger, lap, since } => (*ledger, lap, *since),
        };
        loop {
            let stretch = retry_statement(async || read_stretch(ledger, lap, since).await).await?;
            if let Some((last, _)) = stretch.last() {
                lap.after = Some(last.clone());
                let cursor = lap.after.clone().filter(|_| !lap.is_second());
                let selected = stretch.into_iter().filter(|(_, is_selected)| *is_selected);
                return Ok(Some((selected.map(|(id, _)| id).collect(), cursor)));
            }
            if !lap.begin_again() {
                return Ok(None);
            }
        }
    }
}

async fn read_stretch(
    ledger: &PostgresLedger,
    lap: &CursorLap,
    since: Option<f64>,
) -> Result<Vec<(String, bool)>, StatementError> {
    let size = match since {
        Some(_) => STRETCH_ROWS,
        None => i64::try_from(PAGE_ROWS).unwrap_or(STRETCH_ROWS),
    };
    let (after, until) = lap.ends();
    let query = sqlx::query_as(lap.page_sql(SELECT_STRETCH, "row_id")).bind(ledger.run_id());
    let query = query.bind(after).bind(until).bind(size).bind(since);
    with_timeout(query.fetch_all(ledger.pool())).await
}

/// None where they are too many, or not found in time.
async fn collect_since(
    ledger: &PostgresLedger,
    since: f64,
) -> Result<Option<Vec<String>>, StatementError> {
    let collect = async {
        let query = sqlx::query_scalar(SELECT_SINCE).bind(ledger.run_id());
        let mut found = query.bind(since).fetch(ledger.pool());
        let (mut ids, mut bytes) = (Vec::<String>::new(), 0);
        while let Some(id) = found.try_next().await? {
            let id: String = id;
            bytes += id.len() + BYTES_PER_ID;
            if bytes > MAX_COLLECTED_BYTES {
                return Ok(None);
            }
            ids.push(id);
        }
        Ok(Some(ids))
    };
    let unless_slow = |error| {
        if is_statement_timeout(&error) {
            return Ok(None);
        }
        Err(statement_error(&error))
    };
    with_timeout_or_else(collect, unless_slow).await
}
