//! Is what stands at the destination our copy? Asked only when a copy met an object there.

use aws_sdk_s3::Client;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::AggregatedBytes;

use super::{S3Store, bare_etag, store_error};
use crate::object_store::{CopiedObject, DestinationState, StoreError};
use crate::path_rule::MoveRoute;

/// How much of two objects is held in memory at a time while their bytes are compared.
const CHUNK_BYTES: u64 = 8 << 20;

impl S3Store {
    pub(super) async fn head_source(
        &self,
        route: &MoveRoute,
    ) -> Result<HeadObjectOutput, StoreError> {
        self.head_object(
            &self.source_client,
            &self.options.source_bucket,
            &route.source_key,
        )
        .await?
        .ok_or_else(|| StoreError::Permanent {
            code: "NoSuchKey".into(),
            message: "the source object does not exist".into(),
        })
    }

    pub(super) async fn head_destination(
        &self,
        route: &MoveRoute,
    ) -> Result<Option<HeadObjectOutput>, StoreError> {
        self.head_object(
            &self.client,
            &self.options.destination_bucket,
            &route.destination_key,
        )
        .await
    }

    pub(super) async fn head_object(
        &self,
        client: &Client,
        bucket: &str,
        key: &str,
    ) -> Result<Option<HeadObjectOutput>, StoreError> {
        match client.head_object().bucket(bucket).key(key).send().await {
            Ok(head) => Ok(Some(head)),
            Err(SdkError::ServiceError(error)) if error.raw().status().as_u16() == 404 => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    async fn read_range(
        client: &Client,
        bucket: &str,
        key: &str,
        etag: Option<&str>,
        range: &str,
    ) -> Result<Vec<u8>, StoreError> {
        let output = client
            .get_object()
            .bucket(bucket)
            .key(key)
            .range(range)
            .set_if_match(etag.map(ToOwned::to_owned))
            .send()
            .await
            .map_err(comparison_error)?;
        let body = output.body.collect().await;
        body.map(AggregatedBytes::to_vec)
            .map_err(|error| StoreError::Transient {
                code: "BodyCutShort".into(),
                message: error.to_string(),
            })
    }
}

/// A 412 here means the object was replaced while it was read, not that a destination exists.
fn comparison_error(error: impl Into<crate::aws::RequestError>) -> StoreError {
    match store_error(error) {
        StoreError::DestinationExists => StoreError::Transient {
            code: "ChangedWhileCompared".into(),
            message: "the object was replaced while it was compared".into(),
        },
        other => other,
    }
}

pub(super) async fn compare_destination(
    store: &S3Store,
    route: &MoveRoute,
) -> Result<DestinationState, StoreError> {
    let Some(destination) = store.head_destination(route).await? else {
        return Ok(DestinationState::Empty);
    };
    let source = store.head_source(route).await?;
    if let Some(difference) = first_header_difference(&source, &destination) {
        return Ok(DestinationState::Different(difference));
    }
    // Equal ETags prove equal bytes; different ones prove nothing (multipart uploads, KMS).
    if source.e_tag != destination.e_tag
        && !bytes_are_equal(store, route, &source, &destination).await?
    {
        return Ok(DestinationState::Different("its bytes differ".into()));
    }
    Ok(DestinationState::Same(CopiedObject {
        etag: bare_etag(destination.e_tag().unwrap_or_default()).to_owned(),
        size_bytes: destination.content_length,
    }))
}

/// The first of what a browser or CDN sees that is not the same.
fn first_header_difference(
    source: &HeadObjectOutput,
    destination: &HeadObjectOutput,
) -> Option<String> {
    let pairs = [
        (
            "content type",
            &source.content_type,
            &destination.content_type,
        ),
        (
            "cache control",
            &source.cache_control,
            &destination.cache_control,
        ),
        (
            "content encoding",
            &source.content_encoding,
            &destination.content_encoding,
        ),
        (
            "content disposition",
            &source.content_disposition,
            &destination.content_disposition,
        ),
        (
            "expiry",
            &source.expires_string,
            &destination.expires_string,
        ),
        (
            "content language",
            &source.content_language,
            &destination.content_language,
        ),
    ];
    let headers = pairs.into_iter().find(|(_, a, b)| a != b);
    let difference = if source.content_length != destination.content_length {
        "size"
    } else if let Some((name, ..)) = headers {
        name
    } else if source.metadata.clone().unwrap_or_default()
        != destination.metadata.clone().unwrap_or_default()
    {
        "user metadata"
    } else if tags_differ(source, destination) {
        "number of tags"
    } else {
        return None;
    };
    Some(format!("its {difference} differs"))
}

/// The count is told only to those who may read tags; not told, it says nothing.
fn tags_differ(source: &HeadObjectOutput, destination: &HeadObjectOutput) -> bool {
    let counts = source.tag_count.zip(destination.tag_count);
    counts.is_some_and(|(source, destination)| source != destination)
}

async fn bytes_are_equal(
    store: &S3Store,
    route: &MoveRoute,
    source: &HeadObjectOutput,
    destination: &HeadObjectOutput,
) -> Result<bool, StoreError> {
    let size = u64::try_from(source.content_length.unwrap_or(0)).unwrap_or(0);
    for start in (0..size).step_by(usize::try_from(CHUNK_BYTES).unwrap_or(usize::MAX)) {
        let range = format!("bytes={start}-{}", (start + CHUNK_BYTES).min(size) - 1);
        let options = &store.options;
        let ours = S3Store::read_range(
            &store.source_client,
            &options.source_bucket,
            &route.source_key,
            source.e_tag(),
            &range,
        );
        let theirs = S3Store::read_range(
            &store.client,
            &options.destination_bucket,
            &route.destination_key,
            destination.e_tag(),
            &range,
        );
        if ours.await? != theirs.await? {
            return Ok(false);
        }
    }
    Ok(true)
}
