//! One sweep: from the cursor to the table's end, page by page. The cursor advances only past rows
//! whose sends the queue confirmed.

use std::time::Duration;

use bucket_brigade_common::catalog::Failure;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::BATCH;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::{Page, Position, Scope};

use crate::backlog::BacklogLimit;
use crate::persist::{Persist, Stopped};
use crate::progress::Progress;
use crate::send::{Send, failure};

/// How often a paused feeder looks whether it may go on.
const PAUSED: Duration = Duration::from_secs(1);

/// What a sweep works with.
pub struct Sweep<'a> {
    /// The rows.
    pub scope: &'a dyn Scope,
    /// The path rule.
    pub rule: &'a PathRule,
    /// Where rows go.
    pub send: Send<'a>,
    /// How many may go.
    pub backlog: BacklogLimit<'a>,
    /// Rows read at a time.
    pub page_size: u32,
    /// Where the phase is shown.
    pub progress: &'a Progress,
    /// Tries again.
    pub persist: Persist<'a>,
}

impl Sweep<'_> {
    /// Feeds everything in scope after the cursor. Returns the rows fed in the whole sweep, those of
    /// earlier processes included.
    ///
    /// # Errors
    /// [`Stopped`]; the cursor stands at the last page whose sends were all confirmed.
    pub async fn run(mut self) -> Result<u64, Stopped> {
        loop {
            let position = self.wait_while_paused().await?;
            let cursor = position.cursor;
            let page = self
                .persist
                .database("reading a page", async || {
                    self.scope.page(cursor.as_ref(), self.page_size).await
                })
                .await?;
            let Some(last) = page.last.clone() else {
                return Ok(position.sweep_fed);
            };
            let fed = self.feed(page, position.rate_limit).await?;
            self.persist
                .database("moving the cursor", async || {
                    self.scope.advance(&last, fed).await
                })
                .await?;
        }
    }

    async fn wait_while_paused(&self) -> Result<Position, Stopped> {
        loop {
            let position = self
                .persist
                .database("reading the cursor", async || self.scope.position().await)
                .await?;
            if !position.paused {
                return Ok(position);
            }
            self.progress.set_phase("paused by an operator");
            self.persist.pause(PAUSED).await?;
        }
    }

    /// Sends a page as the backlog allows; rows without a route are recorded as failed.
    async fn feed(&mut self, page: Page, rate_limit: Option<f64>) -> Result<u64, Stopped> {
        let (rows, failures) = self.sort(page.rows);
        if !failures.is_empty() {
            self.send.record(&failures).await?;
        }
        let mut rest = &rows[..];
        while !rest.is_empty() {
            let most = rate_limit.map_or(rest.len(), |_| rest.len().min(BATCH));
            let room = self.backlog.take(most).await?;
            let (now, later) = rest.split_at(room);
            self.send.send_all(now).await?;
            if let Some(per_second) = rate_limit {
                self.progress.set_phase("feeding at the rate limit");
                self.persist
                    .pause(share_of_a_second(room, per_second))
                    .await?;
            }
            rest = later;
        }
        Ok(u64::try_from(rows.len()).unwrap_or(0))
    }

    /// Rows without a route are told from the others.
    fn sort(&self, rows: Vec<(RowId, String)>) -> (Vec<(RowId, String)>, Vec<Failure>) {
        let mut good = Vec::with_capacity(rows.len());
        let mut failures = Vec::new();
        for row in rows {
            match self.rule.route(&row.1) {
                Ok(_) => good.push(row),
                Err(reason) => failures.push(failure(row, reason.code(), reason.to_string())),
            }
        }
        (good, failures)
    }
}

fn share_of_a_second(rows: usize, per_second: f64) -> Duration {
    let rows = u32::try_from(rows).unwrap_or(u32::MAX);
    Duration::try_from_secs_f64(f64::from(rows) / per_second).unwrap_or(Duration::MAX)
}
