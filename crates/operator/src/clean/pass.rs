//! The pass over what may go: first what an earlier clean was cut off in, then page by page from where that
//! clean was.

use std::cell::Cell;
use std::collections::HashSet;

use bucket_brigade_common::object_store::s3::S3Store;
use tokio_util::sync::CancellationToken;

use super::batch::{CleanedPage, ObjectCleaner};
use super::encoded_paths::UnsettledSources;
use super::known_tables::KnownTables;
use super::other_spellings::OtherSpellings;
use super::output::CleanPrinter;
use super::path_references::path_columns;
use super::removals::{ObjectRemoval, RemovalLedger};
use super::restore::ObjectRestorer;
use crate::command_cursor::{CommandCursor, CursorLap};
use crate::command_throttle::CommandThrottle;
use crate::locks::{self, CommandLocks, LocksLost};
use crate::page_pipeline::{CommandStopped, run_pages, until_stopped};
use crate::retrying_store::RequestSlots;
use crate::statements::Pages;

pub(super) struct CleanPass<'a> {
    pub(super) removals: RemovalLedger<'a>,
    pub(super) store: &'a S3Store,
    pub(super) restorer: ObjectRestorer<'a>,
    pub(super) slots: RequestSlots,
    pub(super) throttle: &'a CommandThrottle<'a>,
    pub(super) stop: &'a CancellationToken,
    pub(super) other_spellings: OtherSpellings,
    pub(super) unsettled: UnsettledSources,
    pub(super) cursor: CommandCursor<'a>,
    pub(super) page_rows: i64,
    pub(super) tables: KnownTables,
}

struct CandidateReader<'a> {
    removals: RemovalLedger<'a>,
    interrupted: Option<Pages<'a>>,
    lap: CursorLap,
    page_rows: i64,
    /// Paths of what was interrupted, which is not looked at twice.
    interrupted_paths: HashSet<String>,
}

impl CleanPass<'_> {
    /// Whether anything may go: through the pages until there is something.
    pub(super) async fn has_candidates(&self) -> anyhow::Result<bool> {
        if !self.removals.orphans && !self.removals.has_old_moves().await? {
            let mut interrupted = self.removals.interrupted(1);
            let found = interrupted.next(|one: &ObjectRemoval| &one.path).await?;
            return Ok(found.is_some());
        }
        let mut reader = self.reader(CursorLap::default());
        loop {
            self.throttle.acquire(0, self.stop).await?;
            match reader.next_page().await? {
                Some((page, _)) if page.is_empty() => {}
                page => return Ok(page.is_some()),
            }
        }
    }

    fn reader(&self, lap: CursorLap) -> CandidateReader<'_> {
        CandidateReader {
            removals: self.removals,
            interrupted: Some(self.removals.interrupted(self.page_rows)),
            lap,
            page_rows: self.page_rows,
            interrupted_paths: HashSet::new(),
        }
    }

    /// Pages whose locks were lost are read anew.
    pub(super) async fn run(
        &self,
        mut locks: CommandLocks<'_>,
        printer: &mut CleanPrinter<'_>,
    ) -> anyhow::Result<()> {
        loop {
            match Box::pin(self.run_lap(&mut locks, printer)).await {
                // What was read of all rows, before the first page, may be another now.
                Err(error) if error.is::<LocksLost>() && self.removals.has_encoded_paths() => {
                    return Err(locks::busy_refusal(locks::LOST_LOCKS));
                }
                Err(error) if error.is::<LocksLost>() => {
                    until_stopped(self.stop, locks.reacquire_lost()).await?;
                }
                result => return result,
            }
        }
    }

    async fn run_lap(
        &self,
        locks: &mut CommandLocks<'_>,
        printer: &mut CleanPrinter<'_>,
    ) -> anyhow::Result<()> {
        let RemovalLedger { ledger, bucket, .. } = self.removals;
        let mut reader = self.reader(self.cursor.load().await?);
        let claims = locks.claims();
        let is_closed = Cell::new(false);
        let read = async || {
            let read = async {
                let page = reader.next_page().await?;
                let count = page.as_ref().map_or(1, |(page, _)| page.len().max(1));
                self.throttle.acquire(count, self.stop).await?;
                if is_closed.get() {
                    return Err(CommandStopped.into());
                }
                locks.ensure_held().await?;
                if locks.claims() != claims {
                    return Err(LocksLost.into());
                }
                // A source may be what another run's consumer points a row at.
                locks::ensure_no_other_fleet(ledger, bucket, self.removals.key_prefix()).await?;
                anyhow::Ok(page)
            };
            until_stopped(self.stop, read).await
        };
        let work = async |page: Vec<ObjectRemoval>| {
            let count = page.len();
            let cleaner = ObjectCleaner {
                pass: self,
                columns: until_stopped(self.stop, path_columns(ledger, bucket)).await?,
                claims: &claims,
            };
            let cleaned = Box::pin(cleaner.process_page(page)).await?;
            self.throttle.advance_by(count);
            Ok(cleaned)
        };
        let record = async |cleaned: CleanedPage, cursor: Option<String>| {
            printer.print_outcomes(&cleaned.outcomes)?;
            printer.print_outcomes(&cleaned.companions)?;
            printer.print_unsaved(&cleaned.unsaved)?;
            is_closed.set(printer.is_closed());
            match (cleaned.failure, cursor) {
                (Some(error), _) => Err(error),
                (None, Some(cursor)) => Ok(self.cursor.save(&cursor).await?),
                (None, None) => Ok(()),
            }
        };
        run_pages(read, work, record).await?;
        Ok(self.cursor.clear().await?)
    }
}

impl CandidateReader<'_> {
    /// Objects, and the cursor after them, none where it stays. The page may be empty: what may not go is passed over.
    async fn next_page(&mut self) -> anyhow::Result<Option<(Vec<ObjectRemoval>, Option<String>)>> {
        if let Some(interrupted) = &mut self.interrupted {
            if let Some(page) = interrupted.next(|one: &ObjectRemoval| &one.path).await? {
                let paths = page.iter().map(|removal| removal.path.clone());
                self.interrupted_paths.extend(paths);
                let page = self.removals.mark_interrupted(page).await?;
                return Ok(Some((page, None)));
            }
            self.interrupted = None;
        }
        loop {
            let candidates = self.removals.next_candidates(&self.lap, self.page_rows);
            let (mut page, last) = candidates.await?;
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
}
