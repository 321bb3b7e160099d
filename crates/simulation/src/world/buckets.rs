//! The two buckets. An object is its bytes, which are its ETag too.

use std::collections::BTreeMap;

use bucket_brigade_common::object_store::{Copied, Destination, StoreError};
use bucket_brigade_common::path_rule::Route;

use super::NEW;

/// The buckets: key to bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Buckets {
    /// The old bucket.
    pub source: BTreeMap<String, String>,
    /// The new bucket.
    pub destination: BTreeMap<String, String>,
}

impl Buckets {
    /// One copy. With `If-None-Match: *` an object at the destination is never overwritten.
    ///
    /// # Errors
    /// [`StoreError::Permanent`] without a source, [`StoreError::DestinationExists`].
    pub fn copy(&mut self, route: &Route, only_new: bool) -> Result<Copied, StoreError> {
        let Some(bytes) = self.source.get(&route.source_key).cloned() else {
            return Err(missing());
        };
        if only_new && self.destination.contains_key(&route.destination_key) {
            return Err(StoreError::DestinationExists);
        }
        let key = route.destination_key.clone();
        self.destination.insert(key, bytes.clone());
        Ok(copied(bytes))
    }

    /// Compares what stands at the destination with the source.
    ///
    /// # Errors
    /// [`StoreError::Permanent`] without a source to compare with.
    pub fn compare(&self, route: &Route) -> Result<Destination, StoreError> {
        let Some(bytes) = self.destination.get(&route.destination_key) else {
            return Ok(Destination::Empty);
        };
        match self.source.get(&route.source_key) {
            None => Err(missing()),
            Some(source) if source == bytes => Ok(Destination::Same(copied(bytes.clone()))),
            Some(_) => Ok(Destination::Different("the bytes".into())),
        }
    }

    /// The object a path names.
    pub fn named_by(&self, path: &str) -> Option<&String> {
        let bucket = if path.starts_with(NEW) {
            &self.destination
        } else {
            &self.source
        };
        bucket.get(path)
    }
}

fn copied(etag: String) -> Copied {
    Copied {
        etag,
        size_bytes: None,
    }
}

fn missing() -> StoreError {
    StoreError::Permanent {
        code: "NoSuchKey".into(),
        message: "there is no such key".into(),
    }
}
