//! All objects the checker looks at, each read once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use futures::{StreamExt, TryStreamExt};

use crate::application::{Application, ApplicationObject, ObjectLocation};
use crate::seed::SeededRow;

const MAX_CONCURRENT_READS: usize = 32;

pub(super) struct ExpectedObjects(BTreeMap<ObjectLocation, ApplicationObject>);

impl ExpectedObjects {
    pub(super) async fn load(
        application: &Application,
        places: BTreeSet<ObjectLocation>,
    ) -> Result<Self> {
        let reads = places.into_iter().map(|at| async move {
            let object = application.get_tagged_object(&at).await?;
            anyhow::Ok(object.map(|object| (at, object)))
        });
        let found = futures::stream::iter(reads).buffer_unordered(MAX_CONCURRENT_READS);
        let found: BTreeMap<ObjectLocation, ApplicationObject> = found
            .try_filter_map(async |found| Ok(found))
            .try_collect()
            .await?;
        Ok(Self(found))
    }

    pub(super) fn get(&self, at: &ObjectLocation) -> Option<&ApplicationObject> {
        self.0.get(at)
    }

    /// How the object there differs from what was seeded for `row`.
    pub(super) fn diff_object(&self, row: &SeededRow, at: &ObjectLocation) -> Vec<String> {
        let Some(found) = self.get(at) else {
            return vec![format!("row {}: object {at} is gone", row.id)];
        };
        let (found, seeded) = (object_fields(found), row_fields(row));
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

type ObjectFields = [(&'static str, String); 7];

fn object_fields(object: &ApplicationObject) -> ObjectFields {
    property_fields(&object.sha256, &object.properties)
}

fn row_fields(row: &SeededRow) -> ObjectFields {
    property_fields(&row.sha256, &row.properties)
}

fn property_fields(
    sha256: &str,
    properties: &crate::application::ObjectProperties,
) -> ObjectFields {
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
