//! The two buckets. An object is its bytes, which are its ETag too.

use std::collections::BTreeMap;

use bucket_brigade_common::object_store::{CopiedObject, DestinationState, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;

use super::{COMPANION_SUFFIX, NEW_PREFIX, OLD_PREFIX};

/// The buckets: key to bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct MemoryBuckets {
    pub source: BTreeMap<String, String>,
    pub destination: BTreeMap<String, String>,
}

impl MemoryBuckets {
    /// One copy. With `If-None-Match: *` an object at the destination is never overwritten.
    ///
    /// # Errors
    /// [`StoreError::Permanent`] without a source, [`StoreError::DestinationExists`].
    pub fn copy(&mut self, route: &MoveRoute, only_new: bool) -> Result<CopiedObject, StoreError> {
        let Some(bytes) = self.source.get(&route.source_key).cloned() else {
            return Err(missing_source_error());
        };
        if only_new && self.destination.contains_key(&route.destination_key) {
            return Err(StoreError::DestinationExists);
        }
        let key = route.destination_key.clone();
        self.destination.insert(key, bytes.clone());
        Ok(CopiedObject::new(bytes))
    }

    /// Compares what stands at the destination with the source.
    pub fn compare_objects(&self, route: &MoveRoute) -> DestinationState {
        let Some(bytes) = self.destination.get(&route.destination_key) else {
            return DestinationState::Empty;
        };
        match self.source.get(&route.source_key) {
            None => DestinationState::WithoutSource(CopiedObject {
                is_source_gone: true,
                ..found_object(bytes)
            }),
            Some(source) if source == bytes => DestinationState::Same(found_object(bytes)),
            Some(_) => DestinationState::Different("the bytes".into()),
        }
    }

    /// Puts an image into the source bucket, and perhaps its companion.
    pub fn put_source(&mut self, path: &str, bytes: String, with_companion: bool) {
        if with_companion {
            let companion = format!("companion of {bytes}");
            self.source
                .insert(format!("{path}{COMPANION_SUFFIX}"), companion);
        }
        self.source.insert(path.to_owned(), bytes);
    }

    /// Whether the image of a new path had a companion that is not there.
    pub fn lacks_companion(&self, new_path: &str) -> bool {
        let rest = new_path.strip_prefix(NEW_PREFIX).unwrap_or(new_path);
        let source = self
            .source
            .get(&format!("{OLD_PREFIX}{rest}{COMPANION_SUFFIX}"));
        let copy = self
            .destination
            .get(&format!("{new_path}{COMPANION_SUFFIX}"));
        source.is_some() && source != copy
    }

    pub fn object_at_path(&self, path: &str) -> Option<&String> {
        let bucket = if path.starts_with(NEW_PREFIX) {
            &self.destination
        } else {
            &self.source
        };
        bucket.get(path)
    }
}

fn found_object(etag: &str) -> CopiedObject {
    CopiedObject {
        is_found: true,
        ..CopiedObject::new(etag)
    }
}

fn missing_source_error() -> StoreError {
    StoreError::Permanent {
        code: "NoSuchKey".into(),
        message: "there is no such key".into(),
    }
}
