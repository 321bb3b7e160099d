//! What may be cleaned away by the objects, the rows and the times on record, found out without asking the
//! product.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt, stream};

use super::scene::Scene;
use crate::application::Application;
use crate::seed::Kind;

const LOOKS_AT_ONCE: usize = 32;

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
        let rows = scene.seeded.of(Kind::ToMove);
        let old: BTreeSet<String> = rows.map(|row| row.path.clone()).collect();
        let application = &scene.stage.application;
        let new = |path: &String| (path.clone(), scene.new_path(path));
        let same = |path: &String| (path.clone(), path.clone());
        // The rows last: what none of them names when the objects are looked at stays without a name.
        let sources = etags(application, old.iter().map(same).collect()).await?;
        let copies = etags(application, old.iter().map(new).collect()).await?;
        Ok(Self {
            sources,
            copies,
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

/// The ETags of the objects that the second path of each pair names, by the first.
async fn etags(
    application: &Application,
    paths: Vec<(String, String)>,
) -> Result<BTreeMap<String, String>> {
    let looks = paths.into_iter().map(|(name, path)| async move {
        let etag = application.etag(&application.locate(&path)).await?;
        anyhow::Ok(etag.map(|etag| (name, etag)))
    });
    let found = stream::iter(looks).buffer_unordered(LOOKS_AT_ONCE);
    found
        .try_filter_map(async |found| Ok(found))
        .try_collect()
        .await
}
