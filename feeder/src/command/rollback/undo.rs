//! Sets rows back, page by page: look, compare and set, look again.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use bucket_brigade_common::catalog::{Catalog, CatalogError, Move};
use bucket_brigade_common::ledger::{FeederLock, Ledger, MovedRow, Selection, Undo};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::row_id::RowId;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::judge::{Judge, Left, Reason};
use crate::command::alone::{self, Fleet};
use crate::command::answer::Format;
use crate::command::gauge::Gauge;
use crate::command::listing::Listing;
use crate::command::store::IN_FLIGHT;

/// Few enough that the looks at a page's copies are fresh when its rows are set.
const PAGE: i64 = 200;

/// Tries of a row that a transaction of the application holds.
const TRIES: u32 = 10;

const LOCKED: Duration = Duration::from_millis(200);

/// What became of a statement's rows; of the others nothing did.
#[derive(Default)]
struct Tried {
    back: HashSet<String>,
    refused: HashSet<String>,
}

/// One rollback.
pub(super) struct Rollback<'a> {
    pub(super) ledger: &'a Ledger,
    judge: Judge<'a>,
    selection: Selection,
    pub(super) listing: Option<Listing<std::io::Stdout>>,
    pub(super) back: u64,
    pub(super) left: BTreeMap<Reason, u64>,
    not_seen: HashSet<String>,
}

impl<'a> Rollback<'a> {
    /// A rollback of the selection.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub(super) fn new(
        ledger: &'a Ledger,
        judge: Judge<'a>,
        selection: Selection,
        format: Format,
    ) -> anyhow::Result<Self> {
        let not_seen = match &selection {
            Selection::Ids(ids) => ids.iter().cloned().collect(),
            _ => HashSet::new(),
        };
        Ok(Self {
            ledger,
            judge,
            selection,
            listing: Some(Listing::begin(format, "left_alone")?),
            back: 0,
            left: BTreeMap::new(),
            not_seen,
        })
    }

    /// Goes on to the end; false when it was stopped before. Without the fleet's lock it only looks.
    ///
    /// # Errors
    /// The store or the database does not answer, or a lock is lost.
    pub(super) async fn run(
        &mut self,
        mut lock: FeederLock,
        mut fleet: Option<Fleet>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        if fleet.is_some() {
            self.finish_cut_off().await?;
        }
        let mut gauge = Gauge::new("rolling back", self.ledger.count_moves().await?);
        let mut cursor: Option<String> = None;
        while !stop.is_cancelled() {
            alone::still(&mut lock).await?;
            if let Some(fleet) = &mut fleet {
                fleet.is_still().await?;
            }
            let ledger = self.ledger;
            let page = ledger.moves_to_undo(&self.selection, cursor.as_deref(), PAGE);
            let page = page.await?;
            let Some(last) = page.last() else {
                gauge.clear();
                self.leave_those_not_moved()?;
                return Ok(true);
            };
            cursor = Some(last.id.clone());
            gauge.advance(page.len());
            self.page(page, fleet.is_some()).await?;
        }
        gauge.clear();
        Ok(false)
    }

    /// Looks once more at the rows of a rollback that was killed before it could.
    async fn finish_cut_off(&mut self) -> anyhow::Result<()> {
        let mut cursor: Option<String> = None;
        loop {
            let page = self.ledger.undone_unseen(cursor.as_deref(), PAGE).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            cursor = Some(last.id.clone());
            let (back, others): (Vec<_>, Vec<_>) = page
                .into_iter()
                .map(|row| (row.id.clone(), self.judge.set_back(row)))
                .partition(|(_, undo)| undo.is_some());
            let others: Vec<String> = others.into_iter().map(|(id, _)| id).collect();
            self.ledger.seen_after_undo(&others).await?;
            self.look_again(back.into_iter().filter_map(|(_, undo)| undo).collect())
                .await?;
        }
    }

    async fn page(&mut self, page: Vec<MovedRow>, for_real: bool) -> anyhow::Result<()> {
        for row in &page {
            self.not_seen.remove(&row.id);
        }
        let (undos, left) = self.judge_all(page).await?;
        self.leave(left)?;
        if for_real {
            let undone = self.undo_all(undos).await?;
            let back = self.look_again(undone).await?;
            self.back += count(&back);
        } else {
            self.back += count(&undos);
        }
        Ok(())
    }

    async fn judge_all(&self, page: Vec<MovedRow>) -> Result<(Vec<Undo>, Vec<Left>), StoreError> {
        let looks = page.into_iter().map(|row| self.judge.judge(row));
        let judged: Vec<Result<Undo, Left>> = stream::iter(looks)
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        let (mut undos, mut left) = (Vec::new(), Vec::new());
        for one in judged {
            match one {
                Ok(undo) => undos.push(undo),
                Err(alone) => left.push(alone),
            }
        }
        Ok((undos, left))
    }

    /// Sets them back; rows that are locked are tried again for a while. Returns those that went back.
    async fn undo_all(&mut self, mut undos: Vec<Undo>) -> anyhow::Result<Vec<Undo>> {
        let mut undone = Vec::new();
        for tries in 1..=TRIES {
            let Tried { back, refused } = self.undo(&undos).await?;
            let (now, mut rest): (Vec<_>, Vec<_>) = undos
                .into_iter()
                .partition(|undo| back.contains(&undo.row.id));
            undone.extend(now);
            rest.retain(|undo| !refused.contains(&undo.row.id));
            undos = self.still_there(rest).await?;
            if undos.is_empty() {
                break;
            }
            if tries < TRIES {
                sleep(LOCKED).await;
            }
        }
        let locked = undos.iter();
        let locked = locked.map(|undo| Left::new(&undo.row, Reason::Locked, None));
        self.leave(locked.collect())?;
        Ok(undone)
    }

    /// One refused row makes the database refuse the whole statement: halves find the culprit.
    async fn undo(&mut self, undos: &[Undo]) -> anyhow::Result<Tried> {
        let mut tried = Tried::default();
        let mut batches = vec![undos.to_vec()];
        while let Some(batch) = batches.pop() {
            match self.ledger.undo(&batch).await {
                Ok(ids) => tried.back.extend(ids),
                Err(CatalogError::Rejected { code, message }) => match &batch[..] {
                    [] => {}
                    [one] => {
                        let detail = Some(format!("{code}: {message}"));
                        self.leave(vec![Left::new(&one.row, Reason::Refused, detail)])?;
                        tried.refused.insert(one.row.id.clone());
                    }
                    many => {
                        let (first, second) = many.split_at(many.len() / 2);
                        batches.extend([first.to_vec(), second.to_vec()]);
                    }
                },
                Err(error) => return Err(error.into()),
            }
        }
        Ok(tried)
    }

    /// Of rows that were not set back, those that still could be. The others have changed meanwhile.
    async fn still_there(&mut self, rest: Vec<Undo>) -> anyhow::Result<Vec<Undo>> {
        let ids = rest
            .iter()
            .map(|undo| RowId::from_database(undo.row.id.clone()));
        let now = self.ledger.look(&ids.collect::<Vec<_>>()).await?;
        let mut still = Vec::new();
        for undo in rest {
            let path = now.get(&RowId::from_database(undo.row.id.clone()));
            let reason = match path.map(|row| &row.path) {
                None => Reason::Deleted,
                Some(path) if *path == undo.row.new_path => {
                    still.push(undo);
                    continue;
                }
                Some(_) => Reason::Changed,
            };
            self.leave(vec![Left::new(&undo.row, reason, None)])?;
        }
        Ok(still)
    }

    /// An image that the application replaced while its row was set back is shown again.
    async fn look_again(&mut self, undone: Vec<Undo>) -> anyhow::Result<Vec<Undo>> {
        let looks = undone.into_iter().map(|undo| async {
            let is_replaced = self.judge.is_replaced(&undo).await?;
            Ok::<_, StoreError>((undo, is_replaced))
        });
        let looked: Vec<(Undo, bool)> = stream::iter(looks)
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        let (replaced, back): (Vec<_>, Vec<_>) = looked
            .into_iter()
            .partition(|(_, is_replaced)| *is_replaced);
        let replaced: Vec<Undo> = replaced.into_iter().map(|(undo, _)| undo).collect();
        let back: Vec<Undo> = back.into_iter().map(|(undo, _)| undo).collect();
        let stuck = self.set_forward(&replaced).await?;
        let seen = back.iter().chain(&replaced).map(|undo| undo.row.id.clone());
        let seen: Vec<String> = seen.filter(|id| !stuck.contains(id)).collect();
        self.ledger.seen_after_undo(&seen).await?;
        let left = replaced.iter();
        let left = left.map(|undo| Left::new(&undo.row, Reason::CopyReplaced, None));
        self.leave(left.collect())?;
        Ok(back)
    }

    /// Moves them once more, as a consumer would. A row that the application has changed meanwhile stays.
    /// Returns those that are locked: the next rollback tries again.
    async fn set_forward(&self, replaced: &[Undo]) -> anyhow::Result<HashSet<String>> {
        let mut rest: Vec<Move> = replaced.iter().map(forward).collect();
        for _ in 0..TRIES {
            if rest.is_empty() {
                return Ok(HashSet::new());
            }
            let moved = self.ledger.commit(&rest).await?;
            rest.retain(|one| !moved.contains(&one.id));
            let ids: Vec<RowId> = rest.iter().map(|one| one.id.clone()).collect();
            let now = self.ledger.look(&ids).await?;
            let is_back = |one: &Move| now.get(&one.id).is_some_and(|row| row.path == one.old_path);
            rest.retain(is_back);
            sleep(LOCKED).await;
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

    fn leave_those_not_moved(&mut self) -> anyhow::Result<()> {
        let mut ids: Vec<String> = self.not_seen.drain().collect();
        ids.sort();
        let left = ids.into_iter().map(|id| Left {
            id,
            path: None,
            reason: Reason::NotMoved,
            detail: None,
        });
        self.leave(left.collect())
    }

    fn leave(&mut self, left: Vec<Left>) -> anyhow::Result<()> {
        for one in left {
            if let Some(listing) = &mut self.listing {
                listing.add(&one)?;
            }
            *self.left.entry(one.reason).or_default() += 1;
        }
        Ok(())
    }
}

/// The move as it was: what the consumer committed.
fn forward(undo: &Undo) -> Move {
    Move {
        id: RowId::from_database(undo.row.id.clone()),
        old_path: undo.row.old_path.clone(),
        new_path: undo.row.new_path.clone(),
        destination_key: undo.destination_key.clone(),
        etag: undo.row.etag.clone(),
        size_bytes: undo.row.size_bytes,
    }
}

fn count(undos: &[Undo]) -> u64 {
    u64::try_from(undos.len()).unwrap_or(0)
}
