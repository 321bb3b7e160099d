//! Many objects in one answer.

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::Object;

use super::{S3Store, bare_etag};
use crate::object_store::StoreError;
use crate::object_store::objects::{BucketSide, ObjectStat};

/// Objects of a bucket, in the order of their keys.
#[derive(Debug, Clone, Default)]
pub struct ListedObjects {
    pub objects: Vec<(String, ObjectStat)>,
    /// Whether there are more after them.
    pub is_truncated: bool,
}

impl S3Store {
    /// The objects whose keys come after one, up to a thousand.
    pub async fn list_objects(
        &self,
        side: BucketSide,
        start_after: &str,
    ) -> Result<ListedObjects, StoreError> {
        let bucket = self.bucket_at(side);
        let request = bucket.client().list_objects_v2().bucket(bucket.name());
        let listed = request.start_after(start_after).send().await;
        let listed = listed.map_err(|error| bucket.refused("", error))?;
        let is_truncated = listed.is_truncated() == Some(true);
        let objects = listed.contents.unwrap_or_default();
        Ok(ListedObjects {
            objects: objects.into_iter().filter_map(listed_object).collect(),
            is_truncated,
        })
    }
}

/// A listing does not say how an object is encrypted, so its ETag proves no difference.
fn listed_object(object: Object) -> Option<(String, ObjectStat)> {
    let stat = ObjectStat {
        etag: bare_etag(object.e_tag()?).to_owned(),
        size_bytes: object.size()?,
        modified_seconds: object.last_modified().map(DateTime::secs),
        is_md5: false,
        unreadable_header: None,
    };
    Some((object.key?, stat))
}
