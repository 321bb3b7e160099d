//! All objects the checker looks at, each read once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};

use crate::application::{Application, Location, Object};
use crate::seed::Row;

const READS_AT_ONCE: usize = 32;

pub(super) struct Objects(BTreeMap<Location, Object>);

impl Objects {
    pub(super) async fn load(
        application: &Application,
        places: BTreeSet<Location>,
    ) -> Result<Self> {
        let reads = places.into_iter().map(|at| async move {
            let object = application.get_tagged_object(&at).await?;
            anyhow::Ok(object.map(|object| (at, object)))
        });
        let found = futures::stream::iter(reads).buffer_unordered(READS_AT_ONCE);
        let found: BTreeMap<Location, Object> = found
            .try_filter_map(async |found| Ok(found))
            .try_collect()
            .await?;
        Ok(Self(found))
    }

    pub(super) fn get(&self, at: &Location) -> Option<&Object> {
        self.0.get(at)
    }

    /// How the object there differs from what was seeded for `row`.
    pub(super) fn differs(&self, row: &Row, at: &Location) -> Vec<String> {
        let Some(found) = self.get(at) else {
            return vec![format!("row {}: object {at} is gone", row.id)];
        };
        let (found, seeded) = (differences(found), differences_of(row));
        let pairs = seeded
            .into_iter()
            .zip(found)
            .filter(|((_, seeded), (_, found))| seeded != found);
        pairs
            .map(|((name, seeded), (_, found))| {
                format!(
                    "row {}: object {at} has {name} {found} instead of {seeded}",
                    row.id
                )
            })
            .collect()
    }
}

type Fields = [(&'static str, String); 7];

fn differences(object: &Object) -> Fields {
    fields(&object.sha256, &object.properties)
}

fn differences_of(row: &Row) -> Fields {
    fields(&row.sha256, &row.properties)
}

fn fields(sha256: &str, properties: &crate::application::Properties) -> Fields {
    let text = |value: &Option<String>| {
        value
            .as_ref()
            .map_or("none".to_owned(), |value| format!("{value:?}"))
    };
    [
        ("SHA-256", sha256.to_owned()),
        ("content type", text(&properties.content_type)),
        ("cache control", text(&properties.cache_control)),
        ("content encoding", text(&properties.content_encoding)),
        ("content disposition", text(&properties.content_disposition)),
        ("metadata", format!("{:?}", properties.metadata)),
        ("tags", format!("{:?}", properties.tags)),
    ]
}
