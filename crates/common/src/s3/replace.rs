//! A newer copy over an older one of ours, never over anybody else's object.

use async_trait::async_trait;

use super::{S3Options, S3Store};
use crate::object_store::{Copied, ObjectStore, StoreError};
use crate::objects::Replace;
use crate::path_rule::Route;

#[async_trait]
impl Replace for S3Store {
    /// The HEAD tells the storage class, which a copy does not keep by itself, and guards stores that
    /// ignore the condition on the copy.
    async fn replace(&self, route: &Route, ours: &str) -> Result<Copied, StoreError> {
        let Some(head) = self.head_destination(route).await? else {
            return Err(StoreError::DestinationExists);
        };
        let etag = head.e_tag().unwrap_or_default().to_owned();
        if super::bare_etag(&etag) != ours {
            return Err(StoreError::DestinationExists);
        }
        let store = Self {
            options: S3Options {
                storage_class: head.storage_class,
                ..self.options.clone()
            },
            replaces: Some(etag),
            ..self.clone()
        };
        match store.copy(route).await {
            Err(StoreError::TooLarge) => store.copy_in_parts(route).await,
            other => other,
        }
    }
}
