//! Removes what is marked, a thousand at a time.

use std::collections::HashSet;

use bucket_brigade_common::ledger::{
    AdvisoryLock, ObjectRemoval, PathReference, PostgresLedger, RemovalOutcome,
};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{
    BucketSide, DeleteOutcome, DeleteTarget, MAX_DELETE_OBJECTS, ObjectStat,
};
use bucket_brigade_common::object_store::s3::S3Store;
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::output::CleanCounts;
use super::{CleanContext, RemovalScope};
use crate::list_writer::ListWriter;
use crate::locks::{self, QuiescedFleet};
use crate::progress_bar::ProgressReporter;
use crate::retrying_store::{
    MAX_REQUESTS_IN_FLIGHT, is_object_error, remove_with_retries, retry_object_request,
};

const REFERENCED_REASON: &str = "a row names it";
const CHANGED_REASON: &str = "it is not the object that was verified any more";
const NOT_REQUESTED_REASON: &str =
    "an earlier clean was cut off before it went, and this one does not ask for it";
const RESTORE_FAILED_REASON: &str = "A ROW NAMES IT, IT IS GONE, AND IT COULD NOT BE BROUGHT BACK";

/// Removes what is marked.
pub(super) struct ObjectCleaner<'a> {
    pub(super) ledger: &'a PostgresLedger,
    store: &'a S3Store,
    rule: &'a PathRule,
    pub(super) scope: RemovalScope,
    pub(super) bucket: &'a str,
    references: Vec<PathReference>,
    total: u64,
    pub(super) list_writer: Option<ListWriter<std::io::Stdout>>,
    pub(super) counts: CleanCounts,
}

/// What became of some objects.
type RemovalOutcomes = Vec<(ObjectRemoval, RemovalOutcome)>;

/// An object that is gone, with the delete marker that hides it.
type RemovedObject = (ObjectRemoval, Option<String>);

/// What the looks say of an object.
enum RemovalVerdict {
    /// As recorded: it may go.
    Removable,
    /// Not there.
    Missing,
    /// Left alone, and why.
    Kept(String),
}

impl<'a> ObjectCleaner<'a> {
    pub(super) fn new(around: &'a CleanContext<'a>) -> anyhow::Result<Self> {
        let format = around.context.format;
        Ok(Self {
            ledger: around.ledger,
            store: around.store,
            rule: &around.context.migration.run.rule,
            scope: around.scope,
            bucket: &around.bucket,
            references: Vec::new(),
            total: u64::try_from(around.eligible.objects).unwrap_or(0),
            list_writer: Some(ListWriter::begin_on_stdout(format, "objects")?),
            counts: CleanCounts::default(),
        })
    }

    /// Goes on to the end; false when it was stopped before.
    ///
    /// # Errors
    /// The store or the database does not answer, or a lock is lost.
    pub(super) async fn run(
        &mut self,
        mut lock: AdvisoryLock,
        mut fleet: Option<QuiescedFleet>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let mut gauge = ProgressReporter::new("cleaning", self.total);
        let mut cursor: Option<String> = None;
        let size = i64::try_from(MAX_DELETE_OBJECTS)?;
        while !stop.is_cancelled() {
            locks::ensure_held(&mut lock).await?;
            if let Some(fleet) = &mut fleet {
                fleet.ensure_quiesced().await?;
            }
            let orphans = self.scope.orphans;
            let page = self.ledger.next_removals(orphans, cursor.as_deref(), size);
            let page = page.await?;
            let Some(last) = page.last() else {
                gauge.clear();
                return Ok(true);
            };
            cursor = Some(last.path.clone());
            gauge.advance_by(page.len());
            self.process_batch(page).await?;
        }
        gauge.clear();
        Ok(false)
    }

    async fn process_batch(&mut self, page: Vec<ObjectRemoval>) -> anyhow::Result<()> {
        let mut endings = Vec::new();
        // A feeder may have opened another run since the last batch.
        self.references = self.ledger.path_references(self.bucket).await?;
        // What an earlier clean may have removed is looked at in any case: a row may have come to name it.
        let (cut_off, page): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|removal| removal.is_in_removal);
        // A first question to the rows spares the looks at objects that are named anyway.
        let mut candidates = self.retain_unreferenced(page, &mut endings).await?;
        candidates.extend(cut_off);
        let (fit, mut gone) = self.classify_all(candidates, &mut endings).await?;
        let paths: Vec<&str> = fit.iter().map(|removal| removal.path.as_str()).collect();
        self.ledger
            .begin_removals(self.scope.orphans, &paths)
            .await?;
        let fit = self.retain_unreferenced(fit, &mut endings).await?;
        gone.extend(self.remove_batch(fit, &mut endings).await?);
        let unsaved = self.restore_referenced(gone, &mut endings).await?;
        endings.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        self.ledger
            .finish_removals(self.scope.orphans, &endings)
            .await?;
        self.print_outcomes(&endings)?;
        // These stay in removal, so that the next clean tries again to bring them back.
        self.print_outcomes(&unsaved)
    }

    /// Those that no row names.
    async fn retain_unreferenced(
        &self,
        removals: Vec<ObjectRemoval>,
        endings: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<ObjectRemoval>> {
        let named = self.referenced_keys(removals.iter()).await?;
        let (named, unnamed): (Vec<_>, Vec<_>) = removals
            .into_iter()
            .partition(|removal| named.contains(&removal.object_key));
        let left = named.into_iter();
        endings
            .extend(left.map(|removal| (removal, RemovalOutcome::Kept(REFERENCED_REASON.into()))));
        Ok(unnamed)
    }

    async fn referenced_keys(
        &self,
        removals: impl Iterator<Item = &ObjectRemoval>,
    ) -> anyhow::Result<HashSet<String>> {
        let keys: Vec<&str> = removals
            .map(|removal| removal.object_key.as_str())
            .collect();
        Ok(self.ledger.referenced_keys(&self.references, &keys).await?)
    }

    /// Those that may go, and those that an earlier clean removed without living to tell.
    async fn classify_all(
        &self,
        removals: Vec<ObjectRemoval>,
        endings: &mut RemovalOutcomes,
    ) -> anyhow::Result<(Vec<ObjectRemoval>, Vec<RemovedObject>)> {
        let looks = removals.into_iter().map(|removal| async {
            let looked = self.classify_removal(&removal).await?;
            Ok::<_, StoreError>((removal, looked))
        });
        let looked: Vec<(ObjectRemoval, RemovalVerdict)> = stream::iter(looks)
            .buffered(MAX_REQUESTS_IN_FLIGHT)
            .try_collect()
            .await?;
        let (mut fit, mut gone) = (Vec::new(), Vec::new());
        for (removal, looked) in looked {
            match looked {
                RemovalVerdict::Removable => fit.push(removal),
                RemovalVerdict::Missing if removal.is_in_removal || self.scope.orphans => {
                    gone.push((removal, None));
                }
                RemovalVerdict::Missing => {
                    let reason = "somebody else has removed it".into();
                    endings.push((removal, RemovalOutcome::Kept(reason)));
                }
                RemovalVerdict::Kept(reason) => {
                    endings.push((removal, RemovalOutcome::Kept(reason)));
                }
            }
        }
        Ok((fit, gone))
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
    async fn remove_batch(
        &self,
        fit: Vec<ObjectRemoval>,
        endings: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<RemovedObject>> {
        if fit.is_empty() {
            return Ok(Vec::new());
        }
        let doomed: Vec<DeleteTarget> = fit.iter().map(delete_target).collect();
        let fates = remove_with_retries(self.store, self.bucket_side(), &doomed).await?;
        let mut gone = Vec::new();
        for (removal, fate) in fit.into_iter().zip(fates) {
            match self.confirm_removal(&removal, fate).await? {
                RemovalOutcome::Removed(marker) => gone.push((removal, marker)),
                left @ RemovalOutcome::Kept(_) => endings.push((removal, left)),
            }
        }
        Ok(gone)
    }

    /// After a request that was sent twice, or an answer that was lost, only a look tells.
    async fn confirm_removal(
        &self,
        removal: &ObjectRemoval,
        fate: DeleteOutcome,
    ) -> anyhow::Result<RemovalOutcome> {
        let reason = match fate {
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
    async fn restore_referenced(
        &mut self,
        gone: Vec<RemovedObject>,
        endings: &mut RemovalOutcomes,
    ) -> anyhow::Result<RemovalOutcomes> {
        let named = self
            .referenced_keys(gone.iter().map(|(removal, _)| removal))
            .await?;
        let mut unsaved = Vec::new();
        for (removal, marker) in gone {
            if !named.contains(&removal.object_key) {
                endings.push((removal, RemovalOutcome::Removed(marker)));
                continue;
            }
            match self.restore_object(&removal).await {
                Ok(reason) => endings.push((removal, RemovalOutcome::Kept(reason))),
                Err(why) => {
                    let reason = self.record_restore_failure(&removal, &why);
                    unsaved.push((removal, RemovalOutcome::Kept(reason)));
                }
            }
        }
        Ok(unsaved)
    }

    /// How it came back, or why it did not.
    async fn restore_object(&self, removal: &ObjectRemoval) -> Result<String, String> {
        let route = self.removal_route(removal).ok_or("no route leads there")?;
        match retry_object_request(async || {
            self.store.restore_object(self.bucket_side(), &route).await
        })
        .await
        {
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
        self.counts.restore_failures += 1;
        tracing::error!(
            key = removal.object_key,
            path = removal.path,
            "{RESTORE_FAILED_REASON}: {why}"
        );
        format!("{RESTORE_FAILED_REASON}: {why}")
    }

    fn removal_route(&self, removal: &ObjectRemoval) -> Option<MoveRoute> {
        if self.scope.orphans {
            self.rule
                .route_for(&self.rule.old_path(&removal.path)?)
                .ok()
        } else {
            self.rule.route_for(&removal.path).ok()
        }
    }

    fn bucket_side(&self) -> BucketSide {
        if self.scope.orphans {
            BucketSide::Destination
        } else {
            BucketSide::Source
        }
    }

    async fn stat_object(
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
