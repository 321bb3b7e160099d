//! The copy of an object too large for one `CopyObject`: part by part, on the server's side, and
//! carrying what a single copy would have carried by itself.

use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::runtime::Handle;
use tokio::time::sleep;

use super::attributes::readable_class;
use super::encoding::encode_tags;
use super::stream::StreamedPart;
use super::{CopyMethod, S3Bucket, S3Store, bare_etag, confirm_copy, copy_source, store_error};
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
    let size = u64::try_from(source.content_length.unwrap_or(0)).unwrap_or(0);
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
        bucket: &store.destination,
        key: &route.destination_key,
        is_open: true,
    };
    let copied = copy_parts_and_complete(store, route, &upload.id, &source, size).await;
    if copied.is_err() {
        upload.abort().await;
    }
    upload.is_open = false;
    copied.map(|copied| CopiedObject {
        size_bytes: source.content_length,
        ..copied
    })
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
    source: &HeadObjectOutput,
) -> Result<String, StoreError> {
    let attributes = &store.options.attributes;
    let attributes = attributes.for_object(&store.source, &route.source_key);
    let attributes = attributes.await?.into_owned();
    let class = attributes.storage_class;
    let output = store
        .destination
        .client
        .create_multipart_upload()
        .bucket(&store.destination.name)
        .key(&route.destination_key)
        .set_content_type(source.content_type.clone())
        .set_cache_control(source.cache_control.clone())
        .set_content_encoding(source.content_encoding.clone())
        .set_content_disposition(source.content_disposition.clone())
        .set_content_language(source.content_language.clone())
        .set_expires(expiry_date(source.expires_string.as_deref()))
        .set_website_redirect_location(source.website_redirect_location.clone())
        .set_metadata(source.metadata.clone())
        .set_tagging(read_tags(&store.source, &route.source_key).await?)
        .set_storage_class(class.or_else(|| readable_class(source.storage_class.clone())))
        .set_acl(attributes.acl)
        .set_server_side_encryption(attributes.encryption)
        .set_ssekms_key_id(attributes.kms_key_id)
        .send()
        .await
        .map_err(store_error)?;
    output.upload_id.ok_or_else(|| {
        StoreError::transient(
            "NoUploadId",
            "S3 started a multipart upload without naming it",
        )
    })
}

/// S3 hands out whatever text was stored; only a date can be set again.
pub(super) fn expiry_date(text: Option<&str>) -> Option<DateTime> {
    DateTime::from_str(text?, DateTimeFormat::HttpDate).ok()
}

pub(super) async fn read_tags(source: &S3Bucket, key: &str) -> Result<Option<String>, StoreError> {
    let request = source.client.get_object_tagging();
    let request = request.bucket(&source.name).key(key);
    let output = match request.send().await.map_err(store_error) {
        // The store knows no tags.
        Err(error) if error.code() == "NotImplemented" => return Ok(None),
        output => output?,
    };
    let tags = output.tag_set.iter().map(|tag| (tag.key(), tag.value()));
    Ok((!output.tag_set.is_empty()).then(|| encode_tags(tags)))
}

/// Copies all parts and completes the upload.
async fn copy_parts_and_complete(
    store: &S3Store,
    route: &MoveRoute,
    upload: &str,
    source: &HeadObjectOutput,
    size: u64,
) -> Result<CopiedObject, StoreError> {
    let etag = source.e_tag();
    let part_bytes = match store.options.method {
        CopyMethod::Server => store.options.limits.part_bytes,
        CopyMethod::Stream => store.options.limits.part_bytes.min(STREAMED_PART_BYTES),
    };
    let parts: Vec<CompletedPart> = stream::iter(part_ranges(size, part_bytes))
        .map(|(number, range)| copy_part_with_retries(store, route, upload, etag, number, range))
        .buffered(MAX_PARTS_IN_FLIGHT)
        .try_collect()
        .await?;
    let count = parts.len();
    let only_new = is_conditional(store) && store.replace_etag.is_none();
    let output = store
        .destination
        .client
        .complete_multipart_upload()
        .bucket(&store.destination.name)
        .key(&route.destination_key)
        .upload_id(upload)
        .set_if_none_match(only_new.then(|| "*".to_owned()))
        .set_if_match(store.replace_etag.clone())
        .multipart_upload(
            CompletedMultipartUpload::builder()
                .set_parts(Some(parts))
                .build(),
        )
        .send()
        .await
        .map_err(store_error)?;
    match output.e_tag() {
        // Some stores leave it empty there, and have it in a HEAD.
        Some("" | "\"\"") => confirm_by_head(store, route, size, count).await,
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
    let etag = head.filter(|head| {
        let has_size = head
            .content_length
            .and_then(|size| u64::try_from(size).ok())
            == Some(size);
        let etag = bare_etag(head.e_tag().unwrap_or_default());
        has_size && etag.ends_with(&format!("-{parts}"))
    });
    confirm_copy(etag.as_ref().and_then(HeadObjectOutput::e_tag))
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

async fn copy_part_with_retries(
    store: &S3Store,
    route: &MoveRoute,
    upload: &str,
    source_etag: Option<&str>,
    number: i32,
    range: (u64, u64),
) -> Result<CompletedPart, StoreError> {
    for delay in PART_BACKOFF.delays().take(PART_RETRIES) {
        match copy_part(store, route, upload, source_etag, number, range).await {
            Err(error) if may_pass(&error) => {
                tracing::debug!(%error, number, "a part is copied again");
                sleep(delay).await;
            }
            result => return result,
        }
    }
    copy_part(store, route, upload, source_etag, number, range).await
}

async fn copy_part(
    store: &S3Store,
    route: &MoveRoute,
    upload: &str,
    source_etag: Option<&str>,
    number: i32,
    range: (u64, u64),
) -> Result<CompletedPart, StoreError> {
    if let CopyMethod::Stream = store.options.method {
        let part = StreamedPart {
            upload,
            source_etag,
            number,
            range,
        };
        return part.copy(store, route).await;
    }
    let output = store
        .destination
        .client
        .upload_part_copy()
        .copy_source(copy_source(&store.source.name, &route.source_key))
        // All parts must be of one version of the source.
        .set_copy_source_if_match(source_etag.map(ToOwned::to_owned))
        .set_expected_source_bucket_owner(store.source.headers.expected_owner.clone())
        .copy_source_range(format!("bytes={}-{}", range.0, range.1))
        .bucket(&store.destination.name)
        .key(&route.destination_key)
        .upload_id(upload)
        .part_number(number)
        .send()
        .await
        .map_err(|error| source_error(store_error(error)))?;
    let result = output.copy_part_result.as_ref();
    let copied = confirm_copy(result.and_then(|result| result.e_tag()))?;
    Ok(CompletedPart::builder()
        .e_tag(copied.etag)
        .part_number(number)
        .build())
}

/// An upload under way: a copy that is given up half-way leaves none behind.
struct OpenUpload<'a> {
    bucket: &'a S3Bucket,
    key: &'a str,
    id: String,
    is_open: bool,
}

impl OpenUpload<'_> {
    /// Best effort: what is left behind costs storage until the bucket's lifecycle rule removes it.
    fn abort(&mut self) -> impl Future<Output = ()> + use<> {
        self.is_open = false;
        let request = self.bucket.client.abort_multipart_upload();
        let request = request.bucket(&self.bucket.name).key(self.key);
        let (aborted, key) = (request.upload_id(&self.id).send(), self.key.to_owned());
        async move {
            if let Err(error) = aborted.await {
                let error = store_error(error);
                tracing::warn!(%key, %error, "an unfinished multipart upload was left behind");
            }
        }
    }
}

impl Drop for OpenUpload<'_> {
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
