//! The object store on S3: one `CopyObject` per image, and what to do when that is not enough.

mod compare;
mod direct;
mod encoding;
mod errors;
mod inspect;
mod multipart;
mod probe;
mod remove;
mod replace;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::types::StorageClass;

pub use encoding::copy_source;
pub use errors::store_error;

use direct::{Condition, Order, Shown, Watch};

use crate::object_store::{CopiedObject, DestinationState, ObjectStore, StoreError};
use crate::objects::BucketSide;
use crate::path_rule::MoveRoute;

/// Sizes that decide how an object is copied, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct CopyLimits {
    /// The most one `CopyObject` copies.
    pub single_bytes: u64,
    /// The size of a part of a multipart copy.
    pub part_bytes: u64,
}

impl Default for CopyLimits {
    /// S3's own limit, and parts small enough to be copied in a few seconds each.
    /// Source: Amazon S3 User Guide, "Copying, moving, and renaming objects".
    fn default() -> Self {
        Self {
            single_bytes: 5 << 30,
            part_bytes: 256 << 20,
        }
    }
}

/// Which buckets, and how copies are written.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// Where the images are.
    pub source_bucket: String,
    /// Where they go.
    pub destination_bucket: String,
    /// The storage class of the copies; none for the bucket's default (STANDARD).
    pub storage_class: Option<StorageClass>,
    /// Whether the store honours `If-None-Match` on a copy. When it does not, a HEAD goes first.
    pub conditional_copy: bool,
    /// When to copy in parts.
    pub limits: CopyLimits,
}

/// S3, or a store that speaks its protocol.
#[derive(Debug, Clone)]
pub struct S3Store {
    client: Client,
    source_client: Client,
    options: S3Options,
    /// The ETag of an older copy of ours that a copy is to replace; none to overwrite nothing.
    replace_etag: Option<String>,
    /// How the SDK sends a copy.
    shown: Shown,
}

impl S3Store {
    /// A store on clients whose own retries are off. Copies are sent to the destination's region; what
    /// is asked about a source object goes to the source's.
    pub fn new(client: Client, source_client: Client, options: S3Options) -> Self {
        Self {
            client,
            source_client,
            options,
            replace_etag: None,
            shown: Shown::default(),
        }
    }

    /// The client and the bucket of one side.
    fn client_and_bucket(&self, side: BucketSide) -> (&Client, &str) {
        match side {
            BucketSide::Source => (&self.source_client, &self.options.source_bucket),
            BucketSide::Destination => (&self.client, &self.options.destination_bucket),
        }
    }

    fn copy_request<'a>(&'a self, route: &'a MoveRoute) -> Order<'a> {
        let condition = match &self.replace_etag {
            Some(ours) => Condition::Over(ours),
            None if self.options.conditional_copy => Condition::Absent,
            None => Condition::None,
        };
        Order {
            key: &route.destination_key,
            source: copy_source(&self.options.source_bucket, &route.source_key),
            condition,
            storage_class: self
                .options
                .storage_class
                .as_ref()
                .map(StorageClass::as_str),
        }
    }

    async fn copy_with_sdk(&self, order: &Order<'_>) -> Result<CopiedObject, StoreError> {
        let request = self
            .client
            .copy_object()
            .copy_source(&order.source)
            .bucket(&self.options.destination_bucket)
            .key(order.key)
            .set_storage_class(self.options.storage_class.clone());
        let request = match order.condition {
            Condition::Absent => request.if_none_match("*"),
            Condition::Over(etag) => request.if_match(etag),
            Condition::None => request,
        };
        let watch = Watch::new(&self.shown, order.key);
        let output = request.customize().interceptor(watch).send().await;
        let result = output.map_err(store_error)?.copy_object_result;
        confirm_copy(result.as_ref().and_then(|result| result.e_tag()))
    }

    /// Refuses to go on when there is an object at the destination. Only for stores that ignore the
    /// condition on the copy itself: between this HEAD and the copy another writer can slip in.
    async fn ensure_destination_free(&self, route: &MoveRoute) -> Result<(), StoreError> {
        match self.head_destination(route).await? {
            Some(_) => Err(StoreError::DestinationExists),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    // The SDK's futures are boxed, so that they make no room in the one of a direct copy.
    async fn copy(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let order = self.copy_request(route);
        if let Condition::None = order.condition {
            Box::pin(self.ensure_destination_free(route)).await?;
        }
        let Some(pattern) = self.shown.pattern() else {
            return Box::pin(self.copy_with_sdk(&order)).await;
        };
        let answer = pattern.copy(&order).await.map_err(store_error);
        if let Err(StoreError::Systemic { .. }) = answer {
            self.shown.forget();
        }
        confirm_copy(answer?.as_deref())
    }

    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        multipart::copy_in_parts(self, route).await
    }

    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        compare::compare_destination(self, route).await
    }
}

/// A 200 is no proof: S3 may send it before the copy is made, and the SDK reads an empty body as
/// success. Only an `ETag` proves the copy.
fn confirm_copy(etag: Option<&str>) -> Result<CopiedObject, StoreError> {
    match etag.map(bare_etag) {
        Some(etag) if !etag.is_empty() => Ok(CopiedObject {
            etag: etag.to_owned(),
            size_bytes: None,
        }),
        _ => Err(StoreError::Transient {
            code: "NoETag".into(),
            message: "S3 answered 200 without an ETag, which proves no copy".into(),
        }),
    }
}

fn bare_etag(etag: &str) -> &str {
    etag.trim_matches('"')
}
