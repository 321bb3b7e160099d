//! The copy of an object too large for one `CopyObject`: part by part, on the server's side, and
//! carrying what a single copy would have carried by itself.

use std::borrow::Cow;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::copy::ObjectRequest;
use super::encoding::encode_query;
use super::inspect::ObjectHead;
use super::stream::copy_streamed_part;
use super::{CopyAttributes, CopyMethod, S3Bucket, S3Store, confirm_copy, store_error};
use crate::object_store::{CopiedObject, StoreError};
use crate::path_rule::MoveRoute;
use crate::retry::Backoff;

/// The most parts an upload may have. Source: Amazon S3 User Guide, "Multipart upload limits".
const MAX_PARTS: u64 = 10_000;

/// Parts of one object under way at a time: enough to hide latency, few enough not to starve the
/// other copies.
const MAX_PARTS_IN_FLIGHT: usize = 4;

/// Where the bytes go through this process: little to send again when a part fails.
const STREAMED_PART_BYTES: u64 = 16 << 20;

/// A part that fails costs no other part: it is tried again, for about as long as a small object.
const PART_RETRIES: usize = 6;

const PART_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

pub(super) async fn copy_in_parts(
    store: &S3Store,
    route: &MoveRoute,
) -> Result<CopiedObject, StoreError> {
    let source = store.head_source(route).await?;
    let size = u64::try_from(source.size_bytes).unwrap_or(0);
    if store.options.method == CopyMethod::Server && size <= store.options.limits.single_bytes {
        return Err(StoreError::permanent(
            "InvalidRequest",
            format!("the store refuses to copy this object of {size} bytes"),
        ));
    }
    if !is_conditional(store) {
        ensure_unconditional_accepted(store)?;
        if store.replace_etag.is_none() {
            store.ensure_destination_free(route).await?;
        }
    }
    let mut upload = OpenUpload {
        id: create_upload(store, route, &source).await?,
        bucket: store.destination.clone(),
        key: route.destination_key.clone(),
        is_open: true,
    };
    let copied = copy_parts_and_complete(store, route, &upload.id, &source, size).await;
    if copied.is_err() {
        upload.abort().await;
    }
    upload.is_open = false;
    match copied {
        Ok(copied) => Ok(CopiedObject {
            size_bytes: Some(source.size_bytes),
            ..copied
        }),
        Err(StoreError::TooLarge) => Err(StoreError::permanent(
            "EntityTooLarge",
            format!("the store takes this object of {size} bytes in parts no more than whole"),
        )),
        Err(error) => Err(error),
    }
}

fn is_conditional(store: &S3Store) -> bool {
    store.options.conditional_copy && store.options.conditional_complete
}

/// The store refuses to overwrite by one upload, and not by one in parts.
fn ensure_unconditional_accepted(store: &S3Store) -> Result<(), StoreError> {
    if store.options.accept_unconditional || !store.options.conditional_copy {
        return Ok(());
    }
    Err(StoreError::permanent(
        "UnconditionalUpload",
        "the object needs an upload in parts, by which this store overwrites whatever it meets: ACCEPT_UNCONDITIONAL=yes",
    ))
}

/// Starts the upload with everything S3 would have copied in a single copy.
async fn create_upload(
    store: &S3Store,
    route: &MoveRoute,
    source: &ObjectHead,
) -> Result<String, StoreError> {
    let attributes = &store.options.attributes;
    let attributes = CopyAttributes {
        keeps_storage_class: attributes.storage_class.is_none(),
        ..attributes.clone()
    };
    let headers = attributes.upload_headers(&store.source, &route.source_key, source, true);
    let (bucket, key) = (&store.destination, &route.destination_key);
    bucket.create_upload(key, headers.await?).await
}

/// Copies all parts and completes the upload.
async fn copy_parts_and_complete(
    store: &S3Store,
    route: &MoveRoute,
    upload: &str,
    source: &ObjectHead,
    size: u64,
) -> Result<CopiedObject, StoreError> {
    let part_bytes = match store.options.method {
        CopyMethod::Server => store.options.limits.part_bytes,
        CopyMethod::Stream => store.options.limits.part_bytes.min(STREAMED_PART_BYTES),
    };
    let copy = PartCopy {
        store,
        route,
        upload,
        source_etag: source.etag(),
    };
    let parts: Vec<String> = stream::iter(part_ranges(size, part_bytes))
        .map(|(number, range)| copy.copy_with_retries(number, range))
        .buffered(MAX_PARTS_IN_FLIGHT)
        .try_collect()
        .await?;
    let condition = store.condition_if(is_conditional(store));
    let (bucket, key) = (&store.destination, &route.destination_key);
    let completed = bucket.complete_upload(key, upload, &parts, condition).await;
    match completed?.as_deref() {
        // Some stores leave it empty there, and have it in a HEAD.
        Some("" | "\"\"") => confirm_by_head(store, route, size, parts.len()).await,
        etag => confirm_copy(etag),
    }
}

/// An object of that size in so many parts: what the application would write under the same key looks otherwise.
async fn confirm_by_head(
    store: &S3Store,
    route: &MoveRoute,
    size: u64,
    parts: usize,
) -> Result<CopiedObject, StoreError> {
    let head = store.head_destination(route).await?;
    let copy = head.filter(|head| {
        let has_size = u64::try_from(head.size_bytes) == Ok(size);
        has_size && head.etag().ends_with(&format!("-{parts}"))
    });
    confirm_copy(copy.as_ref().map(ObjectHead::etag))
}

/// Part numbers from 1 with their byte ranges; parts grow when there would be too many.
fn part_ranges(size: u64, part_bytes: u64) -> impl Iterator<Item = (i32, (u64, u64))> {
    let part = part_bytes.max(size.div_ceil(MAX_PARTS)).max(1);
    (1..).zip((0..size.div_ceil(part)).map(move |index| {
        let start = index * part;
        (start, (start + part).min(size) - 1)
    }))
}

/// The parts of an object that was replaced would never fit together.
const SOURCE_CHANGED: &str = "SourceChanged";

/// On a condition on the source.
pub(super) fn source_error(error: StoreError) -> StoreError {
    match error {
        StoreError::DestinationExists => StoreError::transient(
            SOURCE_CHANGED,
            "the source object was replaced while it was copied",
        ),
        other => other,
    }
}

fn may_pass(error: &StoreError) -> bool {
    match error {
        StoreError::Transient { code, .. } => code != SOURCE_CHANGED,
        StoreError::Throttled { .. } => true,
        _ => false,
    }
}

/// Copies the parts of one object.
pub(super) struct PartCopy<'a> {
    pub(super) store: &'a S3Store,
    pub(super) route: &'a MoveRoute,
    pub(super) upload: &'a str,
    /// All parts must be of one version of the source.
    pub(super) source_etag: &'a str,
}

impl PartCopy<'_> {
    async fn copy_with_retries(
        &self,
        number: i32,
        range: (u64, u64),
    ) -> Result<String, StoreError> {
        for delay in PART_BACKOFF.delays().take(PART_RETRIES) {
            match self.copy(number, range).await {
                Err(error) if may_pass(&error) => {
                    tracing::debug!(%error, number, "a part is copied again");
                    sleep(delay).await;
                }
                result => return result,
            }
        }
        self.copy(number, range).await
    }

    /// Returns the part's ETag.
    async fn copy(&self, number: i32, range: (u64, u64)) -> Result<String, StoreError> {
        let upload = encode_query(self.upload);
        let query = format!("?partNumber={number}&uploadId={upload}");
        if let CopyMethod::Stream = self.store.options.method {
            return copy_streamed_part(self, &query, range).await;
        }
        let headers = [
            ("if-match", format!("\"{}\"", self.source_etag)),
            ("range", format!("bytes={}-{}", range.0, range.1)),
        ];
        let headers =
            headers.map(|(name, value)| (Cow::from(format!("x-amz-copy-source-{name}")), value));
        let request = ObjectRequest {
            operation: "UploadPartCopy",
            method: "PUT",
            key: &self.route.destination_key,
            query: &query,
            source: Some((&self.store.source, &self.route.source_key)),
            headers: headers.into(),
        };
        let copied = self.store.destination.copies.exchange(&request, "").await;
        let copied = copied.map_err(|error| source_error(store_error(error)))?;
        Ok(confirm_copy(copied.etag.as_deref())?.etag)
    }
}

/// An upload under way: a copy that is given up half-way leaves none behind.
struct OpenUpload {
    bucket: S3Bucket,
    key: String,
    id: String,
    is_open: bool,
}

impl OpenUpload {
    /// Best effort: what is left behind costs storage until the bucket's lifecycle rule removes it.
    fn abort(&mut self) -> impl Future<Output = ()> + use<> {
        self.is_open = false;
        let (bucket, key, id) = (self.bucket.clone(), self.key.clone(), self.id.clone());
        async move {
            if let Err(error) = bucket.abort_upload(&key, &id).await {
                tracing::warn!(%key, %error, "an unfinished multipart upload was left behind");
            }
        }
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        if self.is_open
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(self.abort());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_last_part_is_what_remains() {
        let parts: Vec<_> = part_ranges(25, 10).collect();
        assert_eq!(parts, [(1, (0, 9)), (2, (10, 19)), (3, (20, 24))]);
    }

    proptest! {
        #[test]
        fn parts_cover_the_object_once_and_are_never_too_many(size in 1u64..1 << 44, part in 5u64 << 20..1 << 30) {
            let mut next = 0;
            let mut count = 0;
            for (number, (start, end)) in part_ranges(size, part) {
                prop_assert_eq!(start, next);
                next = end + 1;
                count = u64::try_from(number).unwrap();
            }
            prop_assert_eq!(next, size);
            prop_assert!(count <= MAX_PARTS);
        }
    }
}
