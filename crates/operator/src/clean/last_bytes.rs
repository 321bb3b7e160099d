//! Orphans without a source. Where a row was set back to its old path since, they are all that is left of its image.

use std::collections::HashSet;

use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::BucketSide;

use super::batch::ObjectCleaner;
use super::removals::{ObjectRemoval, RemovalOutcome, RemovalOutcomes};
use crate::retrying_store::{is_object_error, stat_object};

const LAST_BYTES_REASON: &str = "a row names its source, which is gone";

/// What is known of an orphan's source.
enum OrphanSource {
    Exists,
    /// It had this path.
    Gone(String),
    Unknown(String),
}

impl ObjectCleaner<'_> {
    /// Those that are not the last bytes of a row's image.
    pub(super) async fn retain_replaceable(
        &self,
        removals: Vec<ObjectRemoval>,
        outcomes: &mut RemovalOutcomes,
    ) -> anyhow::Result<Vec<ObjectRemoval>> {
        if !self.pass.removals.orphans {
            return Ok(removals);
        }
        let checks = removals.into_iter().map(|orphan| async {
            let source = self.find_source(&orphan).await?;
            Ok::<_, StoreError>((orphan, source))
        });
        let orphans = self.pass.slots.run_all(checks).await?;
        let paths = orphans.iter().filter_map(|(_, source)| source.gone_path());
        let named = self.named_paths(&paths.collect::<Vec<_>>()).await?;
        let mut replaceable = Vec::new();
        for (orphan, source) in orphans {
            let reason = match source {
                OrphanSource::Gone(path) if named.contains(&path) => LAST_BYTES_REASON.to_owned(),
                OrphanSource::Unknown(reason) => reason,
                OrphanSource::Exists | OrphanSource::Gone(_) => {
                    replaceable.push(orphan);
                    continue;
                }
            };
            outcomes.push((orphan, RemovalOutcome::Kept(reason)));
        }
        Ok(replaceable)
    }

    async fn find_source(&self, orphan: &ObjectRemoval) -> Result<OrphanSource, StoreError> {
        let removals = self.pass.removals;
        let old_path = removals.ledger.rule().old_path(&orphan.path);
        let (Some(path), Some(route)) = (old_path, removals.route_of(orphan)) else {
            return Ok(OrphanSource::Unknown(
                "its path is outside the path rule".into(),
            ));
        };
        match stat_object(self.pass.store, BucketSide::Source, &route.source_key).await {
            Ok(Some(_)) => Ok(OrphanSource::Exists),
            Ok(None) => Ok(OrphanSource::Gone(path)),
            Err(error) if is_object_error(&error) => Ok(OrphanSource::Unknown(error.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn named_paths(&self, paths: &[String]) -> anyhow::Result<HashSet<String>> {
        if paths.is_empty() {
            return Ok(HashSet::new());
        }
        let removals = self.pass.removals;
        let named = removals.column.find_paths(removals.ledger, paths, "true");
        Ok(named.await?)
    }
}

impl OrphanSource {
    fn gone_path(&self) -> Option<String> {
        match self {
            Self::Gone(path) => Some(path.clone()),
            Self::Exists | Self::Unknown(_) => None,
        }
    }
}
