//! Removes what is marked, a thousand at a time.

use std::collections::HashSet;

use bucket_brigade_common::ledger::AdvisoryLock;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{
    BucketSide, DeleteOutcome, DeleteTarget, MAX_DELETE_OBJECTS, ObjectStat,
};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::preflight::retry_transient;
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::encoded_paths::{OtherPaths, UnsettledSources};
use super::other_spellings::OtherSpellings;
use super::output::CleanPrinter;
use super::path_references::{ReferringColumn, path_columns, referenced_keys};
use super::removals::{ObjectRemoval, RemovalLedger, RemovalOutcome, RemovalOutcomes};
use super::restore::ObjectRestorer;
use crate::locks::{self, PauseGate, QuiescedFleet};
use crate::progress_bar::ProgressReporter;
use crate::retrying_store::{
    MAX_REQUESTS_IN_FLIGHT, is_object_error, remove_with_retries, retry_object_request,
};
use crate::statements::retry_statement;

const REFERENCED_REASON: &str = "a row names it";
const OTHER_SPELLING_REASON: &str = "a row may mean it by another spelling";
const UNSETTLED_REASON: &str =
    "a move off it by another spelling is not verified, or younger than asked for";
pub(super) const CHANGED_REASON: &str = "it is not the object that was verified any more";
const NOT_REQUESTED_REASON: &str =
    "an earlier clean was cut off before it went, and this one does not ask for it";
const RESTORE_FAILED_REASON: &str = "A ROW NAMES IT, IT IS GONE, AND IT COULD NOT BE BROUGHT BACK";

pub(super) struct ObjectCleaner<'a> {
    pub(super) removals: RemovalLedger<'a>,
    pub(super) store: &'a S3Store,
    pub(super) restorer: ObjectRestorer<'a>,
    pub(super) bucket: &'a str,
    /// Read anew for each batch.
    pub(super) columns: Vec<ReferringColumn>,
    pub(super) other_spellings: OtherSpellings,
    pub(super) unsettled: UnsettledSources,
    pub(super) total: u64,
    pub(super) printer: CleanPrinter<'a>,
}

/// An object that is gone, with the delete marker that hides it.
type RemovedObject = (ObjectRemoval, Option<String>);

enum RemovalVerdict {
    /// As recorded: it may go.
    Removable,
    Missing,
    Kept(String),
}

impl ObjectCleaner<'_> {
    /// Goes on to the end; false when it was stopped before.
    pub(super) async fn run(
        &mut self,
        mut lock: AdvisoryLock,
        mut fleet: Option<QuiescedFleet>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let mut progress = ProgressReporter::new("cleaning", self.total);
        let (mut cursor, mut pause): (Option<String>, _) = (None, PauseGate::default());
        let size = i64::try_from(MAX_DELETE_OBJECTS)?;
        while !stop.is_cancelled() && !self.printer.is_closed() {
            let ledger = self.removals.ledger;
            pause.wait(ledger, stop).await?;
            locks::ensure_held(ledger, &mut lock).await?;
            if let Some(fleet) = &mut fleet {
                fleet.ensure_quiesced(ledger).await?;
                locks::ensure_no_other_fleet(ledger, self.bucket).await?;
            }
            let (removals, after) = (self.removals, cursor.as_deref());
            let read = async || removals.next_removals(after, size).await;
            let page = retry_statement(read).await?;
            let Some(last) = page.last() else {
                return Ok(true);
            };
            cursor = Some(last.path.clone());
            progress.advance_by(page.len());
            self.process_batch(page).await?;
        }
        Ok(false)
    }

    async fn process_batch(&mut self, mut page: Vec<ObjectRemoval>) -> anyhow::Result<()> {
        let mut outcomes = Vec::new();
        let other_paths = if self.removals.has_encoded_paths() {
            OtherPaths::split_off(&mut page, &mut outcomes)
        } else {
            OtherPaths::default()
        };
        // A feeder may have opened another run since the last batch.
        let (ledger, bucket) = (self.removals.ledger, self.bucket);
        self.columns = retry_transient(async || path_columns(ledger, bucket).await).await?;
        // What an earlier clean may have removed is checked in any case: a row may have come to name it.
        let (cut_off, page): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|removal| removal.is_in_removal);
        // A first question to the rows spares the requests for objects that are referenced anyway.
        let mut candidates = self.retain_unreferenced(page, &mut outcomes).await?;
        candidates.extend(cut_off);
        let (removable, mut gone) = self.classify_all(candidates, &mut outcomes).await?;
        retry_statement(async || self.removals.begin_removals(&removable).await).await?;
        let removable = self.retain_unreferenced(removable, &mut outcomes).await?;
        let removed = self.remove_batch(&removable, &mut outcomes).await;
        let failure = match removed {
            Ok(removed) => {
                gone.extend(removed);
                None
            }
            Err(error) => Some(error),
        };
        let mut unsaved = self.restore_referenced(gone, &mut outcomes).await?;
        if failure.is_some() {
            unsaved.extend(self.restore_uncertain(removable, &mut outcomes).await?);
        }
        let companions = self.remove_companions(&outcomes).await?;
        other_paths.add_outcomes(&mut outcomes);
        outcomes.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        retry_statement(async || self.removals.finish_removals(&outcomes).await).await?;
        self.printer.print_outcomes(&outcomes)?;
        self.printer.print_outcomes(&companions)?;
        // These stay in removal, so that the next clean tries again to bring them back.
        self.printer.print_outcomes(&unsaved)?;
        failure.map_or(Ok(()), Err)
    }

    /// Those that no row names.
    pub(super) async fn retain_unreferenced(
        &self,
        removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<ObjectRemoval>> {
        let referenced = self.referenced_keys(removals.iter()).await?;
        let mut unreferenced = Vec::new();
        for removal in removals {
            let reason = if referenced.contains(&removal.object_key) {
                REFERENCED_REASON
            } else if self.other_spellings.may_mean(&removal.object_key) {
                OTHER_SPELLING_REASON
            } else if self.unsettled.contains(&removal.object_key) {
                UNSETTLED_REASON
            } else {
                unreferenced.push(removal);
                continue;
            };
            outcomes.push((removal, RemovalOutcome::Kept(reason.into())));
        }
        Ok(unreferenced)
    }

    async fn referenced_keys(
        &self,
        removals: impl Iterator<Item = &ObjectRemoval>,
    ) -> anyhow::Result<HashSet<String>> {
        let of = |removal: &'_ ObjectRemoval| (removal.object_key.clone(), removal.path.clone());
        let (keys, paths): (Vec<String>, Vec<String>) = removals.map(of).unzip();
        Ok(referenced_keys(self.removals.ledger, &self.columns, &keys, &paths).await?)
    }

    /// Those that may go, and those that an earlier clean removed and was killed.
    async fn classify_all(
        &self,
        removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<(Vec<ObjectRemoval>, Vec<RemovedObject>)> {
        let requests = removals.into_iter().map(|removal| async {
            let verdict = self.classify_removal(&removal).await?;
            Ok::<_, StoreError>((removal, verdict))
        });
        let classified: Vec<(ObjectRemoval, RemovalVerdict)> = stream::iter(requests)
            .buffered(MAX_REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let (mut removable, mut gone) = (Vec::new(), Vec::new());
        for (removal, verdict) in classified {
            match verdict {
                RemovalVerdict::Removable => removable.push(removal),
                RemovalVerdict::Missing if removal.is_in_removal || self.removals.orphans => {
                    gone.push((removal, None));
                }
                RemovalVerdict::Missing
                    if self.removals.is_removed_by_other_path(&removal).await? =>
                {
                    gone.push((removal, None));
                }
                RemovalVerdict::Missing => {
                    let reason = "it was removed by another process".into();
                    outcomes.push((removal, RemovalOutcome::Kept(reason)));
                }
                RemovalVerdict::Kept(reason) => {
                    outcomes.push((removal, RemovalOutcome::Kept(reason)));
                }
            }
        }
        Ok((removable, gone))
    }

    async fn classify_removal(
        &self,
        removal: &ObjectRemoval,
    ) -> Result<RemovalVerdict, StoreError> {
        match self.compare_with_record(removal).await {
            Err(error) if is_object_error(&error) => Ok(RemovalVerdict::Kept(error.to_string())),
            other => other,
        }
    }

    async fn compare_with_record(
        &self,
        removal: &ObjectRemoval,
    ) -> Result<RemovalVerdict, StoreError> {
        let Some(object) = self
            .stat_object(self.bucket_side(), &removal.object_key)
            .await?
        else {
            return Ok(RemovalVerdict::Missing);
        };
        if object.etag != removal.etag {
            return Ok(RemovalVerdict::Kept(CHANGED_REASON.into()));
        }
        if !removal.is_marked {
            return Ok(RemovalVerdict::Kept(NOT_REQUESTED_REASON.into()));
        }
        let Some(copy_etag) = &removal.copy_etag else {
            return Ok(RemovalVerdict::Removable);
        };
        let Some(route) = self.removal_route(removal) else {
            return Ok(RemovalVerdict::Kept(
                "its path is outside the path rule".into(),
            ));
        };
        let copy = self
            .stat_object(BucketSide::Destination, &route.destination_key)
            .await?;
        Ok(match copy {
            None => RemovalVerdict::Kept("its copy does not exist any more".into()),
            Some(copy) if copy.etag != *copy_etag => {
                RemovalVerdict::Kept("the application has replaced its copy".into())
            }
            Some(_) => RemovalVerdict::Removable,
        })
    }

    /// Removes them; those that are gone, with the delete marker that hides each.
    pub(super) async fn remove_batch(
        &self,
        removable: &[ObjectRemoval],
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<RemovedObject>> {
        if removable.is_empty() {
            return Ok(Vec::new());
        }
        let targets: Vec<DeleteTarget> = removable.iter().map(delete_target).collect();
        let deletions = remove_with_retries(self.store, self.bucket_side(), &targets).await?;
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for (removal, deletion) in removable.iter().zip(deletions) {
            match self.confirm_removal(removal, deletion).await? {
                RemovalOutcome::Removed(marker) => gone.push((removal.clone(), marker)),
                outcome @ RemovalOutcome::Kept(_) => kept.push((removal.clone(), outcome)),
            }
        }
        outcomes.extend(kept);
        Ok(gone)
    }

    /// After a request that was sent twice, or a response that was lost, only a HEAD can say.
    async fn confirm_removal(
        &self,
        removal: &ObjectRemoval,
        deletion: DeleteOutcome,
    ) -> anyhow::Result<RemovalOutcome> {
        let reason = match deletion {
            DeleteOutcome::Deleted { delete_marker } => {
                return Ok(RemovalOutcome::Removed(delete_marker));
            }
            DeleteOutcome::Changed => CHANGED_REASON.to_owned(),
            DeleteOutcome::Refused(error) => error.to_string(),
        };
        Ok(
            match self
                .stat_object(self.bucket_side(), &removal.object_key)
                .await?
            {
                None => RemovalOutcome::Removed(None),
                Some(_) => RemovalOutcome::Kept(reason),
            },
        )
    }

    /// A row that came to name an object between the last question and its removal gets it back. Returns
    /// those for which that failed.
    pub(super) async fn restore_referenced(
        &mut self,
        gone: Vec<RemovedObject>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<RemovalOutcomes> {
        let referenced = self
            .referenced_keys(gone.iter().map(|(removal, _)| removal))
            .await?;
        let (lost, removed): (Vec<_>, Vec<_>) = gone
            .into_iter()
            .partition(|(removal, _)| referenced.contains(&removal.object_key));
        let removed = removed.into_iter();
        outcomes
            .extend(removed.map(|(removal, marker)| (removal, RemovalOutcome::Removed(marker))));
        let lost = lost.into_iter().map(|(removal, _)| removal).collect();
        Ok(self.restore_all(lost, outcomes).await)
    }

    /// The request failed, so what it removed is not known: a row that names one of the objects gets it back
    /// all the same. The others stay in removal, for the next clean to look at.
    pub(super) async fn restore_uncertain(
        &mut self,
        mut removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<RemovalOutcomes> {
        let referenced = self.referenced_keys(removals.iter()).await?;
        removals.retain(|removal| referenced.contains(&removal.object_key));
        Ok(self.restore_all(removals, outcomes).await)
    }

    async fn restore_all(
        &mut self,
        removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> RemovalOutcomes {
        let mut unsaved = Vec::new();
        for removal in removals {
            match self.restore_object(&removal).await {
                Ok(reason) => outcomes.push((removal, RemovalOutcome::Kept(reason))),
                Err(why) => {
                    let reason = self.record_restore_failure(&removal, &why);
                    unsaved.push((removal, RemovalOutcome::Kept(reason)));
                }
            }
        }
        unsaved
    }

    /// How it came back, or why it did not.
    async fn restore_object(&self, removal: &ObjectRemoval) -> Result<String, String> {
        let route = self.removal_route(removal).ok_or("no route leads there")?;
        match self.restorer.restore(&route).await {
            Ok(_) => Ok(format!(
                "{REFERENCED_REASON} since a moment ago: brought back"
            )),
            Err(StoreError::DestinationExists) => Ok(format!(
                "{REFERENCED_REASON} since a moment ago, and something stands there again"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    fn record_restore_failure(&mut self, removal: &ObjectRemoval, why: &str) -> String {
        self.printer.count_restore_failure();
        tracing::error!(
            key = removal.object_key,
            path = removal.path,
            "{RESTORE_FAILED_REASON}: {why}"
        );
        format!("{RESTORE_FAILED_REASON}: {why}")
    }

    pub(super) fn removal_route(&self, removal: &ObjectRemoval) -> Option<MoveRoute> {
        let rule = self.removals.ledger.rule();
        let route = if self.removals.orphans {
            rule.route_for(&rule.old_path(&removal.path)?).ok()?
        } else {
            rule.route_for(&removal.path).ok()?
        };
        let Some(pattern) = &removal.companion else {
            return Some(route);
        };
        let mut companions = rule.companions_of(&route).into_iter();
        let companion = companions.find(|companion| companion.pattern == pattern);
        companion.map(|companion| companion.route)
    }

    pub(super) fn bucket_side(&self) -> BucketSide {
        self.restorer.side
    }

    pub(super) async fn stat_object(
        &self,
        side: BucketSide,
        key: &str,
    ) -> Result<Option<ObjectStat>, StoreError> {
        retry_object_request(async || self.store.stat_object(side, key).await).await
    }
}

fn delete_target(removal: &ObjectRemoval) -> DeleteTarget {
    DeleteTarget {
        key: removal.object_key.clone(),
        etag: removal.etag.clone(),
    }
}
