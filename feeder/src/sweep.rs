//! One sweep: from the cursor to the table's end, page by page. The cursor advances only past rows
//! whose sends the queue confirmed.

use std::time::Duration;

use bucket_brigade_common::catalog::Failure;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::queue::BATCH;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::{Page, Position, Scope};
use tokio::time::Instant;

use crate::backlog::BacklogLimit;
use crate::canary::Canary;
use crate::persist::{Persist, Stopped};
use crate::progress::{FEEDING, Progress};
use crate::send::{Send, failure};
use crate::steering::{PAUSED, Steering};

/// How often a paused feeder looks whether it may go on.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a feeder that is held back in the middle of a page does.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Rows sent between two looks at the orders.
const AT_ONCE: usize = 1000;

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
    /// A part only; none for all rows.
    pub canary: Option<Canary>,
    /// What holds the feeder back.
    pub steering: &'a Steering,
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
            let left = self.left_of(position.sweep_fed);
            if left == Some(0) {
                return Ok(position.sweep_fed);
            }
            let cursor = position.cursor;
            let page = self
                .persist
                .database("reading a page", async || {
                    self.scope.page(cursor.as_ref(), self.page_size).await
                })
                .await?;
            let page = self.part_of(page, left);
            let Some(last) = page.last.clone() else {
                return Ok(position.sweep_fed);
            };
            let fed = self.feed(page).await?;
            self.advance(&last, fed).await?;
        }
    }

    /// How many rows a canary may still feed; none for any number.
    fn left_of(&self, fed: u64) -> Option<u64> {
        let limit = self.canary.and_then(|canary| canary.limit);
        limit.map(|limit| limit.saturating_sub(fed))
    }

    /// What a canary feeds of a page: the sample, up to the limit.
    fn part_of(&self, mut page: Page, left: Option<u64>) -> Page {
        if let Some(canary) = self.canary {
            page.rows.retain(|(id, _)| canary.wants(id));
        }
        let most = left.map_or(usize::MAX, |left| {
            usize::try_from(left).unwrap_or(usize::MAX)
        });
        if page.rows.len() > most {
            page.rows.truncate(most);
            page.last = page.rows.last().map(|(id, _)| id.clone());
        }
        page
    }

    async fn advance(&self, last: &RowId, fed: u64) -> Result<(), Stopped> {
        self.persist
            .database("moving the cursor", async || {
                let began = Instant::now();
                let answer = self.scope.advance(last, fed).await;
                self.steering.wrote(began.elapsed());
                answer
            })
            .await
    }

    async fn wait_while_paused(&self) -> Result<Position, Stopped> {
        loop {
            let position = self
                .persist
                .database("reading the cursor", async || self.scope.position().await)
                .await?;
            if !position.paused {
                self.steering.set_rate(position.rate_limit);
                return Ok(position);
            }
            self.progress.set_phase(PAUSED);
            self.persist.pause(PAUSE).await?;
        }
    }

    /// In the middle of a page, however long it takes to send.
    async fn wait_while_held(&self) -> Result<(), Stopped> {
        let mut was_held = false;
        while let Some((phase, _)) = self.steering.held() {
            was_held = true;
            self.progress.set_phase(phase);
            self.persist.pause(LOOK_AGAIN).await?;
        }
        if was_held {
            self.progress.set_phase(FEEDING);
        }
        Ok(())
    }

    /// Sends a page as operator, database and backlog allow; rows without a route are recorded as failed.
    async fn feed(&mut self, page: Page) -> Result<u64, Stopped> {
        let (rows, failures) = self.sort(page.rows);
        if !failures.is_empty() {
            self.send.record(&failures).await?;
        }
        let mut rest = &rows[..];
        while !rest.is_empty() {
            self.wait_while_held().await?;
            let most = self.steering.rate().map_or(AT_ONCE, |_| BATCH);
            let room = self.backlog.take(rest.len().min(most)).await?;
            let (now, later) = rest.split_at(room);
            self.send.send_all(now).await?;
            self.keep_rate(room).await?;
            rest = later;
        }
        Ok(u64::try_from(rows.len()).unwrap_or(0))
    }

    /// Waits for as long as so many rows take at the rate limit, which may change meanwhile.
    async fn keep_rate(&self, rows: usize) -> Result<(), Stopped> {
        let began = Instant::now();
        while let Some(rate) = self.steering.rate() {
            let left = share_of_a_second(rows, rate).saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            self.progress.set_phase("feeding at the rate limit");
            self.persist.pause(left.min(LOOK_AGAIN)).await?;
        }
        Ok(())
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
