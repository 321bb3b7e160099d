//! Many objects in one answer.

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{EncodingType, Object};
use percent_encoding::percent_decode_str;

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
        // XML 1.0 has no form for most control characters.
        let request = request.encoding_type(EncodingType::Url);
        let listed = request.start_after(start_after).send().await;
        let listed = listed.map_err(|error| bucket.refused("", error))?;
        let is_truncated = listed.is_truncated() == Some(true);
        let is_encoded = listed.encoding_type() == Some(&EncodingType::Url);
        let objects = listed.contents.unwrap_or_default().into_iter();
        let objects = objects.filter_map(listed_object);
        let objects = objects.filter_map(|(key, stat)| {
            let key = if is_encoded { decode_key(&key)? } else { key };
            Some((key, stat))
        });
        Ok(ListedObjects {
            objects: objects.collect(),
            is_truncated,
        })
    }

    /// Whether both buckets are: their listings show what is there.
    pub fn is_of_aws(&self) -> bool {
        self.source.copies.is_aws() && self.destination.copies.is_aws()
    }
}

/// As in a form: a space may be a plus. None where it is no UTF-8.
fn decode_key(key: &str) -> Option<String> {
    let key = key.replace('+', " ");
    let decoded = percent_decode_str(&key).decode_utf8().ok()?;
    Some(decoded.into_owned())
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

#[cfg(test)]
mod tests {
    use super::decode_key;

    #[test]
    fn keys_are_decoded_as_they_were_encoded() {
        for (encoded, key) in [
            ("a+b%2Bc%20d.png", "a b+c d.png"),
            ("a%01%0A%C3%A9%25/b", "a\u{1}\né%/b"),
        ] {
            assert_eq!(decode_key(encoded).as_deref(), Some(key));
        }
        assert_eq!(decode_key("%ff"), None);
    }
}
