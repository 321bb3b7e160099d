//! A newer copy over an older one of ours, never over an object that is not ours.

use super::{CopyAttributes, S3Options, S3Store};
use crate::object_store::{CopiedObject, ObjectStore, StoreError};
use crate::path_rule::MoveRoute;

impl S3Store {
    /// Copies the source once more over our copy, only while that still has the ETag `ours`.
    ///
    /// # Errors
    /// [`StoreError::DestinationExists`] when what stands there is another object by now.
    pub async fn replace_copy(
        &self,
        route: &MoveRoute,
        ours: &str,
    ) -> Result<CopiedObject, StoreError> {
        // It has the storage class, which a copy does not keep by itself, and guards stores that ignore the
        // condition on the copy.
        let Some(head) = self.head_destination(route).await? else {
            return Err(StoreError::DestinationExists);
        };
        if head.etag() != ours {
            return Err(StoreError::DestinationExists);
        }
        let store = Self {
            options: S3Options {
                attributes: CopyAttributes {
                    storage_class: head.storage_class().map(ToOwned::to_owned),
                    keeps_storage_class: false,
                    ..self.options.attributes.clone()
                },
                ..self.options.clone()
            },
            replace_etag: Some(format!("\"{ours}\"")),
            ..self.clone()
        };
        store.copy_whole(route).await
    }

    /// Whether the bytes of what is copied can be read.
    pub async fn check_source_readable(&self, route: &MoveRoute) -> Result<(), StoreError> {
        self.source.check_readable(&route.source_key).await
    }

    /// One copy, however large the object.
    pub async fn copy_whole(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        match self.copy(route).await {
            Err(StoreError::TooLarge) => self.copy_multipart(route).await,
            other => other,
        }
    }
}
