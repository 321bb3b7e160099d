//! The pass over what may go: first what an earlier clean was cut off in, then page by page from where that
//! clean was.

use std::cell::Cell;
use std::collections::HashSet;

use bucket_brigade_common::ledger::AdvisoryLock;
use bucket_brigade_common::object_store::s3::S3Store;
use tokio_util::sync::CancellationToken;

use super::batch::{CleanedPage, ObjectCleaner};
use super::candidates::CandidatePage;
use super::encoded_paths::UnsettledSources;
use super::other_spellings::OtherSpellings;
use super::output::CleanPrinter;
use super::path_references::path_columns;
use super::removals::{ObjectRemoval, RemovalLedger};
use super::restore::ObjectRestorer;
use crate::command_cursor::{CommandCursor, CursorLap};
use crate::command_throttle::CommandThrottle;
use crate::locks::{self, QuiescedFleet};
use crate::page_pipeline::{PageOrder, run_pages};
use crate::retrying_store::RequestSlots;
use crate::statements::retry_statement;

pub(super) struct CleanPass<'a> {
    pub(super) removals: RemovalLedger<'a>,
    pub(super) store: &'a S3Store,
    pub(super) restorer: ObjectRestorer<'a>,
    pub(super) slots: RequestSlots,
    pub(super) throttle: &'a CommandThrottle<'a>,
    pub(super) other_spellings: OtherSpellings,
    pub(super) unsettled: UnsettledSources,
    pub(super) cursor: CommandCursor<'a>,
    pub(super) page_rows: i64,
}

/// Objects, and the cursor after them; none where it stays.
type RemovalPage = (Vec<ObjectRemoval>, Option<String>);

/// The next page of a pass.
struct CandidateReader<'a> {
    removals: RemovalLedger<'a>,
    interrupted: Option<InterruptedRemovals>,
    lap: CursorLap,
    page_rows: i64,
    /// Paths of what was interrupted, which is not looked at twice.
    interrupted_paths: HashSet<String>,
}

/// The last of them that was read.
#[derive(Default)]
struct InterruptedRemovals(Option<String>);

impl CleanPass<'_> {
    /// Whether anything may go: through the pages until there is something.
    pub(super) async fn has_candidates(&self, stop: &CancellationToken) -> anyhow::Result<bool> {
        let mut reader = self.reader(CursorLap::default());
        while !stop.is_cancelled() {
            self.throttle.wait_while_held(stop).await;
            match reader.next_page().await? {
                Some((page, _)) if page.is_empty() => {}
                page => return Ok(page.is_some()),
            }
        }
        Ok(false)
    }

    fn reader(&self, lap: CursorLap) -> CandidateReader<'_> {
        CandidateReader {
            removals: self.removals,
            interrupted: Some(InterruptedRemovals::default()),
            lap,
            page_rows: self.page_rows,
            interrupted_paths: HashSet::new(),
        }
    }

    /// Goes on to the end; false when it was stopped before.
    pub(super) async fn run(
        &self,
        mut lock: AdvisoryLock,
        mut fleet: Option<QuiescedFleet>,
        printer: &mut CleanPrinter<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let (ledger, bucket) = (self.removals.ledger, self.removals.bucket);
        let lap = self.cursor.load().await?;
        let mut reader = self.reader(lap);
        let (is_complete, is_closed) = (Cell::new(false), Cell::new(false));
        let read = async || {
            let page = reader.next_page().await?;
            let count = page.as_ref().map_or(1, |(page, _)| page.len().max(1));
            self.throttle.acquire(count, stop).await;
            if stop.is_cancelled() || is_closed.get() {
                return Ok(None);
            }
            locks::ensure_held(ledger, &mut lock).await?;
            if let Some(fleet) = &mut fleet {
                fleet.ensure_quiesced(ledger).await?;
                locks::ensure_no_other_fleet(ledger, bucket).await?;
            }
            is_complete.set(page.is_none());
            Ok(page)
        };
        let record = async |(cleaned, cursor): (CleanedPage, Option<String>), order| {
            printer.print_outcomes(&cleaned.outcomes)?;
            printer.print_outcomes(&cleaned.companions)?;
            printer.print_unsaved(&cleaned.unsaved)?;
            is_closed.set(printer.is_closed());
            if let Some(error) = cleaned.failure {
                return Err(error);
            }
            match cursor.filter(|_| order == PageOrder::Unbroken) {
                Some(cursor) => Ok(self.cursor.save(&cursor).await?),
                None => Ok(()),
            }
        };
        run_pages(read, async |page| self.clean_page(page).await, record).await?;
        if is_complete.get() {
            self.cursor.clear().await?;
        }
        Ok(is_complete.get())
    }

    async fn clean_page(
        &self,
        (page, cursor): RemovalPage,
    ) -> anyhow::Result<(CleanedPage, Option<String>)> {
        let (ledger, bucket, count) = (self.removals.ledger, self.removals.bucket, page.len());
        let cleaner = ObjectCleaner {
            pass: self,
            columns: path_columns(ledger, bucket).await?,
        };
        let cleaned = Box::pin(cleaner.process_page(page)).await?;
        self.throttle.advance_by(count);
        Ok((cleaned, cursor))
    }
}

impl CandidateReader<'_> {
    /// It may be empty: what may not go is passed over.
    async fn next_page(&mut self) -> anyhow::Result<Option<RemovalPage>> {
        if let Some(page) = self.next_interrupted().await? {
            return Ok(Some((page, None)));
        }
        loop {
            let candidates = self.removals.next_candidates(&self.lap, self.page_rows);
            let (mut page, last): CandidatePage = candidates.await?;
            if last.is_some() {
                page.retain(|removal| !self.interrupted_paths.contains(&removal.path));
                self.lap.after.clone_from(&last);
                let cursor = last.filter(|_| !self.lap.is_second());
                return Ok(Some((page, cursor)));
            }
            if !self.lap.begin_again() {
                return Ok(None);
            }
        }
    }

    async fn next_interrupted(&mut self) -> anyhow::Result<Option<Vec<ObjectRemoval>>> {
        let (removals, size) = (self.removals, self.page_rows);
        let Some(InterruptedRemovals(cursor)) = &mut self.interrupted else {
            return Ok(None);
        };
        let read = async || {
            let page = removals
                .interrupted_removals(cursor.as_deref(), size)
                .await?;
            removals.mark_interrupted(page).await
        };
        let page = retry_statement(read).await?;
        let Some(last) = page.last() else {
            self.interrupted = None;
            return Ok(None);
        };
        *cursor = Some(last.path.clone());
        self.interrupted_paths
            .extend(page.iter().map(|removal| removal.path.clone()));
        Ok(Some(page))
    }
}
