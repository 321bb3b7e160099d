//! The object store on S3: one `CopyObject` per image, and what to do when that is not enough.

mod access;
mod attributes;
mod compare;
mod copy;
mod delete_guard;
mod encoding;
mod errors;
#[cfg(test)]
pub(crate) mod fixture;
mod hashed_body;
mod inspect;
mod list;
mod method;
mod multipart;
mod probe;
mod remove;
mod replace;
mod requests;
mod rights;
mod stores;
mod stream;

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use futures::future::{join, select_ok};
use tokio::sync::OnceCell;

use access::StoreLabel;
pub use access::{S3Access, S3Bucket};
pub use attributes::{CopyAttributes, FROM_SOURCE, NO_TAG_SET_CODES, NO_TAGS_CODES};
pub use encoding::copy_source;
use errors::store_error;
use inspect::ReadHistory;
pub use inspect::{CUSTOMER_KEY, ObjectHead};
pub use list::ListedObjects;
pub use method::{CopyMethod, MethodRequest};
pub use probe::CopyProbe;

use copy::{CopyCondition, ObjectRequest};
use delete_guard::DeleteGuard;

use crate::ledger::RunOptions;
use crate::object_store::objects::BucketSide;
use crate::object_store::{CopiedObject, DestinationState, NO_ETAG, ObjectStore, StoreError};
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

#[derive(Debug, Clone)]
pub struct S3Options {
    pub attributes: CopyAttributes,
    pub method: CopyMethod,
    /// Whether the store honours `If-None-Match` on such a copy. When it does not, a HEAD goes first.
    pub conditional_copy: bool,
    /// Whether it does when an upload in parts is completed.
    pub conditional_complete: bool,
    /// Whether a HEAD is guard enough where it does not.
    pub accept_unconditional: bool,
    /// When to copy in parts.
    pub limits: CopyLimits,
}

impl Default for S3Options {
    /// The bucket's own defaults, never over an object.
    fn default() -> Self {
        Self {
            attributes: CopyAttributes::default(),
            method: CopyMethod::Server,
            conditional_copy: true,
            conditional_complete: true,
            accept_unconditional: false,
            limits: CopyLimits::default(),
        }
    }
}

impl S3Options {
    pub fn of_run(options: &RunOptions) -> Self {
        Self {
            attributes: CopyAttributes::of_run(options),
            ..Self::default()
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
    /// How its deletes are guarded, once it is known.
    delete_guard: Arc<OnceCell<DeleteGuard>>,
    /// Whether the ETags in a `DeleteObjects` are, too.
    batches_are_guarded: Arc<OnceLock<bool>>,
    /// Of both sides.
    reads: Arc<[ReadHistory; 2]>,
}

impl S3Store {
    /// A store that copies from `source` to `destination`.
    pub fn new(source: S3Bucket, destination: S3Bucket, options: S3Options) -> Self {
        Self {
            source,
            destination,
            options,
            replace_etag: None,
            delete_guard: Arc::default(),
            batches_are_guarded: Arc::default(),
            reads: Arc::default(),
        }
    }

    fn bucket_at(&self, side: BucketSide) -> &S3Bucket {
        match side {
            BucketSide::Source => &self.source,
            BucketSide::Destination => &self.destination,
        }
    }

    fn condition(&self) -> CopyCondition<'_> {
        self.condition_if(self.options.conditional_copy)
    }

    /// None for a store that honours none: some refuse what has one. `on_absence`: whether it honours this one.
    fn condition_if(&self, on_absence: bool) -> CopyCondition<'_> {
        match &self.replace_etag {
            Some(ours) if self.options.conditional_copy => CopyCondition::Over(ours),
            None if on_absence => CopyCondition::Absent,
            _ => CopyCondition::None,
        }
    }

    /// One copy of the object `source_key` in `source` to `key` of the destination.
    async fn write_copy(
        &self,
        source: &S3Bucket,
        source_key: &str,
        key: &str,
        condition: CopyCondition<'_>,
        attributes: &CopyAttributes,
    ) -> Result<CopiedObject, StoreError> {
        if let CopyMethod::Stream = self.options.method {
            let copy = stream::StreamedCopy {
                store: self,
                source,
                source_key,
                key,
                condition,
                attributes,
            };
            // Boxed, so that the SDK's futures make no room in the one of a copy.
            return Box::pin(copy.run()).await;
        }
        let attributes = attributes.for_object(source, source_key).await?;
        let request = ObjectRequest {
            operation: "CopyObject",
            method: "PUT",
            key,
            query: "?x-id=CopyObject",
            source: Some((source, source_key)),
            headers: attributes.headers().chain(condition.header()).collect(),
        };
        let copied = self.destination.copies.copy(&request).await;
        confirm_copy(copied.map_err(store_error)?.etag.as_deref())
    }

    /// A refusal by condition is no more proof than a 200: it counts only with an object at `key`.
    async fn check_refusal<T>(
        &self,
        written: Result<T, StoreError>,
        key: &str,
    ) -> Result<T, StoreError> {
        let is_refused = matches!(written, Err(StoreError::DestinationExists));
        if is_refused && self.replace_etag.is_none() {
            // Boxed, so that what is rare makes no room in each copy in flight.
            let head = Box::pin(self.destination.head(key)).await?;
            head.ok_or_else(StoreError::destination_vanished)?;
        }
        written
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
        let condition = self.condition();
        // What is replaced was looked at already.
        if matches!(condition, CopyCondition::None) && self.replace_etag.is_none() {
            // Boxed, so that the SDK's future makes no room in the one of a copy.
            Box::pin(self.ensure_destination_free(route)).await?;
        }
        let (from, to) = (&route.source_key, &route.destination_key);
        let copied = self
            .write_copy(&self.source, from, to, condition, &self.options.attributes)
            .await;
        self.check_refusal(copied, to).await
    }

    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let copied = multipart::copy_in_parts(self, route).await;
        self.check_refusal(copied, &route.destination_key).await
    }

    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        compare::compare_destination(self, route).await
    }

    async fn check_rights(
        &self,
        rule: &PathRule,
        source_keys: &[String],
    ) -> Result<bool, StoreError> {
        Box::pin(self.copy_for_rights(rule, source_keys)).await
    }

    async fn check_source(&self, source_keys: &[String]) -> Result<(), StoreError> {
        if self.options.method == CopyMethod::Server || source_keys.is_empty() {
            return Ok(());
        }
        let reads = source_keys
            .iter()
            .map(|key| Box::pin(self.source.check_first_byte(key)));
        select_ok(reads).await.map(drop)
    }

    async fn silent_side(&self) -> Option<BucketSide> {
        let (source, destination) = (
            self.source.is_responding(),
            self.destination.is_responding(),
        );
        match Box::pin(join(source, destination)).await {
            (true, true) => None,
            (false, _) => Some(BucketSide::Source),
            (true, false) => Some(BucketSide::Destination),
        }
    }

    fn store_name(&self, side: BucketSide) -> Option<String> {
        let StoreLabel(name) = &self.bucket_at(side).copies.store;
        name.as_deref().map(ToOwned::to_owned)
    }
}

/// A 200 is no proof: S3 may send it before the copy is made. Only an `ETag` proves the copy.
fn confirm_copy(etag: Option<&str>) -> Result<CopiedObject, StoreError> {
    match etag.map(bare_etag) {
        Some(etag) if !etag.is_empty() => Ok(CopiedObject::new(etag)),
        _ => Err(StoreError::transient(
            NO_ETAG,
            "S3 answered 200 without an ETag, which proves no copy",
        )),
    }
}

/// A proxy that compresses makes it a weak one.
fn bare_etag(etag: &str) -> &str {
    etag.trim_start_matches("W/").trim_matches('"')
}
