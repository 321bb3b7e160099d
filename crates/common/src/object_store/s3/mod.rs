//! The object store on S3: one `CopyObject` per image, and what to do when that is not enough.

mod access;
mod attributes;
mod compare;
mod copy;
mod encoding;
mod errors;
mod inspect;
mod multipart;
mod probe;
mod remove;
mod replace;
mod rights;

use async_trait::async_trait;

pub use access::{S3Access, S3Bucket};
pub use attributes::CopyAttributes;
pub use encoding::copy_source;
pub use errors::store_error;
pub use inspect::CUSTOMER_KEY;
pub use probe::CopyProbe;

use copy::{CopyCondition, CopyRequest};

use crate::object_store::objects::BucketSide;
use crate::object_store::{CopiedObject, DestinationState, ObjectStore, StoreError};
use crate::path_rule::{MoveRoute, PathRule};

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

/// How copies are written.
#[derive(Debug, Clone)]
pub struct S3Options {
    pub attributes: CopyAttributes,
    /// Whether the store honours `If-None-Match` on a copy. When it does not, a HEAD goes first.
    pub conditional_copy: bool,
    /// When to copy in parts.
    pub limits: CopyLimits,
}

impl Default for S3Options {
    /// The bucket's own defaults, never over an object.
    fn default() -> Self {
        Self {
            attributes: CopyAttributes::default(),
            conditional_copy: true,
            limits: CopyLimits::default(),
        }
    }
}

/// S3, or a store that speaks its protocol.
#[derive(Debug, Clone)]
pub struct S3Store {
    /// What is asked about a source object goes to its own region.
    source: S3Bucket,
    /// Copies are sent to the destination's region.
    destination: S3Bucket,
    options: S3Options,
    /// The ETag of an older copy of ours that a copy is to replace; none to overwrite nothing.
    replace_etag: Option<String>,
}

impl S3Store {
    /// A store that copies from `source` to `destination`.
    pub fn new(source: S3Bucket, destination: S3Bucket, options: S3Options) -> Self {
        Self {
            source,
            destination,
            options,
            replace_etag: None,
        }
    }

    fn bucket_at(&self, side: BucketSide) -> &S3Bucket {
        match side {
            BucketSide::Source => &self.source,
            BucketSide::Destination => &self.destination,
        }
    }

    fn copy_request<'a>(&'a self, route: &'a MoveRoute) -> CopyRequest<'a> {
        let condition = match &self.replace_etag {
            Some(ours) => CopyCondition::Over(ours),
            None if self.options.conditional_copy => CopyCondition::Absent,
            None => CopyCondition::None,
        };
        CopyRequest {
            key: &route.destination_key,
            source: copy_source(&self.source.name, &route.source_key),
            condition,
            attributes: &self.options.attributes,
        }
    }

    async fn send_copy(&self, request: &CopyRequest<'_>) -> Result<CopiedObject, StoreError> {
        let etag = self.destination.copies.copy(request).await;
        confirm_copy(etag.map_err(store_error)?.as_deref())
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
    async fn copy(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let request = self.copy_request(route);
        if let CopyCondition::None = request.condition {
            // Boxed, so that the SDK's future makes no room in the one of a copy.
            Box::pin(self.ensure_destination_free(route)).await?;
        }
        self.send_copy(&request).await
    }

    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        multipart::copy_in_parts(self, route).await
    }

    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        compare::compare_destination(self, route).await
    }

    async fn check_rights(
        &self,
        rule: &PathRule,
        copied: Option<&MoveRoute>,
    ) -> Result<(), StoreError> {
        Box::pin(self.copy_for_rights(rule, copied)).await
    }
}

/// Our code for a 200 that proves no copy.
const NO_ETAG: &str = "NoETag";

/// A 200 is no proof: S3 may send it before the copy is made. Only an `ETag` proves the copy.
fn confirm_copy(etag: Option<&str>) -> Result<CopiedObject, StoreError> {
    match etag.map(bare_etag) {
        Some(etag) if !etag.is_empty() => Ok(CopiedObject {
            etag: etag.to_owned(),
            size_bytes: None,
            is_source_gone: false,
        }),
        _ => Err(StoreError::Transient {
            code: NO_ETAG.into(),
            message: "S3 answered 200 without an ETag, which proves no copy".into(),
        }),
    }
}

fn bare_etag(etag: &str) -> &str {
    etag.trim_matches('"')
}
