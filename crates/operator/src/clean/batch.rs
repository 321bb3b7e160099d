//! Removes a page of what may go.

use std::collections::HashSet;

use anyhow::Context as _;
use bucket_brigade_common::ledger::{LockClaims, REMOVAL_WINDOW};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{
    BucketSide, DeleteOutcome, DeleteTarget, MAX_DELETE_OBJECTS, RemovalDeadline,
};
use bucket_brigade_common::printable::counted;

use super::companions::SHARED_REASON;
use super::encoded_paths::OtherPaths;
use super::pass::CleanPass;
use super::path_references::{ReferringColumn, referenced_keys};
use super::removals::{ObjectRemoval, RemovalOutcome, RemovalOutcomes, keep_all};
use crate::locks::{self, LocksLost};
use crate::page_pipeline::until_stopped;
use crate::retrying_store::{
    DeleteFailure, is_object_error, remove_with_retries, retry_object_request, stat_object,
};
use crate::statements::retry_statement;

pub(super) const REFERENCED_REASON: &str = "a row names it";
const OTHER_SPELLING_REASON: &str = "a row may mean it by another spelling";
const UNSETTLED_REASON: &str =
    "a move off it by another spelling is not verified, or younger than asked for";
pub(super) const CHANGED_REASON: &str = "it is not the object that was verified any more";
const NOT_REQUESTED_REASON: &str =
    "an earlier clean was cut off before it went, and this one does not ask for it";
const ALIVE_WARNING: &str = "; for half an hour a request without a response may still remove it";
const RESTORE_FAILED_REASON: &str = "A ROW NAMES IT, IT IS GONE, AND IT COULD NOT BE BROUGHT BACK";

pub(super) struct ObjectCleaner<'a> {
    pub(super) pass: &'a CleanPass<'a>,
    /// The locks that are held since before the page was read.
    pub(super) claims: &'a LockClaims,
    /// As they were when the page began: a feeder may have opened another run since the last one.
    pub(super) columns: Vec<ReferringColumn>,
}

pub(super) struct CleanedPage {
    pub(super) outcomes: RemovalOutcomes,
    /// What became of the companions of those that are gone.
    pub(super) companions: RemovalOutcomes,
    /// Those that are gone and could not be brought back, though a row names them. They stay in removal, so that
    /// the next clean tries again.
    pub(super) unsaved: RemovalOutcomes,
    /// Why the removal ended early.
    pub(super) failure: Option<anyhow::Error>,
}

/// An object that is gone, and what to record unless a row names it.
pub(super) type RemovedObject = (ObjectRemoval, RemovalOutcome);

enum RemovalVerdict {
    Removable,
    Missing,
    Kept(String),
    RequestAlive,
}

impl ObjectCleaner<'_> {
    pub(super) async fn process_page(
        &self,
        mut page: Vec<ObjectRemoval>,
    ) -> anyhow::Result<CleanedPage> {
        let mut outcomes = Vec::new();
        let other_paths = if self.pass.removals.has_encoded_paths() {
            OtherPaths::split_off(&mut page, &mut outcomes)
        } else {
            OtherPaths::default()
        };
        let classified = self.classify_page(page, &mut outcomes);
        let (removable, gone) = until_stopped(self.pass.stop, classified).await?;
        if let Some(first) = removable.first() {
            let (store, side) = (self.pass.store, self.pass.removals.side());
            retry_object_request(async || store.prepare_deletes(side, &first.object_key).await)
                .await?;
            let copies = Box::pin(self.pass.restorer.check_copies(&removable)).await;
            copies.context("what a row names again by then could not be brought back")?;
        }
        let deadline = RemovalDeadline::after(REMOVAL_WINDOW);
        self.mark(&removable, &gone).await?;
        let removed = self.remove_unreferenced(removable, gone, deadline, &mut outcomes);
        let (unsaved, failure) = removed.await?;
        let removed = self.remove_companions(&mut outcomes, deadline);
        let (companions, failed) = Box::pin(removed).await?;
        // They stay in removal: the next clean goes on with their companions.
        let (open, refused) = failed.unzip();
        other_paths.add_outcomes(&mut outcomes);
        if self.pass.removals.has_encoded_paths() {
            self.begin_gone(&outcomes).await?;
        }
        outcomes.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        for chunk in outcomes.chunks(MAX_DELETE_OBJECTS) {
            let finish = async || {
                let removals = self.pass.removals;
                removals.finish_removals(chunk, self.claims).await
            };
            if !self.pass.throttle.write(retry_statement(finish)).await? {
                return Err(LocksLost.into());
            }
        }
        outcomes.extend(open.into_iter().flatten());
        Ok(CleanedPage {
            outcomes,
            companions,
            unsaved,
            failure: failure.or(refused),
        })
    }

    /// Changes nothing. Those that may go, and those that an earlier clean removed and was killed.
    async fn classify_page(
        &self,
        page: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<(Vec<ObjectRemoval>, Vec<RemovedObject>)> {
        // What an earlier clean may have removed is checked in any case: a row may have come to name it.
        let (cut_off, page): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|removal| removal.is_in_removal);
        // A first question to the rows spares the requests for objects that are referenced anyway.
        let mut candidates = self.retain_unreferenced(page, outcomes).await?;
        candidates.extend(cut_off);
        let (removable, gone) = self.classify_all(candidates, outcomes).await?;
        let removable = Box::pin(self.retain_replaceable(removable, outcomes)).await?;
        Ok((self.retain_cut_off(removable, outcomes).await?, gone))
    }

    /// One that a row names is not marked anew: its mark would never end.
    async fn retain_cut_off(
        &self,
        removable: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<ObjectRemoval>> {
        let (cut_off, mut removable): (Vec<_>, Vec<_>) =
            removable.into_iter().partition(|one| one.is_in_removal);
        if !cut_off.is_empty() {
            removable.extend(self.retain_unreferenced(cut_off, outcomes).await?);
        }
        Ok(removable)
    }

    /// Those that are to go, and those that are gone whose companions are.
    async fn mark(
        &self,
        removable: &[ObjectRemoval],
        gone: &[RemovedObject],
    ) -> anyhow::Result<()> {
        let removals = self.pass.removals;
        let has_companions = !removals.ledger.rule().companions().is_empty();
        let is_gone = |(_, outcome): &&RemovedObject| outcome.kept_because().is_none();
        let with_companions = gone.iter().filter(|_| has_companions).filter(is_gone);
        let with_companions = with_companions.map(|(removal, _)| removal);
        let marked: Vec<_> = removable.iter().chain(with_companions).cloned().collect();
        if marked.is_empty() {
            return Ok(());
        }
        self.begin_removals(&marked, self.claims).await?;
        // An image may be what another run's consumer points a row at.
        let (bucket, prefix) = (removals.bucket, removals.key_prefix());
        locks::shut_out_later_fleets(removals.ledger, bucket, prefix, self.claims).await
    }

    async fn begin_removals(
        &self,
        removals: &[ObjectRemoval],
        claims: &LockClaims,
    ) -> anyhow::Result<()> {
        for chunk in removals.chunks(MAX_DELETE_OBJECTS) {
            let begin = async || self.pass.removals.begin_removals(chunk, claims).await;
            if !self.pass.throttle.write(retry_statement(begin)).await? {
                return Err(LocksLost.into());
            }
        }
        Ok(())
    }

    /// Paths whose object went by another one have no record that could end.
    async fn begin_gone(&self, outcomes: &RemovalOutcomes) -> anyhow::Result<()> {
        let gone = outcomes.iter();
        let gone = gone.filter(|(_, outcome)| outcome.kept_because().is_none());
        let gone: Vec<ObjectRemoval> = gone.map(|(removal, _)| removal.clone()).collect();
        self.begin_removals(&gone, &LockClaims::new()).await
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
            } else if self.pass.other_spellings.may_mean(&removal.object_key) {
                OTHER_SPELLING_REASON
            } else if self.pass.unsettled.contains(&removal.object_key) {
                UNSETTLED_REASON
            } else if self.may_be_shared(&removal) {
                SHARED_REASON
            } else {
                unreferenced.push(removal);
                continue;
            };
            outcomes.push((removal, RemovalOutcome::Kept(reason.into())));
        }
        Ok(unreferenced)
    }

    /// Whether it may be a companion of an image that cannot be told from its key.
    fn may_be_shared(&self, removal: &ObjectRemoval) -> bool {
        let mut columns = self.columns.iter();
        columns.any(|column| column.rules.may_share(&removal.object_key))
    }

    async fn referenced_keys(
        &self,
        removals: impl Iterator<Item = &ObjectRemoval>,
    ) -> anyhow::Result<HashSet<String>> {
        let of = |removal: &ObjectRemoval| (removal.object_key.clone(), removal.path.clone());
        let (keys, paths): (Vec<String>, Vec<String>) = removals.map(of).unzip();
        let ledger = self.pass.removals.ledger;
        let referenced = referenced_keys(ledger, &self.columns, &keys, &paths).await?;
        // It was asked by its name.
        self.pass.tables.ensure_still_there(ledger).await?;
        Ok(referenced)
    }

    async fn classify_all(
        &self,
        removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<(Vec<ObjectRemoval>, Vec<RemovedObject>)> {
        let checks = removals.into_iter().map(|removal| async {
            let verdict = match self.compare_with_record(&removal).await {
                Err(error) if is_object_error(&error) => RemovalVerdict::Kept(error.to_string()),
                verdict => verdict?,
            };
            Ok::<_, StoreError>((removal, verdict))
        });
        let ledger = &self.pass.removals;
        let (mut removable, mut gone) = (Vec::new(), Vec::new());
        for (removal, verdict) in self.pass.slots.run_all(checks).await? {
            let reason = match verdict {
                RemovalVerdict::Removable => {
                    removable.push(removal);
                    continue;
                }
                RemovalVerdict::Missing
                    if removal.is_in_removal
                        || ledger.orphans
                        || ledger.is_removed_by_other_path(&removal).await? =>
                {
                    let outcome = RemovalOutcome::once_gone(removal.is_request_alive, None);
                    gone.push((removal, outcome));
                    continue;
                }
                RemovalVerdict::Missing => "it is gone already, and not by clean".into(),
                RemovalVerdict::Kept(reason) => reason,
                RemovalVerdict::RequestAlive => {
                    outcomes.push((removal, RemovalOutcome::RequestAlive));
                    continue;
                }
            };
            outcomes.push((removal, RemovalOutcome::Kept(reason)));
        }
        Ok((removable, gone))
    }

    async fn compare_with_record(
        &self,
        removal: &ObjectRemoval,
    ) -> Result<RemovalVerdict, StoreError> {
        let kept = |reason: &str| Ok(RemovalVerdict::Kept(reason.to_owned()));
        let (store, side) = (self.pass.store, self.pass.removals.side());
        let Some(object) = stat_object(store, side, &removal.object_key).await? else {
            return Ok(RemovalVerdict::Missing);
        };
        if object.etag != removal.etag {
            return kept(CHANGED_REASON);
        }
        // An orphan that goes may be made anew at once, with the same ETag.
        if removal.is_request_alive && (self.pass.removals.orphans || !removal.is_marked) {
            return Ok(RemovalVerdict::RequestAlive);
        }
        if !removal.is_marked {
            return kept(NOT_REQUESTED_REASON);
        }
        let Some(copy_etag) = &removal.copy_etag else {
            return Ok(RemovalVerdict::Removable);
        };
        let Some(route) = self.pass.removals.route_of(removal) else {
            return kept("its path is outside the path rule");
        };
        match stat_object(store, BucketSide::Destination, &route.destination_key).await? {
            None => kept("its copy does not exist any more"),
            Some(copy) if copy.etag != *copy_etag => kept("the application has replaced its copy"),
            Some(_) => Ok(RemovalVerdict::Removable),
        }
    }

    /// Removes those that no row names, and restores what a row came to name meanwhile, of `gone` too. Returns those
    /// for which that failed, and why the removal ended early.
    pub(super) async fn remove_unreferenced(
        &self,
        removals: Vec<ObjectRemoval>,
        mut gone: Vec<RemovedObject>,
        deadline: RemovalDeadline,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<(RemovalOutcomes, Option<anyhow::Error>)> {
        let removable = self.retain_unreferenced(removals, outcomes).await?;
        let (mut uncertain, mut failure): (&[ObjectRemoval], _) = (&[], None);
        let mut rest = &removable[..];
        while failure.is_none() && !rest.is_empty() {
            let (batch, later) = rest.split_at(rest.len().min(MAX_DELETE_OBJECTS));
            match self.remove_batch(batch, deadline, outcomes).await {
                Ok(removed) => gone.extend(removed),
                Err(DeleteFailure::Untouched(error)) => {
                    outcomes.extend(keep_all(rest, &error));
                    failure = Some(error.into());
                }
                Err(DeleteFailure::Uncertain(error)) => {
                    outcomes.extend(keep_all(later, &error));
                    (uncertain, failure) = (batch, Some(self.explain_uncertain(error)));
                }
            }
            rest = later;
        }
        let unsaved = self.restore_referenced(gone, uncertain, outcomes).await?;
        Ok((unsaved, failure))
    }

    /// Those that are gone.
    async fn remove_batch(
        &self,
        removable: &[ObjectRemoval],
        deadline: RemovalDeadline,
        outcomes: &mut RemovalOutcomes,
    ) -> Result<Vec<RemovedObject>, DeleteFailure> {
        let target = |removal: &ObjectRemoval| DeleteTarget {
            key: removal.object_key.clone(),
            etag: removal.etag.clone(),
        };
        let targets: Vec<DeleteTarget> = removable.iter().map(target).collect();
        let (store, side) = (self.pass.store, self.pass.removals.side());
        let deletions = remove_with_retries(store, side, &targets, deadline).await?;
        let (mut gone, mut kept) = (Vec::new(), Vec::new());
        for (removal, deletion) in removable.iter().zip(deletions) {
            let removal = removal.after_request(deletion.is_request_alive);
            let is_alive = removal.is_request_alive;
            let once_gone = |delete_marker| RemovalOutcome::once_gone(is_alive, delete_marker);
            let reason = match deletion.outcome {
                DeleteOutcome::Deleted { delete_marker } => {
                    gone.push((removal, once_gone(delete_marker)));
                    continue;
                }
                DeleteOutcome::Changed => CHANGED_REASON.to_owned(),
                DeleteOutcome::Refused(error) => error.to_string(),
            };
            if !deletion.is_uncertain {
                kept.push((removal, RemovalOutcome::Kept(reason)));
                continue;
            }
            // After a request that was sent twice, or a response that was lost, only a HEAD can say.
            let found = stat_object(store, side, &removal.object_key).await;
            match found.map_err(DeleteFailure::Uncertain)? {
                None => gone.push((removal, once_gone(None))),
                Some(_) => kept.push((removal, RemovalOutcome::Kept(reason))),
            }
        }
        outcomes.extend(kept);
        Ok(gone)
    }

    fn explain_uncertain(&self, error: StoreError) -> anyhow::Error {
        let bucket = self.pass.removals.bucket;
        anyhow::Error::from(error).context(format!("what was asked to go from bucket {bucket} may still go for half an hour: run clean again then"))
    }

    fn explain_unasked(&self, gone: usize) -> String {
        let (gone, bucket) = (
            counted(gone, "object", "objects"),
            self.pass.removals.bucket,
        );
        format!(
            "{gone} went from bucket {bucket}, and whether a row names one by now is not known: run the same clean again as soon as the database responds"
        )
    }

    /// A row that came to name an object between the last question and its removal gets it back, also where the
    /// request failed and what it removed is not known: the others of these stay in removal, for the next clean to
    /// look at. Returns those for which that failed.
    async fn restore_referenced(
        &self,
        gone: Vec<RemovedObject>,
        uncertain: &[ObjectRemoval],
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<RemovalOutcomes> {
        let removals = gone.iter().map(|(removal, _)| removal);
        let referenced = self.referenced_keys(removals.chain(uncertain)).await;
        let referenced = referenced.with_context(|| self.explain_unasked(gone.len()))?;
        let is_lost = |removal: &ObjectRemoval| referenced.contains(&removal.object_key);
        let (lost, removed): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|(removal, _)| is_lost(removal));
        outcomes.extend(removed);
        let lost = lost.into_iter().map(|(removal, _)| removal);
        let uncertain = uncertain.iter().filter(|one| is_lost(one));
        let uncertain = uncertain.map(|removal| removal.after_request(true));
        let mut unsaved = Vec::new();
        for removal in lost.chain(uncertain) {
            match self.restore_object(&removal).await {
                Ok(reason) => outcomes.push((removal, RemovalOutcome::Kept(reason))),
                Err(why) => {
                    let (key, path) = (&removal.object_key, &removal.path);
                    tracing::error!(key, path, "{RESTORE_FAILED_REASON}: {why}");
                    let reason = format!("{RESTORE_FAILED_REASON}: {why}");
                    unsaved.push((removal, RemovalOutcome::Kept(reason)));
                }
            }
        }
        Ok(unsaved)
    }

    /// How it came back, or why it did not.
    async fn restore_object(&self, removal: &ObjectRemoval) -> Result<String, String> {
        let route = self
            .pass
            .removals
            .route_of(removal)
            .ok_or("no route leads there")?;
        let how = match Box::pin(self.pass.restorer.restore(&route)).await {
            Ok(_) => ": brought back",
            Err(StoreError::DestinationExists) => ", and an object stands there",
            Err(error) => return Err(error.to_string()),
        };
        let warning = match (removal.is_request_alive, self.pass.removals.orphans) {
            (false, _) => String::new(),
            (true, true) => format!("{ALIVE_WARNING}: set the row to its old path now"),
            (true, false) => format!("{ALIVE_WARNING}: set the row to its new path now"),
        };
        Ok(format!(
            "{REFERENCED_REASON} since a moment ago{how}{warning}"
        ))
    }
}
