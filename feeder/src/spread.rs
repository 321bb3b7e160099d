//! Feeding in many places of the table at once. Rows next to each other name keys next to each other, which lie in
//! one partition of S3, and it is to each partition that S3 grants its rate.
//!
//! The places are the stretches into which the range of ids is divided. A page has rows of each in turn, and the
//! cursor is all their cursors in one text.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bucket_brigade_common::ledger::feed_source::{FeedSource, PageReader, RowPage, SweepAccess};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{ApplicationTable, PostgresLedger};
use bucket_brigade_common::preflight::{PreflightError, retry_transient};
use bucket_brigade_common::row_id::{IdColumnType, RowId};
use bucket_brigade_common::settings::integer_between;

/// A store splits its partitions where it likes: with few stretches to each, the fullest slows all the others. By
/// eight partitions of 16 stretches one has three, which leaves 67 % of their sum; of 256, 36 (89 %).
const DEFAULT_STRETCHES: usize = 256;

/// So that a page of many stretches is worth its statements.
const MIN_STRETCH_ROWS: u32 = 16;

/// By which a cursor of many is known. No id of a number begins so.
const PREFIX: &str = "spread ";

/// In which order rows are fed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FeedOrder {
    #[default]
    ById,
    /// In so many stretches at once.
    Spread(usize),
}

/// `id`, `spread` or `spread:N`.
pub(crate) fn parse_feed_order(text: &str) -> Result<FeedOrder, String> {
    match text.to_ascii_lowercase().split_once(':') {
        None if text.eq_ignore_ascii_case("id") => Ok(FeedOrder::ById),
        None if text.eq_ignore_ascii_case("spread") => Ok(FeedOrder::Spread(DEFAULT_STRETCHES)),
        Some(("spread", stretches)) => {
            let stretches = integer_between(2_usize, 256)(stretches);
            stretches.map(FeedOrder::Spread)
        }
        _ => Err("must be id, spread or spread:STRETCHES".into()),
    }
}

impl FeedOrder {
    /// Whether the table's rows can be fed so.
    pub(crate) fn check(self, table: &ApplicationTable) -> Result<(), PreflightError> {
        let id_type = table.id.id_type();
        if self == Self::ById || id_type.columns() == [IdColumnType::Integer] {
            return Ok(());
        }
        let name = &table.name;
        let problem = format!(
            "spread divides a range of whole numbers, and the ids of '{name}' are of type {id_type}"
        );
        let setting = "FEED_ORDER";
        Err(PreflightError::InvalidSetting { setting, problem })
    }

    /// The rows in this order.
    pub async fn open_reader(
        self,
        ledger: &PostgresLedger,
    ) -> Result<Arc<dyn PageReader>, anyhow::Error> {
        let Self::Spread(stretches) = self else {
            // A sweep that another order began is begun again.
            let position = retry_transient(async || ledger.cursor_position().await).await?;
            if position
                .cursor
                .is_some_and(|cursor| cursor.as_str().starts_with(PREFIX))
            {
                retry_transient(async || ledger.begin_sweep().await).await?;
            }
            return Ok(Arc::new(ledger.clone()));
        };
        self.check(ledger.table())?;
        Ok(Arc::new(SpreadReader {
            ledger: ledger.clone(),
            stretches,
            found_none: AtomicBool::new(false),
        }))
    }
}

/// What is left of one: ids after `after` up to `until`, where they are bounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stretch {
    after: Option<i64>,
    until: Option<i64>,
}

struct SpreadReader {
    ledger: PostgresLedger,
    stretches: usize,
    /// Whether the page before had nothing to feed: then the next is as large as can be.
    found_none: AtomicBool,
}

impl SpreadReader {
    /// The stretches of a sweep that begins after `cursor`, by the ids that there are now.
    async fn divide_table(&self, cursor: Option<&RowId>) -> Result<Vec<Stretch>, StatementError> {
        let Some((first, last)) = self.ledger.id_range().await? else {
            return Ok(Vec::new());
        };
        let after = cursor.and_then(|cursor| cursor.as_str().parse().ok());
        let mut stretches = divide(
            after.unwrap_or(first.saturating_sub(1)),
            last,
            self.stretches,
        );
        if let Some(stretch) = stretches.first_mut() {
            stretch.after = after;
        }
        Ok(stretches)
    }

    /// Reads the next rows of a stretch. Returns what is left of it, too.
    async fn read_stretch(
        &self,
        Stretch { after, until }: Stretch,
        size: u32,
    ) -> Result<(RowPage, Option<Stretch>), StatementError> {
        let cursor = after.map(|id| RowId::from_database(id.to_string()));
        let mut page = self.ledger.read(cursor.as_ref(), size).await?;
        let is_within = |id: &RowId| match (until, id.as_str().parse::<i64>()) {
            (Some(until), Ok(id)) => id <= until,
            _ => true,
        };
        page.rows.retain(|(id, _)| is_within(id));
        page.unreadable = page.unreadable.filter(|failure| is_within(&failure.id));
        page.last_id = page.last_id.filter(is_within);
        let last = page.last_id.as_ref();
        let last = last.and_then(|last| last.as_str().parse().ok());
        let left = match (last, until) {
            // What comes after the last rows of the table is found from there.
            (None, None) => Some(Stretch { after, until }),
            (None, Some(_)) => None,
            (last, until) => (last != until).then_some(Stretch { after: last, until }),
        };
        Ok((page, left))
    }
}

/// Divides the ids after `after` up to `last`. The last stretch has no end: rows may be added.
fn divide(after: i64, last: i64, count: usize) -> Vec<Stretch> {
    let (from, length) = (i128::from(after), i128::from(last) - i128::from(after));
    let count = i128::try_from(count).unwrap_or(1);
    let bound = |number: i128| i64::try_from(from + length * number / count).unwrap_or(last);
    let mut stretches: Vec<Stretch> = (0..count)
        .map(|number| Stretch {
            after: Some(bound(number)),
            until: Some(bound(number + 1)),
        })
        .filter(|stretch| stretch.after < stretch.until)
        .collect();
    if let Some(stretch) = stretches.last_mut() {
        stretch.until = None;
    }
    stretches
}

fn encode(stretches: &[Stretch]) -> RowId {
    let mut text = String::from(PREFIX);
    let number = |id: Option<i64>| id.map(|id| id.to_string()).unwrap_or_default();
    for Stretch { after, until } in stretches {
        // Writing to a string cannot fail.
        let _ = write!(text, "{}..{} ", number(*after), number(*until));
    }
    RowId::from_database(text)
}

/// None where it is a cursor of another order.
fn decode(cursor: &RowId) -> Option<Vec<Stretch>> {
    let number = |text: &str| match text {
        "" => Some(None),
        text => text.parse().ok().map(Some),
    };
    let stretches = cursor.as_str().strip_prefix(PREFIX)?.split_whitespace();
    let stretches = stretches.map(|stretch| {
        let (after, until) = stretch.split_once("..")?;
        Some(Stretch {
            after: number(after)?,
            until: number(until)?,
        })
    });
    stretches.collect()
}

/// One of each, then another of each.
fn interleave<T>(columns: Vec<Vec<T>>) -> Vec<T> {
    let mut columns: Vec<VecDeque<T>> = columns.into_iter().map(VecDeque::from).collect();
    let mut rows = Vec::new();
    while !columns.is_empty() {
        rows.extend(columns.iter_mut().filter_map(VecDeque::pop_front));
        columns.retain(|column| !column.is_empty());
    }
    rows
}

#[async_trait]
impl PageReader for SpreadReader {
    async fn prepare(&self) -> Result<SweepAccess, StatementError> {
        self.ledger.prepare().await
    }

    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError> {
        let stretches = match cursor.and_then(decode) {
            Some(stretches) => stretches,
            None => self.divide_table(cursor).await?,
        };
        let count = u32::try_from(stretches.len().max(1)).unwrap_or(u32::MAX);
        let (size, most) = if self.found_none.load(Ordering::Relaxed) {
            (size, 2 * usize::try_from(size).unwrap_or(usize::MAX / 2))
        } else {
            (size.div_ceil(count).max(MIN_STRETCH_ROWS), usize::MAX)
        };
        let (mut left, mut columns) = (Vec::new(), Vec::new());
        let (mut is_end, mut unreadable, mut found) = (true, None, 0);
        for stretch in stretches {
            if unreadable.is_some() || found >= most {
                left.push(stretch);
                is_end = false;
                continue;
            }
            let (page, rest) = self.read_stretch(stretch, size).await?;
            is_end &= page.rows.is_empty() && page.last_id.is_none();
            unreadable = page.unreadable;
            found += page.rows.len();
            columns.push(page.rows);
            left.extend(rest);
        }
        let rows = interleave(columns);
        let found_none = rows.is_empty() && unreadable.is_none();
        self.found_none.store(found_none, Ordering::Relaxed);
        Ok(RowPage {
            last_id: (!is_end).then(|| encode(&left)),
            rows,
            unreadable,
            is_spread: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(after: i64, until: Option<i64>) -> Stretch {
        Stretch {
            after: Some(after),
            until,
        }
    }

    #[test]
    fn a_range_is_divided_without_gap_or_overlap() {
        let thirds = divide(0, 10, 3);
        let expected = [stretch(0, Some(3)), stretch(3, Some(6)), stretch(6, None)];
        assert_eq!(thirds, expected);
        assert_eq!(divide(0, 2, 16), [stretch(0, Some(1)), stretch(1, None)]);
        assert_eq!(divide(5, 5, 16), []);
        let all = divide(i64::MIN, i64::MAX, 256);
        assert_eq!((all.len(), all[0].after), (256, Some(i64::MIN)));
        assert!(all.windows(2).all(|pair| pair[0].until == pair[1].after));
    }

    #[test]
    fn cursors_are_one_text() {
        let open = Stretch {
            after: None,
            until: Some(-3),
        };
        for stretches in [vec![], vec![open, stretch(-3, Some(7)), stretch(7, None)]] {
            assert_eq!(decode(&encode(&stretches)), Some(stretches));
        }
        assert_eq!(decode(&RowId::from_database("17".into())), None);
    }

    #[test]
    fn rows_come_from_each_stretch_in_turn() {
        let columns = vec![vec![1, 2, 3], vec![], vec![10, 11], vec![20]];
        assert_eq!(interleave(columns), [1, 10, 20, 2, 11, 3]);
    }

    #[test]
    fn an_order_is_named() {
        assert_eq!(parse_feed_order("ID"), Ok(FeedOrder::ById));
        assert_eq!(parse_feed_order("spread"), Ok(FeedOrder::Spread(256)));
        assert_eq!(parse_feed_order("Spread:4"), Ok(FeedOrder::Spread(4)));
        for bad in ["random", "spread:1", "spread:", "id:3"] {
            assert!(parse_feed_order(bad).is_err(), "{bad}");
        }
    }
}
