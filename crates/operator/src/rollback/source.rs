//! The ids of the moves that are to be undone, page by page.
//!
//! What was moved lately is found by the time of the moves: their ids are collected once, through an index that
//! knows of each stretch of the ledger's table from when to when its moves are. Where they are too many to keep,
//! or their time cannot be found fast, all moves are gone through.

use std::collections::VecDeque;
use std::time::{SystemTime, UNIX_EPOCH};

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    PostgresLedger, before_timeout, is_statement_timeout, no_response, statement_error,
    with_timeout,
};
use futures::TryStreamExt;

use super::queries::MoveSelection;
use crate::command_cursor::CursorLap;
use crate::statements::retry_statement;

/// Few enough that what was read of a page's copies is fresh when its rows are set.
pub(super) const PAGE_ROWS: usize = 100;

/// Moves that are gone through by one statement where not all are selected.
const STRETCH_ROWS: i64 = 1000;

/// What the collected ids take of memory at most.
const MAX_COLLECTED_BYTES: usize = 24 << 20;

/// `$1` run, `$2` and `$3` the lap's ends, `$4` size, `$5` seconds since 1970, or null for all.
pub(super) const SELECT_STRETCH: &str = "SELECT row_id, (moved_at >= to_timestamp($5)) IS NOT FALSE
    FROM bucket_brigade.moves WHERE run_id = $1 AND AFTER ORDER BY row_id LIMIT $4";

/// `$1` run, `$2` seconds since 1970.
pub(super) const SELECT_SINCE: &str = "SELECT row_id FROM bucket_brigade.moves
    WHERE run_id = $1 AND moved_at >= to_timestamp($2)";

/// By the database's clock. `$1` seconds.
const SELECT_AGO: &str =
    "SELECT extract(epoch FROM now() - make_interval(secs => $1))::double precision";

/// Many short texts, without what each costs by itself.
#[derive(Debug, Default)]
pub(super) struct IdList {
    text: String,
    lengths: VecDeque<u32>,
    next: usize,
}

impl IdList {
    /// False when there is no room.
    fn push(&mut self, id: &str) -> bool {
        let Ok(length) = u32::try_from(id.len()) else {
            return false;
        };
        self.text.push_str(id);
        self.lengths.push_back(length);
        self.text.len() + self.lengths.len() * size_of::<u32>() <= MAX_COLLECTED_BYTES
    }

    fn len(&self) -> usize {
        self.lengths.len()
    }

    fn take(&mut self, count: usize) -> Vec<String> {
        let count = count.min(self.lengths.len());
        let lengths = self.lengths.drain(..count);
        let ids = lengths.map(|length| {
            let start = self.next;
            self.next += usize::try_from(length).unwrap_or(0);
            self.text[start..self.next].to_owned()
        });
        ids.collect()
    }
}

/// Where the ids come from.
pub(super) enum RowSource<'a> {
    Collected(IdList),
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
            MoveSelection::Ids(ids) => {
                let mut list = IdList::default();
                // They came from a command line, which is shorter than the list may be.
                for id in ids {
                    list.push(id);
                }
                return Ok(Self::Collected(list));
            }
            MoveSelection::All => {
                let since = None;
                return Ok(Self::Walk { ledger, lap, since });
            }
            MoveSelection::Since(time) => epoch_seconds(*time),
            MoveSelection::Within(time) => {
                retry_statement(async || {
                    let query = sqlx::query_scalar(SELECT_AGO).bind(time.as_secs_f64());
                    with_timeout(query.fetch_one(ledger.pool())).await
                })
                .await?
            }
        };
        match retry_statement(async || collect_since(ledger, since).await).await? {
            Some(list) => Ok(Self::Collected(list)),
            None => Ok(Self::Walk {
                ledger,
                lap: CursorLap::default(),
                since: Some(since),
            }),
        }
    }

    /// How many there are, where that is known.
    pub(super) fn count(&self) -> Option<usize> {
        match self {
            Self::Collected(list) => Some(list.len()),
            Self::Walk { .. } => None,
        }
    }

    pub(super) async fn next_page(&mut self) -> Result<Option<IdPage>, StatementError> {
        let (ledger, lap, since) = match self {
            Self::Collected(list) => {
                let ids = list.take(PAGE_ROWS);
                return Ok((!ids.is_empty()).then_some((ids, None)));
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
) -> Result<Option<IdList>, StatementError> {
    let collect = async {
        let query = sqlx::query_scalar(SELECT_SINCE).bind(ledger.run_id());
        let mut found = query.bind(since).fetch(ledger.pool());
        let mut list = IdList::default();
        while let Some(id) = found.try_next().await? {
            let id: String = id;
            if !list.push(&id) {
                return Ok(None);
            }
        }
        Ok(Some(list))
    };
    match before_timeout(collect).await {
        Some(Err(error)) if is_statement_timeout(&error) => Ok(None),
        Some(collected) => collected.map_err(|error| statement_error(&error)),
        None => Err(no_response()),
    }
}

fn epoch_seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gives_its_ids_back_in_their_order_and_is_bounded() {
        let mut list = IdList::default();
        for id in ["1", "", "ü", "99"] {
            assert!(list.push(id));
        }
        assert_eq!(list.take(3), ["1", "", "ü"]);
        assert_eq!((list.len(), list.take(3)), (1, vec!["99".to_owned()]));
        assert!(list.take(3).is_empty());
        let long = "x".repeat(1 << 20);
        let pushed = (0..100).take_while(|_| list.push(&long)).count();
        assert!((20..25).contains(&pushed), "{pushed}");
    }
}
