//! Sets rows back, page by page: check, compare and set, check again.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::time::Duration;

use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove, StatementError};
use bucket_brigade_common::ledger::{LockClaims, PostgresLedger, ensure_all_rows_visible};
use bucket_brigade_common::preflight::retry_transient;
use bucket_brigade_common::row_id::RowId;
use tokio::sync::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::classify::{SkipReason, SkippedRow, UndoClassifier};
use super::output::RollbackPrinter;
use super::queries::{
    UncheckedRow, UndoTarget, holds_locks, mark_undone_checked, moves_by_id, undo_moves,
    undone_by_us, undone_unchecked_sql,
};
use super::selection::MoveSelection;
use super::source::RowSource;
use crate::command_cursor::{CommandCursor, CursorLap};
use crate::command_throttle::CommandThrottle;
use crate::locks::CommandLocks;
use crate::page_pipeline::{ensure_not_stopped, is_complete, run_pages, until_stopped};
use crate::retrying_store::{RequestSlots, is_object_error};
use crate::statements::{MAX_RETRIES, Pages, RETRY_BACKOFF, retry_statement};

/// Tries of a row that a transaction of the application holds.
const MAX_ATTEMPTS: u32 = 10;

const LOCKED_ROW_BACKOFF: Duration = Duration::from_millis(200);

pub(super) struct RollbackRun<'a> {
    pub(super) ledger: &'a PostgresLedger,
    pub(super) classifier: UndoClassifier<'a>,
    pub(super) slots: RequestSlots,
    pub(super) throttle: &'a CommandThrottle<'a>,
    pub(super) selection: &'a MoveSelection,
    /// Ids that were asked for and not found yet.
    pub(super) missing_ids: RefCell<HashSet<String>>,
    /// The run's; none where nothing is to be changed.
    pub(super) fence: Cell<Option<i64>>,
    pub(super) printer: RefCell<RollbackPrinter>,
    pub(super) stop: &'a CancellationToken,
}

impl RollbackRun<'_> {
    /// Returns the exit code.
    pub(super) async fn run(self, locks: CommandLocks<'_>) -> anyhow::Result<u8> {
        let ended = is_complete(self.run_pages(&Mutex::new(locks)).await);
        if matches!(ended, Ok(true)) {
            self.skip_missing();
        }
        // Also of what an error has ended.
        let is_whole = self.printer.into_inner().print_summary()?;
        Ok(match (ended?, is_whole) {
            (false, _) => exit::STOPPED,
            (true, true) => exit::DONE,
            (true, false) => exit::ROWS_FAILED,
        })
    }

    async fn run_pages(&self, locks: &Mutex<CommandLocks<'_>>) -> anyhow::Result<()> {
        let (ledger, for_real) = (self.ledger, self.fence.get().is_some());
        if for_real {
            self.finish_interrupted().await?;
        }
        let cursor = CommandCursor::new(ledger, "rollback", "all".into());
        let has_cursor = for_real && *self.selection == MoveSelection::All;
        let lap = if has_cursor {
            cursor.load().await?
        } else {
            CursorLap::default()
        };
        let mut source = RowSource::open(ledger, self.selection, lap).await?;
        let total = match &source {
            RowSource::Collected(ids) => u64::try_from(ids.len())?,
            RowSource::Walk { .. } => ledger.run_progress().await?.moved,
        };
        self.throttle.begin_phase("rolling back", total);
        let read = async || {
            let read = async {
                let page = source.next_page().await?;
                let count = page.as_ref().map_or(1, |(ids, _)| ids.len().max(1));
                self.throttle.acquire(count, self.stop).await?;
                anyhow::Ok(page)
            };
            until_stopped(self.stop, read).await
        };
        let work = async |ids| self.process_page(ids, locks).await;
        let record = async |(), after: Option<String>| match after.filter(|_| has_cursor) {
            Some(after) => Ok(cursor.save(&after).await?),
            None => Ok(()),
        };
        run_pages(read, work, record).await?;
        if has_cursor {
            cursor.clear().await?;
        }
        Ok(())
    }

    /// Checks the copies of a rollback that was killed before it could.
    async fn finish_interrupted(&self) -> anyhow::Result<()> {
        let mut pages = Pages::new(self.ledger, undone_unchecked_sql(self.ledger.table()));
        while let Some(page) = pages.next(|row: &UncheckedRow| &row.row.id).await? {
            let (mut back, mut others) = (Vec::new(), Vec::new());
            for unchecked in page {
                let id = unchecked.row.id.clone();
                match self.classifier.as_undone(unchecked) {
                    Some(undo) => back.push(undo),
                    None => others.push(id),
                }
            }
            mark_undone_checked(self.ledger, &others).await?;
            let checked = until_stopped(self.stop, self.recheck_copies(back)).await?;
            self.settle_undone(checked).await?;
            self.printer.borrow_mut().print_skipped()?;
        }
        Ok(())
    }

    /// Rows that were looked at while a lock was lost are looked at again.
    async fn process_page(
        &self,
        mut ids: Vec<String>,
        locks: &Mutex<CommandLocks<'_>>,
    ) -> anyhow::Result<()> {
        let mut is_lost = false;
        while !ids.is_empty() {
            let lock = async {
                let mut locks = locks.lock().await;
                if is_lost {
                    locks.reacquire_lost().await?;
                } else {
                    locks.ensure_held().await?;
                }
                self.fence.set(locks.fence());
                anyhow::Ok(locks.claims())
            };
            let claims = until_stopped(self.stop, lock).await?;
            is_lost = true;
            let count = ids.len();
            ids = self.process_rows(ids, &claims).await?;
            self.throttle.advance_by(count - ids.len());
        }
        Ok(())
    }

    /// Returns the ids to be looked at again.
    async fn process_rows(
        &self,
        ids: Vec<String>,
        claims: &LockClaims,
    ) -> anyhow::Result<Vec<String>> {
        let read = retry_statement(async || moves_by_id(self.ledger, &ids).await);
        let page = until_stopped(self.stop, read).await?;
        if page.iter().any(|row| row.current_path.is_none()) {
            // A policy may have come since: a row that it hides was not deleted.
            let table = &self.ledger.table().sql;
            let visible =
                retry_transient(async || ensure_all_rows_visible(self.ledger.pool(), table).await);
            until_stopped(self.stop, visible).await?;
        }
        for row in &page {
            self.missing_ids.borrow_mut().remove(&row.id);
        }
        let checks = page.into_iter();
        let checks = checks.map(|row| until_stopped(self.stop, self.classifier.classify_row(row)));
        let mut targets = Vec::new();
        for verdict in self.slots.run_all(checks).await? {
            match verdict {
                Ok(target) => targets.push(target),
                Err(row) => self.printer.borrow_mut().add_skipped(row),
            }
        }
        let mut again = Vec::new();
        if self.fence.get().is_some() {
            ensure_not_stopped(self.stop)?;
            let (undone, rest) = self.undo_all(targets, claims).await?;
            again.extend(rest.into_iter().map(|undo| undo.row.id));
            let checked = self.recheck_copies(undone).await?;
            targets = self.settle_undone(checked).await?;
        }
        let mut printer = self.printer.borrow_mut();
        printer.count_undone(targets.len());
        printer.print_skipped()?;
        Ok(again)
    }

    fn skip(&self, undo: &UndoTarget, reason: SkipReason, detail: Option<String>) {
        let skipped = SkippedRow::new(&undo.row, reason, detail);
        self.printer.borrow_mut().add_skipped(skipped);
    }

    /// Sets them back; rows that are locked are tried again for a while. Returns those that went back, and those that
    /// may not by what is known of them, since a lock was lost.
    async fn undo_all(
        &self,
        mut undos: Vec<UndoTarget>,
        claims: &LockClaims,
    ) -> anyhow::Result<(Vec<UndoTarget>, Vec<UndoTarget>)> {
        let mut undone = Vec::new();
        if undos.is_empty() {
            return Ok((undone, undos));
        }
        for tries in 1..=MAX_ATTEMPTS {
            let (back, rest) = self.undo_batch(undos, claims).await?;
            undone.extend(back);
            let (late, rest) = self.skip_changed(rest).await?;
            undone.extend(late);
            undos = rest;
            let holds = async || holds_locks(self.ledger, claims).await;
            if undos.is_empty() || !retry_statement(holds).await? {
                return Ok((undone, undos));
            }
            if tries < MAX_ATTEMPTS {
                sleep(LOCKED_ROW_BACKOFF).await;
            }
        }
        for undo in &undos {
            self.skip(undo, SkipReason::Locked, None);
        }
        Ok((undone, Vec::new()))
    }

    /// One refused row makes the database refuse the whole statement: halves find the culprit. A database that
    /// does not carry it out is waited for. Returns those that went back, and those that a statement passed over.
    async fn undo_batch(
        &self,
        undos: Vec<UndoTarget>,
        claims: &LockClaims,
    ) -> anyhow::Result<(Vec<UndoTarget>, Vec<UndoTarget>)> {
        let undo = async |batch: &[UndoTarget]| undo_moves(self.ledger, batch, claims).await;
        let (mut undone, mut rest) = (Vec::new(), Vec::new());
        let (mut batches, mut delays) = (vec![undos], outage_delays());
        while let Some(mut batch) = batches.pop() {
            match self.throttle.write(undo(&batch)).await {
                Ok(ids) => {
                    delays = outage_delays();
                    let (back, others) = split_by_id(batch, &ids);
                    undone.extend(back);
                    rest.extend(others);
                }
                Err(error @ StatementError::Unavailable(_)) => {
                    tracing::info!("looking what became of {} rows: {error}", batch.len());
                    let (back, others) = self.find_undone(batch).await?;
                    undone.extend(back);
                    if !others.is_empty() {
                        self.wait_for_database(delays.next(), error).await?;
                        batches.push(others);
                    }
                }
                // Refused without rows too, it is the statement.
                Err(error @ StatementError::Suspect { .. }) if undo(&[]).await.is_err() => {
                    return Err(error.into());
                }
                Err(
                    StatementError::Suspect { code, message }
                    | StatementError::Rejected { code, message },
                ) => {
                    if batch.len() > 1 {
                        let second = batch.split_off(batch.len() / 2);
                        batches.extend([batch, second]);
                    } else if let Some(one) = batch.first() {
                        let detail = format!("{code}: {message}");
                        self.skip(one, SkipReason::Refused, Some(detail));
                    }
                }
            }
        }
        Ok((undone, rest))
    }

    /// Of rows whose statement failed, those that went back nevertheless, and the others.
    async fn find_undone(
        &self,
        batch: Vec<UndoTarget>,
    ) -> anyhow::Result<(Vec<UndoTarget>, Vec<UndoTarget>)> {
        if batch.is_empty() {
            return Ok((Vec::new(), batch));
        }
        let ids = retry_statement(async || undone_by_us(self.ledger, &batch).await).await?;
        Ok(split_by_id(batch, &ids))
    }

    /// Without a delay the outage has lasted too long.
    async fn wait_for_database(
        &self,
        delay: Option<Duration>,
        error: StatementError,
    ) -> anyhow::Result<()> {
        let Some(delay) = delay else {
            return Err(error.into());
        };
        sleep(delay).await;
        Ok(ensure_not_stopped(self.stop)?)
    }

    /// Of rows that were not set back, those that a statement without a response did set back after all, and those that
    /// still could be. The others have changed meanwhile.
    async fn skip_changed(
        &self,
        mut rest: Vec<UndoTarget>,
    ) -> anyhow::Result<(Vec<UndoTarget>, Vec<UndoTarget>)> {
        if rest.is_empty() {
            return Ok((Vec::new(), rest));
        }
        let id_of = |undo: &UndoTarget| RowId::from_database(undo.row.id.clone());
        let ids: Vec<RowId> = rest.iter().map(id_of).collect();
        let now = retry_statement(async || self.ledger.read_rows(&ids).await).await?;
        let path = |undo: &UndoTarget| now.get(&id_of(undo)).map(|row| &row.path);
        let is_back = |undo: &mut UndoTarget| path(undo) == Some(&undo.row.old_path);
        let back: Vec<_> = rest.extract_if(.., is_back).collect();
        let (late, others) = self.find_undone(back).await?;
        for undo in others.iter().chain(&rest) {
            match path(undo) {
                None => self.skip(undo, SkipReason::Deleted, None),
                Some(path) if *path == undo.row.new_path => {}
                Some(_) => self.skip(undo, SkipReason::Changed, None),
            }
        }
        rest.retain(|undo| path(undo) == Some(&undo.row.new_path));
        Ok((late, rest))
    }

    /// Each with whether the application replaced its image while the row was set back. What the store does not say
    /// of one is asked again by the next rollback.
    async fn recheck_copies(
        &self,
        undone: Vec<UndoTarget>,
    ) -> anyhow::Result<Vec<(UndoTarget, bool)>> {
        let checks = undone.into_iter().map(|undo| async {
            match self.classifier.is_copy_replaced(&undo).await {
                Ok(is_replaced) => Ok(Ok((undo, is_replaced))),
                Err(error) if is_object_error(&error) => Ok(Err((undo, error))),
                Err(error) => Err(error),
            }
        });
        let mut checked = Vec::new();
        for one in self.slots.run_all(checks).await? {
            match one {
                Ok(one) => checked.push(one),
                Err((undo, error)) => {
                    let detail = format!(
                        "it went back; whether its copy was replaced meanwhile is not known: {error}"
                    );
                    self.skip(&undo, SkipReason::Unreadable, Some(detail));
                }
            }
        }
        Ok(checked)
    }

    /// A row whose image was replaced names that image again. Returns the others.
    async fn settle_undone(
        &self,
        checked: Vec<(UndoTarget, bool)>,
    ) -> anyhow::Result<Vec<UndoTarget>> {
        let (mut replaced, mut back) = (Vec::new(), Vec::new());
        for (undo, is_replaced) in checked {
            let group = if is_replaced {
                &mut replaced
            } else {
                &mut back
            };
            group.push(undo);
        }
        let stuck = self.reapply_moves(&replaced).await?;
        let ids = back.iter().chain(&replaced).map(|undo| undo.row.id.clone());
        let ids: Vec<String> = ids.filter(|id| !stuck.contains(id)).collect();
        retry_statement(async || mark_undone_checked(self.ledger, &ids).await).await?;
        for undo in &replaced {
            self.skip(undo, SkipReason::CopyReplaced, None);
        }
        Ok(back)
    }

    /// Moves them once more, as a consumer would. A row that the application has changed meanwhile stays.
    /// Returns those that are locked: the next rollback tries again.
    async fn reapply_moves(&self, replaced: &[UndoTarget]) -> anyhow::Result<HashSet<String>> {
        let original = replaced.iter().map(|undo| self.original_move(undo));
        let mut rest: Vec<PendingMove> = original.collect();
        for _ in 0..MAX_ATTEMPTS {
            if rest.is_empty() {
                return Ok(HashSet::new());
            }
            let moves: Vec<&PendingMove> = rest.iter().collect();
            // Made again after a lost response it moves none, and their paths say that they have moved.
            let moved = retry_statement(async || self.ledger.commit(&moves).await).await?;
            rest.retain(|one| !moved.contains(&one.id));
            let ids: Vec<RowId> = rest.iter().map(|one| one.id.clone()).collect();
            let now = retry_statement(async || self.ledger.read_rows(&ids).await).await?;
            let is_back =
                |one: &PendingMove| now.get(&one.id).is_some_and(|row| row.path == one.old_path);
            rest.retain(is_back);
            sleep(LOCKED_ROW_BACKOFF).await;
        }
        for one in &rest {
            tracing::error!(
                id = %one.id,
                "row {} went back to '{}' while the application replaced its image at '{}', and is locked: end the transaction and run the same command again",
                one.id, one.old_path, one.new_path
            );
        }
        Ok(rest.iter().map(|one| one.id.as_str().to_owned()).collect())
    }

    /// The move as it was: what the consumer committed.
    fn original_move(&self, undo: &UndoTarget) -> PendingMove {
        PendingMove {
            id: RowId::from_database(undo.row.id.clone()),
            old_path: undo.row.old_path.clone(),
            new_path: undo.row.new_path.clone(),
            destination_key: undo.destination_key.clone(),
            etag: undo.row.etag.clone(),
            size_bytes: undo.row.size_bytes,
            is_source_gone: false,
            // One of ours is an orphan by now.
            is_found: true,
            companions: undo.row.companions.0.clone(),
            fence: self.fence.get().unwrap_or_default(),
        }
    }

    fn skip_missing(&self) {
        let mut ids: Vec<String> = self.missing_ids.borrow_mut().drain().collect();
        ids.sort();
        for id in ids {
            self.printer.borrow_mut().add_skipped(SkippedRow {
                id,
                path: None,
                reason: SkipReason::NotMoved,
                detail: None,
            });
        }
    }
}

fn outage_delays() -> impl Iterator<Item = Duration> {
    RETRY_BACKOFF.delays().take(MAX_RETRIES)
}

fn split_by_id(batch: Vec<UndoTarget>, ids: &[String]) -> (Vec<UndoTarget>, Vec<UndoTarget>) {
    let batch = batch.into_iter();
    batch.partition(|undo| ids.contains(&undo.row.id))
}
