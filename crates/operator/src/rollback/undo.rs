//! Sets rows back, page by page: check, compare and set, check again.

use std::collections::HashSet;
use std::time::Duration;

use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove, StatementError};
use bucket_brigade_common::ledger::{AdvisoryLock, PostgresLedger};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::row_id::RowId;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::classify::{SkipReason, SkippedRow, UndoClassifier};
use super::output::RollbackPrinter;
use super::queries::{
    MoveSelection, UndoTarget, mark_undone_checked, moves_to_undo, undo_moves, undone_by_us,
    undone_unchecked,
};
use crate::locks::{self, PauseGate, QuiescedFleet};
use crate::moved_row::MovedRow;
use crate::progress_bar::ProgressReporter;
use crate::retrying_store::DEFAULT_REQUESTS_IN_FLIGHT;
use crate::statements::retry_statement;
use crate::verify::count_moves;

/// Few enough that what was read of a page's copies is fresh when its rows are set.
const PAGE_ROWS: i64 = 200;

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
    ledger: &'a PostgresLedger,
    classifier: UndoClassifier<'a>,
    selection: MoveSelection,
    /// Ids that were asked for and not found yet.
    missing_ids: HashSet<String>,
    pub(super) printer: RollbackPrinter,
}

impl<'a> RollbackRun<'a> {
    pub(super) fn new(
        ledger: &'a PostgresLedger,
        classifier: UndoClassifier<'a>,
        selection: MoveSelection,
        printer: RollbackPrinter,
    ) -> Self {
        let missing_ids = match &selection {
            MoveSelection::Ids(ids) => ids.iter().cloned().collect(),
            _ => HashSet::new(),
        };
        Self {
            ledger,
            classifier,
            selection,
            missing_ids,
            printer,
        }
    }

    /// Goes on to the end; false when it was stopped before. Without the fleet's lock it changes nothing.
    pub(super) async fn run(
        &mut self,
        mut lock: AdvisoryLock,
        mut fleet: Option<QuiescedFleet>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        if fleet.is_some() {
            self.finish_interrupted().await?;
        }
        let ledger = self.ledger;
        let mut progress = ProgressReporter::new("rolling back", count_moves(ledger).await?);
        let (mut cursor, mut pause): (Option<String>, _) = (None, PauseGate::default());
        while !stop.is_cancelled() {
            pause.wait(ledger, stop).await?;
            locks::ensure_held(ledger, &mut lock).await?;
            if let Some(fleet) = &mut fleet {
                fleet.ensure_quiesced(ledger).await?;
            }
            let (selection, after) = (&self.selection, cursor.as_deref());
            let read = async || moves_to_undo(ledger, selection, after, PAGE_ROWS).await;
            let page = retry_statement(read).await?;
            let Some(last) = page.last() else {
                self.skip_missing()?;
                return Ok(true);
            };
            cursor = Some(last.id.clone());
            progress.advance_by(page.len());
            self.process_page(page, fleet.is_some()).await?;
        }
        Ok(false)
    }

    /// Checks the copies of a rollback that was killed before it could.
    async fn finish_interrupted(&mut self) -> anyhow::Result<()> {
        let mut cursor: Option<String> = None;
        loop {
            let page = undone_unchecked(self.ledger, cursor.as_deref(), PAGE_ROWS).await?;
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

    async fn process_page(&mut self, page: Vec<MovedRow>, for_real: bool) -> anyhow::Result<()> {
        for row in &page {
            self.missing_ids.remove(&row.id);
        }
        let (mut targets, skipped) = self.classify_all(page).await?;
        self.printer.print_skipped(skipped)?;
        if for_real {
            let undone = self.undo_all(targets).await?;
            targets = self.recheck_copies(undone).await?;
        }
        self.printer.count_undone(targets.len());
        Ok(())
    }

    async fn classify_all(
        &self,
        page: Vec<MovedRow>,
    ) -> Result<(Vec<UndoTarget>, Vec<SkippedRow>), StoreError> {
        let rows = page.into_iter();
        let requests = rows.map(|row| self.classifier.classify_row(row));
        let verdicts: Vec<Result<UndoTarget, SkippedRow>> = stream::iter(requests)
            .buffered(DEFAULT_REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let (mut targets, mut skipped) = (Vec::new(), Vec::new());
        for verdict in verdicts {
            match verdict {
                Ok(target) => targets.push(target),
                Err(row) => skipped.push(row),
            }
        }
        Ok((targets, skipped))
    }

    /// Sets them back; rows that are locked are tried again for a while. Returns those that went back.
    async fn undo_all(&mut self, mut undos: Vec<UndoTarget>) -> anyhow::Result<Vec<UndoTarget>> {
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
        self.printer.print_skipped(locked)?;
        Ok(undone)
    }

    /// One refused row makes the database refuse the whole statement: halves find the culprit.
    async fn undo_batch(&mut self, undos: &[UndoTarget]) -> anyhow::Result<UndoOutcome> {
        let mut tried = UndoOutcome::default();
        let mut batches = vec![undos.to_vec()];
        while let Some(batch) = batches.pop() {
            match undo_moves(self.ledger, &batch).await {
                Ok(ids) => tried.undone.extend(ids),
                Err(StatementError::Unavailable(reason)) => {
                    tracing::info!("looking what became of {} rows: {reason}", batch.len());
                    let read = async || undone_by_us(self.ledger, &batch).await;
                    tried.undone.extend(retry_statement(read).await?);
                }
                Err(StatementError::Rejected { code, message }) => match &batch[..] {
                    [] => {}
                    [one] => {
                        let detail = Some(format!("{code}: {message}"));
                        let row = SkippedRow::new(&one.row, SkipReason::Refused, detail);
                        self.printer.print_skipped([row])?;
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
    async fn skip_changed(&mut self, rest: Vec<UndoTarget>) -> anyhow::Result<Vec<UndoTarget>> {
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
            self.printer.print_skipped([row])?;
        }
        Ok(still)
    }

    /// A row whose image the application replaced while the row was set back names that image again.
    async fn recheck_copies(&mut self, undone: Vec<UndoTarget>) -> anyhow::Result<Vec<UndoTarget>> {
        let requests = undone.into_iter().map(|undo| async {
            let is_replaced = self.classifier.is_copy_replaced(&undo).await?;
            Ok::<_, StoreError>((undo, is_replaced))
        });
        let checked: Vec<(UndoTarget, bool)> = stream::iter(requests)
            .buffered(DEFAULT_REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
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
        self.printer.print_skipped(skipped)?;
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

    fn skip_missing(&mut self) -> anyhow::Result<()> {
        let mut ids: Vec<String> = self.missing_ids.drain().collect();
        ids.sort();
        let skipped = ids.into_iter().map(|id| SkippedRow {
            id,
            path: None,
            reason: SkipReason::NotMoved,
            detail: None,
        });
        self.printer.print_skipped(skipped)
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
    }
}
