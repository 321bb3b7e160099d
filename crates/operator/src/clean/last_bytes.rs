//! An object may be all that is left of an image that a row names at the other end of its move: an orphan whose source
//! is gone, a source whose copy is gone though verify found its row changed.

use std::collections::HashSet;

use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::BucketSide;

use super::batch::ObjectCleaner;
use super::path_references::{path_columns, referenced_keys};
use super::removals::{ObjectRemoval, RemovalOutcome, RemovalOutcomes};
use crate::page_pipeline::until_stopped;
use crate::retrying_store::{is_object_error, stat_object};

const LAST_SOURCE_REASON: &str = "a row names its copy, which is gone";
const LAST_COPY_REASON: &str = "a row names its source, which is gone";

/// What is known of the object at the other end.
enum OtherEnd {
    Stands,
    /// It had this key, and this path.
    Lost(String, String),
    Unknown(String),
}

impl ObjectCleaner<'_> {
    /// Those that are not the last bytes of a row's image.
    pub(super) async fn retain_replaceable(
        &self,
        removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<ObjectRemoval>> {
        let checks = removals.into_iter().map(|removal| async {
            let end = self.check_other_end(&removal).await?;
            Ok::<_, StoreError>((removal, end))
        });
        let checked = self.pass.slots.run_all(checks).await?;
        let named = self.named_at_other_end(&checked).await?;
        let mut replaceable = Vec::new();
        for (removal, end) in checked {
            let reason = match end {
                OtherEnd::Lost(key, _) if named.contains(&key) => {
                    let is_orphan = self.pass.removals.orphans;
                    let reason = [LAST_SOURCE_REASON, LAST_COPY_REASON][usize::from(is_orphan)];
                    reason.to_owned()
                }
                OtherEnd::Unknown(reason) => reason,
                OtherEnd::Stands | OtherEnd::Lost(..) => {
                    replaceable.push(removal);
                    continue;
                }
            };
            outcomes.push((removal, RemovalOutcome::Kept(reason)));
        }
        Ok(replaceable)
    }

    async fn check_other_end(&self, removal: &ObjectRemoval) -> Result<OtherEnd, StoreError> {
        let removals = self.pass.removals;
        // That copy was compared with the record.
        if removal.copy_etag.is_some() {
            return Ok(OtherEnd::Stands);
        }
        let Some(route) = removals.route_of(removal) else {
            return Ok(OtherEnd::Unknown(
                "its path is outside the path rule".into(),
            ));
        };
        let (side, key, path) = if removals.orphans {
            (BucketSide::Source, route.source_key, route.old_path)
        } else {
            (
                BucketSide::Destination,
                route.destination_key,
                route.new_path,
            )
        };
        match stat_object(self.pass.store, side, &key).await {
            Ok(Some(_)) => Ok(OtherEnd::Stands),
            Ok(None) => Ok(OtherEnd::Lost(key, path)),
            Err(error) if is_object_error(&error) => Ok(OtherEnd::Unknown(error.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn named_at_other_end(
        &self,
        checked: &[(ObjectRemoval, OtherEnd)],
    ) -> anyhow::Result<HashSet<String>> {
        let lost = checked.iter().filter_map(|(_, end)| match end {
            OtherEnd::Lost(key, path) => Some((key.clone(), path.clone())),
            OtherEnd::Stands | OtherEnd::Unknown(_) => None,
        });
        let (keys, paths): (Vec<String>, Vec<String>) = lost.unzip();
        if keys.is_empty() {
            return Ok(HashSet::new());
        }
        let (ledger, bucket) = (self.pass.removals.ledger, self.pass.removals.other_bucket);
        let columns = until_stopped(self.pass.stop, path_columns(ledger, bucket)).await?;
        Ok(referenced_keys(ledger, &columns, &keys, &paths).await?)
    }
}
