//! Watching without an index that says which rows are left: new rows first, and the whole table so slowly
//! that it costs little.

use std::time::Duration;

use bucket_brigade_common::row_id::RowId;

use crate::retry::FeederStopped;
use crate::sweep::{SweepSummary, TableSweep};

/// Of a small table all is looked at each time.
const MIN_PAGES: u64 = 10;

/// How far a watch has looked.
pub struct TableWatch {
    /// Where the look before the last one ended: ids are given out before their rows are committed, so the
    /// end is looked at twice.
    newest: [Option<RowId>; 2],
    /// Where the slow sweep is; none at the table's beginning.
    position: Option<RowId>,
    pages: u64,
    /// Pages of the slow sweep so far.
    pages_read: u64,
    /// Looks that make a whole sweep.
    looks: u64,
}

impl TableWatch {
    /// After a whole sweep that found nothing.
    pub fn after_sweep(sweep: &SweepSummary, interval: Duration, full_sweep: Duration) -> Self {
        let looks = full_sweep.as_millis() / interval.as_millis().max(1);
        Self {
            newest: [sweep.last_id.clone(), sweep.last_id.clone()],
            position: None,
            pages: sweep.pages,
            pages_read: 0,
            looks: u64::try_from(looks).unwrap_or(u64::MAX).max(1),
        }
    }

    /// Looks at new rows and at the next part of the table, and feeds what is in scope there. Returns how many
    /// rows it fed.
    pub async fn poll(&mut self, sweep: &mut TableSweep<'_>) -> Result<usize, FeederStopped> {
        Ok(self.feed_new_rows(sweep).await? + self.feed_next_part(sweep).await?)
    }

    async fn feed_new_rows(&mut self, sweep: &mut TableSweep<'_>) -> Result<usize, FeederStopped> {
        let [before, last] = self.newest.clone();
        let (mut fed, mut cursor, mut end) = (0, before, last.clone());
        while let Some(page) = sweep.feed_page_after(cursor.as_ref()).await? {
            fed += page.fed;
            cursor = Some(page.last_id);
            end = cursor.clone();
        }
        self.newest = [last, end];
        Ok(fed)
    }

    async fn feed_next_part(&mut self, sweep: &mut TableSweep<'_>) -> Result<usize, FeederStopped> {
        let mut fed = 0;
        for _ in 0..self.pages.div_ceil(self.looks).max(MIN_PAGES) {
            let Some(page) = sweep.feed_page_after(self.position.as_ref()).await? else {
                self.position = None;
                self.pages = self.pages_read;
                self.pages_read = 0;
                break;
            };
            fed += page.fed;
            self.pages_read += 1;
            self.position = Some(page.last_id);
        }
        Ok(fed)
    }
}
