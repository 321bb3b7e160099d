//! Is what stands at the destination our copy? Asked only when a copy met an object there.

use std::io::ErrorKind;
use std::time::Duration;

use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{CUSTOMER_KEY, NO_ETAG, S3Bucket, S3Store, bare_etag, store_error};
use crate::aws::error_chain;
use crate::object_store::{CopiedObject, DestinationState, StoreError};
use crate::path_rule::MoveRoute;

/// How much one request reads of an object.
const RANGE_BYTES: u64 = 8 << 20;

/// When the head of an answer that needs no work of the store's is given up.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// How many objects a process compares byte by byte at a time: with the buffers of the connections each takes
/// up to a megabyte.
static BYTE_COMPARISONS: Semaphore = Semaphore::const_new(16);

/// How much of each of two objects is held in memory while their bytes are compared.
const CHUNK_BYTES: u64 = 64 << 10;

impl S3Store {
    pub(super) async fn head_source(
        &self,
        route: &MoveRoute,
    ) -> Result<HeadObjectOutput, StoreError> {
        let head = self.source.head(&route.source_key).await?;
        head.ok_or_else(|| StoreError::permanent("NoSuchKey", "the source object does not exist"))
    }

    pub(super) async fn head_destination(
        &self,
        route: &MoveRoute,
    ) -> Result<Option<HeadObjectOutput>, StoreError> {
        self.destination.head(&route.destination_key).await
    }
}

impl S3Bucket {
    /// A HEAD of one object; none when there is no such object.
    pub async fn head(&self, key: &str) -> Result<Option<HeadObjectOutput>, StoreError> {
        let request = self.client.head_object().bucket(&self.name).key(key);
        let sent = timeout(self.timeout.min(HEAD_TIMEOUT), request.send());
        let Ok(response) = sent.await else {
            return Err(no_response("HeadObject"));
        };
        match response {
            // A proxy's, perhaps. Without one, two objects would look equal, or a copy replaced.
            Ok(head) if bare_etag(head.e_tag().unwrap_or_default()).is_empty() => {
                Err(StoreError::Suspect {
                    code: NO_ETAG.into(),
                    message: "HeadObject was answered without an ETag".into(),
                })
            }
            Ok(head) => Ok(Some(head)),
            Err(SdkError::ServiceError(error)) if error.raw().status().as_u16() == 404 => Ok(None),
            Err(error) => match store_error(error) {
                error if error.code() == "BadRequest" && self.needs_customer_key(key).await => {
                    Err(StoreError::permanent(
                        CUSTOMER_KEY,
                        "the object is encrypted with a key of the customer's (SSE-C)",
                    ))
                }
                error => Err(error),
            },
        }
    }

    async fn open_range(
        &self,
        key: &str,
        etag: Option<&str>,
        range: &str,
    ) -> Result<ByteStream, StoreError> {
        match timeout(HEAD_TIMEOUT, self.open(key, etag, Some(range))).await {
            Ok(opened) => Ok(ByteStream::new(opened.map_err(comparison_error)?.body)),
            Err(_) => Err(no_response("GetObject")),
        }
    }
}

fn no_response(operation: &str) -> StoreError {
    StoreError::transient("Timeout", format!("{operation} has timed out"))
}

/// A 412 here means the object was replaced while it was read, not that a destination exists.
fn comparison_error(error: StoreError) -> StoreError {
    match error {
        StoreError::DestinationExists => StoreError::transient(
            "ChangedWhileCompared",
            "the object was replaced while it was compared",
        ),
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
    let copy = CopiedObject {
        etag: bare_etag(destination.e_tag().unwrap_or_default()).to_owned(),
        size_bytes: destination.content_length,
        is_source_gone: false,
    };
    let Some(source) = store.source.head(&route.source_key).await? else {
        return Ok(DestinationState::WithoutSource(CopiedObject {
            is_source_gone: true,
            ..copy
        }));
    };
    if let Some(difference) = first_header_difference(&source, &destination) {
        return Ok(DestinationState::Different(difference));
    }
    // Equal ETags prove equal bytes; different ones prove nothing (multipart uploads, KMS).
    if source.e_tag != destination.e_tag
        && !bytes_are_equal(store, route, &source, &destination).await?
    {
        return Ok(DestinationState::Different("its bytes differ".into()));
    }
    Ok(DestinationState::Same(copy))
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

/// S3 returns the count only to those who may read tags; without it nothing is known.
fn tags_differ(source: &HeadObjectOutput, destination: &HeadObjectOutput) -> bool {
    let counts = source.tag_count.zip(destination.tag_count);
    counts.is_some_and(|(source, destination)| source != destination)
}

/// Range by range, so that a failed request costs no more than that.
async fn bytes_are_equal(
    store: &S3Store,
    route: &MoveRoute,
    source: &HeadObjectOutput,
    destination: &HeadObjectOutput,
) -> Result<bool, StoreError> {
    // It is never closed.
    let _permit = BYTE_COMPARISONS.acquire().await.ok();
    let size = u64::try_from(source.content_length.unwrap_or(0)).unwrap_or(0);
    for start in (0..size).step_by(usize::try_from(RANGE_BYTES).unwrap_or(usize::MAX)) {
        let range = format!("bytes={start}-{}", (start + RANGE_BYTES).min(size) - 1);
        let (ours, theirs) = (&store.source, &store.destination);
        let ours = ours.open_range(&route.source_key, source.e_tag(), &range);
        let theirs = theirs.open_range(&route.destination_key, destination.e_tag(), &range);
        let (ours, theirs) = (ours.await?, theirs.await?);
        // The SDK's time limit ends with the head of the answer.
        let compared = timeout(store.source.timeout, bodies_are_equal(ours, theirs)).await;
        let compared = compared.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        let is_same =
            compared.map_err(|error| StoreError::transient("BodyCutShort", error_chain(&error)))?;
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares as the bodies arrive, so that comparing many objects at a time needs little memory.
async fn bodies_are_equal(ours: ByteStream, theirs: ByteStream) -> std::io::Result<bool> {
    let (mut ours, mut theirs) = (ours.into_async_read(), theirs.into_async_read());
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        (&mut ours).take(CHUNK_BYTES).read_to_end(&mut left).await?;
        (&mut theirs)
            .take(CHUNK_BYTES)
            .read_to_end(&mut right)
            .await?;
        if left != right || left.is_empty() {
            return Ok(left == right);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use aws_config::{BehaviorVersion, Region, SdkConfig};
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::SharedCredentialsProvider;
    use aws_sdk_s3::primitives::SdkBody;
    use aws_smithy_runtime_api::client::http::{
        HttpConnector, HttpConnectorFuture, SharedHttpConnector,
    };
    use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
    use axum::body::Bytes;
    use http_body::Frame;

    use super::*;
    use crate::object_store::ObjectStore;
    use crate::object_store::s3::{S3Access, S3Options};

    /// A body that arrives in frames, and then ends or stalls.
    struct FramedBody {
        frames: VecDeque<Bytes>,
        stalls: bool,
    }

    impl http_body::Body for FramedBody {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
            match self.frames.pop_front() {
                None if self.stalls => Poll::Pending,
                frame => Poll::Ready(frame.map(|frame| Ok(Frame::data(frame)))),
            }
        }
    }

    fn body(bytes: &[u8], frame_bytes: usize, stalls: bool) -> SdkBody {
        let frames = bytes.chunks(frame_bytes).map(Bytes::copy_from_slice);
        SdkBody::from_body_1_x(FramedBody {
            frames: frames.collect(),
            stalls,
        })
    }

    #[tokio::test]
    async fn bytes_are_compared_however_they_arrive() {
        let bytes: Vec<u8> = (0..200_000_u32)
            .map(|at| at.to_le_bytes()[at as usize % 3])
            .collect();
        let (mut other, short) = (bytes.clone(), &bytes[..199_999]);
        other[150_000] ^= 1;
        for (ours, theirs) in [(1 << 20, 7_000), (1_000, 1_001), (65_536, 100_000)] {
            for (with, is_equal) in [(&*bytes, true), (&*other, false), (short, false)] {
                let ours = || ByteStream::new(body(&bytes, ours, false));
                let theirs = || ByteStream::new(body(with, theirs, false));
                assert_eq!(bodies_are_equal(ours(), theirs()).await.unwrap(), is_equal);
                assert_eq!(bodies_are_equal(theirs(), ours()).await.unwrap(), is_equal);
            }
        }
    }

    /// A server whose two objects differ in their ETag; the body of one begins, and never ends.
    #[derive(Debug, Clone)]
    struct StallingServer {
        has_etags: bool,
    }

    impl HttpConnector for StallingServer {
        fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
            let is_source = request.uri().contains("images-old");
            let bytes: &[u8] = if request.method() == "HEAD" {
                b""
            } else {
                b"1234"
            };
            let body = body(bytes, 4, is_source && !bytes.is_empty());
            let mut response = HttpResponse::new(200.try_into().unwrap(), body);
            let etag = if is_source { "\"1\"" } else { "\"2\"" };
            if self.has_etags {
                response.headers_mut().insert("etag", etag);
            }
            response.headers_mut().insert("content-length", "4");
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    async fn compare_on(server: StallingServer) -> Result<DestinationState, StoreError> {
        let server = SharedHttpConnector::new(server);
        let credentials = Credentials::new("AKID", "secret", None, None, "test");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .build();
        let access = S3Access::with_connector(&sdk, true, Duration::from_mins(1), server);
        let buckets = access.buckets("images-old", None, "images-new").await;
        let (source, destination) = buckets.unwrap();
        let store = S3Store::new(source, destination, S3Options::default());
        let route = MoveRoute {
            old_path: "image/a".into(),
            new_path: "avatar/a".into(),
            source_key: "image/a".into(),
            destination_key: "avatar/a".into(),
        };
        let compared = timeout(Duration::from_mins(5), store.compare_objects(&route)).await;
        compared.expect("it must not wait for ever")
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        let error = compare_on(StallingServer { has_etags: true })
            .await
            .unwrap_err();
        let is_stall = matches!(&error, StoreError::Transient { message, .. } if message.contains("timed out"));
        assert!(is_stall, "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn objects_without_etags_are_not_taken_for_equal() {
        let compared = compare_on(StallingServer { has_etags: false }).await;
        let error = compared.unwrap_err();
        assert_eq!(error.code(), NO_ETAG, "{error:?}");
    }
}
