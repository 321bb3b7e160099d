//! What may be cleaned away by the objects, the rows and the times on record, found out without asking the
//! product.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use super::scene::Scene;
use crate::seed::SeededRowKind;

/// The objects under the old paths and under the new ones, by old path, with their ETags.
pub(super) struct Snapshot {
    pub(super) sources: BTreeMap<String, String>,
    copies: BTreeMap<String, String>,
    /// Old paths off which every move was verified since it was made.
    verified: BTreeSet<String>,
    /// Paths that some row names.
    named: BTreeSet<String>,
}

const VERIFIED: &str = "SELECT old_path, '' FROM bucket_brigade.moves GROUP BY old_path
    HAVING bool_and(coalesce(verified_at > moved_at, false))";

impl Snapshot {
    pub(super) async fn take(scene: &Scene) -> Result<Self> {
        let application = &scene.stage.application;
        let (old, new) = (&application.source_bucket, &application.destination_bucket);
        Ok(Self {
            // Paths are keys here.
            sources: etags(scene, old, str::to_owned),
            copies: etags(scene, new, |path| scene.new_path(path)),
            verified: scene.pairs(VERIFIED).await?.into_keys().collect(),
            named: scene.paths().await?.into_values().collect(),
        })
    }

    /// The sources that may go now, where `before` tells what they were.
    pub(super) fn may_go(&self, before: &Self) -> BTreeSet<String> {
        let sources = before.sources.iter();
        let may_go = sources.filter(|(path, etag)| {
            self.copies.get(*path) == Some(etag)
                && self.verified.contains(*path)
                && !self.named.contains(*path)
        });
        may_go.map(|(path, _)| path.clone()).collect()
    }

    /// The sources that were there before and are not now.
    pub(super) fn gone_since(&self, before: &Self) -> BTreeSet<String> {
        let before = before.sources.keys();
        before
            .filter(|path| !self.sources.contains_key(*path))
            .cloned()
            .collect()
    }
}

/// The ETags of the rows' objects in a bucket, by old path.
fn etags(scene: &Scene, bucket: &str, key: impl Fn(&str) -> String) -> BTreeMap<String, String> {
    let etags = scene.stage.cloud.list_etags(bucket);
    let rows = scene.seeded.rows_of_kind(SeededRowKind::ToMove);
    let found =
        rows.filter_map(|row| Some((row.path.clone(), etags.get(&key(&row.path))?.clone())));
    found.collect()
}
