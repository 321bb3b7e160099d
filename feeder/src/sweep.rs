//! One sweep: from the cursor to the table's end, page by page. The cursor advances only past rows
//! whose sends the queue confirmed.

use std::time::Duration;

use bucket_brigade_common::catalog::Failure;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::{Page, Position, Scope};
use futures::future::try_join;
use tokio::time::Instant;

use crate::backlog::BacklogLimit;
use crate::canary::Canary;
use crate::persist::{Persist, Stopped};
use crate::place::Place;
use crate::progress::{FEEDING, Progress};
use crate::rate::Rate;
use crate::send::{Send, failure};
use crate::steering::{PAUSED, Steering};

/// How often a feeder that spares the database looks whether it may go on.
const HELD: Duration = Duration::from_millis(200);

/// How often the ledger is looked at: for the end of a pause, and, while a page takes its time, for a
/// pause or another rate.
const LOOK: Duration = Duration::from_secs(1);

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
    /// How fast they may go.
    pub rate: Rate,
    /// When the ledger was asked last whether they may.
    pub looked: Instant,
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

impl<'a> Sweep<'a> {
    /// Feeds everything in scope after the cursor. Returns the rows fed in the whole sweep, those of
    /// earlier processes included. While a page is sent the next one is read.
    ///
    /// # Errors
    /// [`Stopped`]; the cursor stands past rows whose sends were all confirmed.
    pub async fn run(mut self) -> Result<u64, Stopped> {
        let place = self.place();
        let position = self.look().await?;
        let mut left = self.left_of(position.sweep_fed);
        let mut page = place.page(position.cursor.as_ref()).await?;
        let mut sent = None;
        while left != Some(0) {
            let part = self.part_of(page, left);
            left = left.map(|left| left.saturating_sub(part.rows.len()));
            let Some(last) = part.last.clone() else {
                break;
            };
            let beside = place.turn(sent, &last);
            let (fed, (next, is_paused)) = try_join(self.feed(part), beside).await?;
            sent = Some((last, fed));
            page = next;
            if is_paused {
                self.look().await?;
            }
        }
        if let Some(sent) = &sent {
            place.advance(sent).await?;
        }
        Ok(self.look().await?.sweep_fed)
    }

    fn place(&self) -> Place<'a> {
        Place {
            scope: self.scope,
            page_size: self.page_size,
            steering: self.steering,
            persist: self.persist,
        }
    }

    /// How many rows a canary may still feed; none for any number.
    fn left_of(&self, fed: u64) -> Option<usize> {
        let limit = self.canary.and_then(|canary| canary.limit);
        limit.map(|limit| usize::try_from(limit.saturating_sub(fed)).unwrap_or(usize::MAX))
    }

    /// What a canary feeds of a page: the sample, up to the limit.
    fn part_of(&self, mut page: Page, left: Option<usize>) -> Page {
        if let Some(canary) = self.canary {
            page.rows.retain(|(id, _)| canary.wants(id));
        }
        let most = left.unwrap_or(usize::MAX);
        if page.rows.len() > most {
            page.rows.truncate(most);
            page.last = page.rows.last().map(|(id, _)| id.clone());
        }
        page
    }

    /// Where the feeding stands, and how fast it may go on.
    async fn look(&mut self) -> Result<Position, Stopped> {
        let position = self.wait_while_paused().await?;
        self.rate.set(position.rate_limit);
        self.looked = Instant::now();
        Ok(position)
    }

    async fn wait_while_paused(&self) -> Result<Position, Stopped> {
        loop {
            let position = self.place().position().await?;
            if !position.paused {
                return Ok(position);
            }
            self.progress.set_phase(PAUSED);
            self.persist.pause(LOOK).await?;
        }
    }

    /// Spares a slow database, and obeys a pause that was heard of already.
    async fn wait_while_held(&self) -> Result<(), Stopped> {
        let mut was_held = false;
        while let Some((phase, _)) = self.steering.held() {
            was_held = true;
            self.progress.set_phase(phase);
            self.persist.pause(HELD).await?;
        }
        if was_held {
            self.progress.set_phase(FEEDING);
        }
        Ok(())
    }

    /// Sends a page as backlog and rate allow; rows without a route are recorded as failed. Returns how
    /// many rows were fed since the cursor moved last: while a page takes its time, it moves within it.
    async fn feed(&mut self, page: Page) -> Result<usize, Stopped> {
        let (rows, failures) = self.sort(page.rows);
        if !failures.is_empty() {
            self.send.record(&failures).await?;
        }
        let (mut rest, mut fed, mut advanced) = (&rows[..], 0, Instant::now());
        while !rest.is_empty() {
            let (now, later) = rest.split_at(self.room(rest.len()).await?);
            self.send.send_all(now).await?;
            (rest, fed) = (later, fed + now.len());
            if let Some((cursor, _)) = now.last()
                && advanced.elapsed() >= LOOK
            {
                self.place().advance(&(cursor.clone(), fed)).await?;
                (fed, advanced) = (0, Instant::now());
            }
        }
        Ok(fed)
    }

    /// Waits until some of so many rows may go; how many.
    async fn room(&mut self, rows: usize) -> Result<usize, Stopped> {
        self.wait_while_held().await?;
        while let Some(wait) = self.rate.wait() {
            self.persist.pause(wait.min(LOOK)).await?;
            self.look_again().await?;
        }
        let room = self.backlog.take(rows.min(self.rate.portion())).await?;
        self.look_again().await?;
        self.rate.took(room);
        if self.rate.is_limited() {
            self.progress.set_phase("feeding at the rate limit");
        }
        Ok(room)
    }

    /// Obeys a pause or another rate also within a page.
    async fn look_again(&mut self) -> Result<(), Stopped> {
        if self.looked.elapsed() >= LOOK {
            self.look().await?;
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
