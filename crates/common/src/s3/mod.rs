//! The object store on S3: one `CopyObject` per image, and what to do when that is not enough.

mod compare;
mod encoding;
mod errors;
mod inspect;
mod multipart;
mod probe;
mod remove;
mod replace;

use async_trait::async_trait;
use aws_sdk_s3::Client;
use aws_sdk_s3::types::{CopyObjectResult, StorageClass};

pub use encoding::copy_source;
pub use errors::store_error;

use crate::object_store::{Copied, Destination, ObjectStore, StoreError};
use crate::objects::Side;
use crate::path_rule::Route;

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
    replaces: Option<String>,
}

impl S3Store {
    /// A store on clients whose own retries are off. Copies are sent to the destination's region; what
    /// is asked about a source object goes to the source's.
    pub fn new(client: Client, source_client: Client, options: S3Options) -> Self {
        Self {
            client,
            source_client,
            options,
            replaces: None,
        }
    }

    /// The client and the bucket of one side.
    fn at(&self, side: Side) -> (&Client, &str) {
        match side {
            Side::Source => (&self.source_client, &self.options.source_bucket),
            Side::Destination => (&self.client, &self.options.destination_bucket),
        }
    }

    /// Refuses to go on when there is an object at the destination. Only for stores that ignore the
    /// condition on the copy itself: between this HEAD and the copy another writer can slip in.
    async fn refuse_if_taken(&self, route: &Route) -> Result<(), StoreError> {
        match self.head_destination(route).await? {
            Some(_) => Err(StoreError::DestinationExists),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl ObjectStore for S3Store {
    async fn copy(&self, route: &Route) -> Result<Copied, StoreError> {
        let mut request = self
            .client
            .copy_object()
            .copy_source(copy_source(&self.options.source_bucket, &route.source_key))
            .bucket(&self.options.destination_bucket)
            .key(&route.destination_key)
            .set_storage_class(self.options.storage_class.clone());
        if let Some(ours) = &self.replaces {
            request = request.if_match(ours);
        } else if self.options.conditional_copy {
            request = request.if_none_match("*");
        } else {
            self.refuse_if_taken(route).await?;
        }
        let output = request.send().await.map_err(store_error)?;
        let result = output.copy_object_result.as_ref();
        proven(result.and_then(CopyObjectResult::e_tag))
    }

    async fn copy_in_parts(&self, route: &Route) -> Result<Copied, StoreError> {
        multipart::copy(self, route).await
    }

    async fn compare(&self, route: &Route) -> Result<Destination, StoreError> {
        compare::compare(self, route).await
    }
}

/// A 200 is no proof: S3 may send it before the copy is made, and the SDK reads an empty body as
/// success. Only an `ETag` proves the copy.
fn proven(etag: Option<&str>) -> Result<Copied, StoreError> {
    match etag.map(bare_etag) {
        Some(etag) if !etag.is_empty() => Ok(Copied {
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
