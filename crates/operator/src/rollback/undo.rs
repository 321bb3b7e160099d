//! Sets rows back, page by page: check, compare and set, check again.

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove, StatementError};
use bucket_brigade_common::ledger::{AdvisoryLock, PostgresLedger};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::row_id::RowId;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::classify::{SkipReason, SkippedRow, UndoClassifier};
use super::output::RollbackPrinter;
use super::queries::{
    MoveSelection, UndoTarget, mark_undone_checked, moves_by_id, undo_moves, undone_by_us,
    undone_unchecked,
};
use super::source::{IdPage, PAGE_ROWS, RowSource};
use crate::command_cursor::{CommandCursor, CursorLap};
use crate::command_throttle::CommandThrottle;
use crate::locks::{self, QuiescedFleet};
use crate::moved_row::MovedRow;
use crate::page_pipeline::{PageOrder, ensure_not_stopped, is_complete, run_pages};
use crate::retrying_store::RequestSlots;
use crate::statements::retry_statement;
use crate::verify::count_moves;

/// How often locks and queue are looked at, which lags by seconds itself.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// Tries of a row that a transaction of the application holds.
const MAX_ATTEMPTS: u32 = 10;

const LOCKED_ROW_BACKOFF: Duration = Duration::from_millis(200);

/// What became of a statement's rows; of the others nothing did.
#[derive(Default)]
struct UndoOutcome {
    undone: HashSet<String>,
    refused: HashSet<String>,
}

pub(super) struct RollbackRun<'a> {
    pub(super) ledger: &'a PostgresLedger,
    pub(super) classifier: UndoClassifier<'a>,
    pub(super) slots: RequestSlots,
    pub(super) throttle: &'a CommandThrottle<'a>,
    pub(super) selection: &'a MoveSelection,
    /// Ids that were asked for and not found yet.
    pub(super) missing_ids: RefCell<HashSet<String>>,
    pub(super) printer: RefCell<RollbackPrinter>,
    pub(super) stop: &'a CancellationToken,
}

/// What keeps others out of the run while rows go back.
pub(super) struct RollbackLocks {
    pub(super) lock: AdvisoryLock,
    /// None where nothing is changed.
    pub(super) fleet: Option<QuiescedFleet>,
    checked_at: Option<Instant>,
}

impl RollbackLocks {
    pub(super) fn new(lock: AdvisoryLock, fleet: Option<QuiescedFleet>) -> Self {
        Self {
            lock,
            fleet,
            checked_at: None,
        }
    }

    async fn ensure_held(&mut self, ledger: &PostgresLedger) -> anyhow::Result<()> {
        let is_fresh = |at: Instant| at.elapsed() < CHECK_INTERVAL;
        if self.checked_at.is_some_and(is_fresh) {
            return Ok(());
        }
        locks::ensure_held(ledger, &mut self.lock).await?;
        if let Some(fleet) = &mut self.fleet {
            fleet.ensure_quiesced(ledger).await?;
        }
        self.checked_at = Some(Instant::now());
        Ok(())
    }
}

impl RollbackRun<'_> {
    /// Whether the end was reached, and whether no row was left alone. Without the fleet's lock it changes nothing.
    pub(super) async fn run(self, locks: RollbackLocks) -> anyhow::Result<(bool, bool)> {
        if locks.fleet.is_some() {
            self.finish_interrupted().await?;
        }
        let is_complete = is_complete(self.run_pages(locks).await)?;
        if is_complete {
            self.skip_missing()?;
        }
        let is_whole = self.printer.into_inner().print_summary()?;
        Ok((is_complete, is_whole))
    }

    async fn run_pages(&self, mut locks: RollbackLocks) -> anyhow::Result<()> {
        let (ledger, for_real) = (self.ledger, locks.fleet.is_some());
        let cursor = CommandCursor::new(ledger, "rollback", "all".into());
        let has_cursor = for_real && *self.selection == MoveSelection::All;
        let lap = if has_cursor {
            cursor.load().await?
        } else {
            CursorLap::default()
        };
        let mut source = RowSource::open(ledger, self.selection, lap).await?;
        let total = match source.count() {
            Some(count) => u64::try_from(count)?,
            None => count_moves(ledger).await?,
        };
        self.throttle.begin_phase("rolling back", total);
        let read = async || {
            ensure_not_stopped(self.stop)?;
            let page = source.next_page().await?;
            let count = page.as_ref().map_or(1, |(ids, _)| ids.len().max(1));
            self.throttle.acquire(count, self.stop).await;
            ensure_not_stopped(self.stop)?;
            locks.ensure_held(ledger).await?;
            Ok(page)
        };
        let work = async |(ids, cursor): IdPage| {
            let count = ids.len();
            self.process_page(ids, for_real).await?;
            self.throttle.advance_by(count);
            Ok(cursor)
        };
        let record = async |after: Option<String>, order| {
            let after = after.filter(|_| has_cursor && order == PageOrder::Unbroken);
            match after {
                Some(after) => Ok(cursor.save(&after).await?),
                None => Ok(()),
            }
        };
        run_pages(read, work, record).await?;
        if has_cursor {
            cursor.clear().await?;
        }
        Ok(())
    }

    /// Checks the copies of a rollback that was killed before it could.
    async fn finish_interrupted(&self) -> anyhow::Result<()> {
        let (mut cursor, size): (Option<String>, _) = (None, i64::try_from(PAGE_ROWS)?);
        loop {
            let page = undone_unchecked(self.ledger, cursor.as_deref(), size).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            cursor = Some(last.id.clone());
            let (back, others): (Vec<_>, Vec<_>) = page
                .into_iter()
                .map(|row| (row.id.clone(), self.classifier.as_undone(row)))
                .partition(|(_, undo)| undo.is_some());
            let others: Vec<String> = others.into_iter().map(|(id, _)| id).collect();
            mark_undone_checked(self.ledger, &others).await?;
            self.recheck_copies(back.into_iter().filter_map(|(_, undo)| undo).collect())
                .await?;
        }
    }

    async fn process_page(&self, ids: Vec<String>, for_real: bool) -> anyhow::Result<()> {
        let page = retry_statement(async || moves_by_id(self.ledger, &ids).await).await?;
        for row in &page {
            self.missing_ids.borrow_mut().remove(&row.id);
        }
        let (mut targets, skipped) = self.classify_all(page).await?;
        self.print_skipped(skipped)?;
        if for_real {
            ensure_not_stopped(self.stop)?;
            let undone = self.undo_all(targets).await?;
            targets = self.recheck_copies(undone).await?;
        }
        self.printer.borrow_mut().count_undone(targets.len());
        Ok(())
    }

    fn print_skipped(&self, rows: impl IntoIterator<Item = SkippedRow>) -> anyhow::Result<()> {
        self.printer.borrow_mut().print_skipped(rows)
    }

    async fn classify_all(
        &self,
        page: Vec<MovedRow>,
    ) -> anyhow::Result<(Vec<UndoTarget>, Vec<SkippedRow>)> {
        let checks = page.into_iter().map(|row| async {
            ensure_not_stopped(self.stop)?;
            anyhow::Ok(self.classifier.classify_row(row).await?)
        });
        let (mut targets, mut skipped) = (Vec::new(), Vec::new());
        for verdict in self.slots.run_all(checks).await? {
            match verdict {
                Ok(target) => targets.push(target),
                Err(row) => skipped.push(row),
            }
        }
        Ok((targets, skipped))
    }

    /// Sets them back; rows that are locked are tried again for a while. Returns those that went back.
    async fn undo_all(&self, mut undos: Vec<UndoTarget>) -> anyhow::Result<Vec<UndoTarget>> {
        let mut undone = Vec::new();
        for tries in 1..=MAX_ATTEMPTS {
            let UndoOutcome {
                undone: back,
                refused,
            } = self.undo_batch(&undos).await?;
            let (now, mut rest): (Vec<_>, Vec<_>) = undos
                .into_iter()
                .partition(|undo| back.contains(&undo.row.id));
            undone.extend(now);
            rest.retain(|undo| !refused.contains(&undo.row.id));
            undos = self.skip_changed(rest).await?;
            if undos.is_empty() {
                break;
            }
            if tries < MAX_ATTEMPTS {
                sleep(LOCKED_ROW_BACKOFF).await;
            }
        }
        let locked = undos.iter();
        let locked = locked.map(|undo| SkippedRow::new(&undo.row, SkipReason::Locked, None));
        self.print_skipped(locked)?;
        Ok(undone)
    }

    /// One refused row makes the database refuse the whole statement: halves find the culprit.
    async fn undo_batch(&self, undos: &[UndoTarget]) -> anyhow::Result<UndoOutcome> {
        let mut tried = UndoOutcome::default();
        let mut batches = vec![undos.to_vec()];
        while let Some(batch) = batches.pop() {
            match self.throttle.write(undo_moves(self.ledger, &batch)).await {
                Ok(ids) => tried.undone.extend(ids),
                Err(StatementError::Unavailable(reason)) => {
                    tracing::info!("looking what became of {} rows: {reason}", batch.len());
                    let read = async || undone_by_us(self.ledger, &batch).await;
                    tried.undone.extend(retry_statement(read).await?);
                }
                // Refused without rows too, it is the statement.
                Err(error @ StatementError::Suspect { .. })
                    if undo_moves(self.ledger, &[]).await.is_err() =>
                {
                    return Err(error.into());
                }
                Err(
                    StatementError::Suspect { code, message }
                    | StatementError::Rejected { code, message },
                ) => match &batch[..] {
                    [] => {}
                    [one] => {
                        let detail = Some(format!("{code}: {message}"));
                        let row = SkippedRow::new(&one.row, SkipReason::Refused, detail);
                        self.print_skipped([row])?;
                        tried.refused.insert(one.row.id.clone());
                    }
                    many => {
                        let (first, second) = many.split_at(many.len() / 2);
                        batches.extend([first.to_vec(), second.to_vec()]);
                    }
                },
            }
        }
        Ok(tried)
    }

    /// Of rows that were not set back, those that still could be. The others have changed meanwhile.
    async fn skip_changed(&self, rest: Vec<UndoTarget>) -> anyhow::Result<Vec<UndoTarget>> {
        let ids = rest
            .iter()
            .map(|undo| RowId::from_database(undo.row.id.clone()));
        let ids: Vec<RowId> = ids.collect();
        let now = retry_statement(async || self.ledger.read_rows(&ids).await).await?;
        let mut still = Vec::new();
        for undo in rest {
            let path = now.get(&RowId::from_database(undo.row.id.clone()));
            let reason = match path.map(|row| &row.path) {
                None => SkipReason::Deleted,
                Some(path) if *path == undo.row.new_path => {
                    still.push(undo);
                    continue;
                }
                Some(_) => SkipReason::Changed,
            };
            let row = SkippedRow::new(&undo.row, reason, None);
            self.print_skipped([row])?;
        }
        Ok(still)
    }

    /// A row whose image the application replaced while the row was set back names that image again.
    async fn recheck_copies(&self, undone: Vec<UndoTarget>) -> anyhow::Result<Vec<UndoTarget>> {
        let checks = undone.into_iter().map(|undo| async {
            let is_replaced = self.classifier.is_copy_replaced(&undo).await?;
            Ok::<_, StoreError>((undo, is_replaced))
        });
        let checked = self.slots.run_all(checks).await?;
        let (replaced, back): (Vec<_>, Vec<_>) = checked
            .into_iter()
            .partition(|(_, is_replaced)| *is_replaced);
        let replaced: Vec<UndoTarget> = replaced.into_iter().map(|(undo, _)| undo).collect();
        let back: Vec<UndoTarget> = back.into_iter().map(|(undo, _)| undo).collect();
        let stuck = self.reapply_moves(&replaced).await?;
        let ids = back.iter().chain(&replaced).map(|undo| undo.row.id.clone());
        let ids: Vec<String> = ids.filter(|id| !stuck.contains(id)).collect();
        retry_statement(async || mark_undone_checked(self.ledger, &ids).await).await?;
        let skipped = replaced.iter();
        let skipped =
            skipped.map(|undo| SkippedRow::new(&undo.row, SkipReason::CopyReplaced, None));
        self.print_skipped(skipped)?;
        Ok(back)
    }

    /// Moves them once more, as a consumer would. A row that the application has changed meanwhile stays.
    /// Returns those that are locked: the next rollback tries again.
    async fn reapply_moves(&self, replaced: &[UndoTarget]) -> anyhow::Result<HashSet<String>> {
        let mut rest: Vec<PendingMove> = replaced.iter().map(original_move).collect();
        for _ in 0..MAX_ATTEMPTS {
            if rest.is_empty() {
                return Ok(HashSet::new());
            }
            let moved = self.ledger.commit(&rest).await?;
            rest.retain(|one| !moved.contains(&one.id));
            let ids: Vec<RowId> = rest.iter().map(|one| one.id.clone()).collect();
            let now = self.ledger.read_rows(&ids).await?;
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

    fn skip_missing(&self) -> anyhow::Result<()> {
        let mut ids: Vec<String> = self.missing_ids.borrow_mut().drain().collect();
        ids.sort();
        let skipped = ids.into_iter().map(|id| SkippedRow {
            id,
            path: None,
            reason: SkipReason::NotMoved,
            detail: None,
        });
        self.print_skipped(skipped)
    }
}

/// The move as it was: what the consumer committed.
fn original_move(undo: &UndoTarget) -> PendingMove {
    PendingMove {
        id: RowId::from_database(undo.row.id.clone()),
        old_path: undo.row.old_path.clone(),
        new_path: undo.row.new_path.clone(),
        destination_key: undo.destination_key.clone(),
        etag: undo.row.etag.clone(),
        size_bytes: undo.row.size_bytes,
        is_source_gone: false,
        companions: undo.row.companions.0.clone(),
    }
}
