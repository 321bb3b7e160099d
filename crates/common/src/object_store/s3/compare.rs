//! Is what stands at the destination our copy? Asked only when a copy met an object there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::hashed_body::HashedBody;
use super::inspect::{CARRIED_HEADERS, ObjectHead};
use super::{S3Bucket, S3Store};
use crate::aws::error_chain;
use crate::object_store::{CopiedObject, DestinationState, StoreError};
use crate::path_rule::MoveRoute;

/// How much one request reads of an object.
const RANGE_BYTES: u64 = 8 << 20;

/// How many objects a process compares byte by byte at a time: with the buffers of the connections each takes
/// up to a megabyte.
static BYTE_COMPARISONS: Semaphore = Semaphore::const_new(16);

/// How much of each of two objects is held in memory while their bytes are compared.
const CHUNK_BYTES: u64 = 64 << 10;

impl S3Store {
    pub(super) async fn head_source(&self, route: &MoveRoute) -> Result<ObjectHead, StoreError> {
        let head = self.source.head(&route.source_key).await?;
        head.ok_or_else(|| StoreError::permanent("NoSuchKey", "the source object does not exist"))
    }

    pub(super) async fn head_destination(
        &self,
        route: &MoveRoute,
    ) -> Result<Option<ObjectHead>, StoreError> {
        self.destination.head(&route.destination_key).await
    }

    /// Whether source and destination hold the same bytes; false where one of them is gone.
    ///
    /// # Errors
    /// What the store answers; [`StoreError::Transient`] where one is replaced meanwhile.
    pub async fn has_equal_bytes(&self, route: &MoveRoute) -> Result<bool, StoreError> {
        let destination = self.head_destination(route).await?;
        let source = self.source.head(&route.source_key).await?;
        match source.zip(destination) {
            Some((source, destination)) => {
                bytes_are_equal(self, route, &source, &destination).await
            }
            None => Ok(false),
        }
    }
}

/// The bytes of a range. A 412 here means the object was replaced while it was read, not that a destination exists.
async fn open_range(
    bucket: &S3Bucket,
    key: &str,
    head: &ObjectHead,
    range: &str,
) -> Result<HashedBody, StoreError> {
    match bucket.open(key, Some(head.etag()), Some(range)).await {
        Ok(object) => Ok(object.body),
        Err(StoreError::DestinationExists) => Err(StoreError::transient(
            "ChangedWhileCompared",
            "the object was replaced while it was compared",
        )),
        Err(error) => Err(error),
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
        size_bytes: Some(destination.size_bytes),
        is_found: true,
        modified_seconds: destination.last_modified().map(|at| at.secs()),
        ..CopiedObject::new(destination.etag())
    };
    let Some(source) = store.source.head(&route.source_key).await? else {
        return Ok(DestinationState::WithoutSource(CopiedObject {
            is_source_gone: true,
            ..copy
        }));
    };
    if let Some(difference) = first_difference(&source, &destination) {
        let difference = format!("its {difference} differs");
        return Ok(DestinationState::Different(difference));
    }
    if !tags_are_equal(store, route, &source, &destination).await? {
        return Ok(DestinationState::Different("its tags differ".into()));
    }
    if !bytes_are_equal(store, route, &source, &destination).await? {
        return Ok(DestinationState::Different("its bytes differ".into()));
    }
    Ok(DestinationState::Same(copy))
}

/// The first of what a browser or CDN sees that is not the same.
fn first_difference(source: &ObjectHead, destination: &ObjectHead) -> Option<&'static str> {
    let metadata = |head| ObjectHead::metadata(head).collect::<BTreeMap<_, _>>();
    if source.size_bytes != destination.size_bytes {
        return Some("size");
    }
    let mut headers = CARRIED_HEADERS.into_iter();
    if let Some((_, name)) =
        headers.find(|(header, _)| source.header(header) != destination.header(header))
    {
        return Some(name);
    }
    (metadata(source) != metadata(destination)).then_some("user metadata")
}

/// Whether they are, as far as we may read them.
async fn tags_are_equal(
    store: &S3Store,
    route: &MoveRoute,
    source: &ObjectHead,
    destination: &ObjectHead,
) -> Result<bool, StoreError> {
    if !store.source.may_have_tags(source) && destination.tag_count().unwrap_or(0) == 0 {
        return Ok(true);
    }
    let ours = read_tags(&store.source, &route.source_key).await?;
    let theirs = read_tags(&store.destination, &route.destination_key).await?;
    Ok(ours.is_none() || theirs.is_none() || ours == theirs)
}

/// None where we may not read them.
async fn read_tags(bucket: &S3Bucket, key: &str) -> Result<Option<BTreeSet<String>>, StoreError> {
    match bucket.read_tags(key).await {
        Ok(tags) => {
            let tags = tags.unwrap_or_default();
            let pairs = tags.split('&').filter(|pair| !pair.is_empty());
            Ok(Some(pairs.map(ToOwned::to_owned).collect()))
        }
        Err(StoreError::Denied { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Range by range, so that a failed request costs no more than that. Equal `ETags` prove equal bytes; different ones
/// prove nothing (multipart uploads, KMS).
async fn bytes_are_equal(
    store: &S3Store,
    route: &MoveRoute,
    source: &ObjectHead,
    destination: &ObjectHead,
) -> Result<bool, StoreError> {
    if source.etag() == destination.etag() || source.size_bytes != destination.size_bytes {
        return Ok(source.size_bytes == destination.size_bytes);
    }
    // It is never closed.
    let _permit = BYTE_COMPARISONS.acquire().await.ok();
    let size = u64::try_from(source.size_bytes).unwrap_or_default();
    for start in (0..size).step_by(usize::try_from(RANGE_BYTES).unwrap_or(usize::MAX)) {
        let range = format!("bytes={start}-{}", (start + RANGE_BYTES).min(size) - 1);
        let ours = open_range(&store.source, &route.source_key, source, &range);
        let theirs = &route.destination_key;
        let theirs = open_range(&store.destination, theirs, destination, &range);
        let (ours, theirs) = (ours.await?, theirs.await?);
        let failures = [ours.failure(), theirs.failure()];
        let bodies = bodies_are_equal(SdkBody::from_body_1_x(ours), SdkBody::from_body_1_x(theirs));
        // The time limit of a request ends with the head of the answer.
        let compared = timeout(store.source.copies.timeout, bodies).await;
        let compared = compared.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
        let is_same = compared.map_err(|error| {
            let failure = failures.iter().find_map(|failure| failure.get().cloned());
            failure.unwrap_or_else(|| StoreError::transient("BodyCutShort", error_chain(&error)))
        })?;
        if !is_same {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Compares as the bodies arrive, so that comparing many objects at a time needs little memory.
async fn bodies_are_equal(ours: SdkBody, theirs: SdkBody) -> std::io::Result<bool> {
    let mut ours = ByteStream::new(ours).into_async_read();
    let mut theirs = ByteStream::new(theirs).into_async_read();
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
    use std::time::Duration;

    use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
    use aws_smithy_runtime_api::client::orchestrator::HttpRequest;

    use super::*;
    use crate::object_store::NO_ETAG;
    use crate::object_store::ObjectStore;
    use crate::object_store::s3::fixture::{body, http_response, route, store};

    #[tokio::test]
    async fn bytes_are_compared_however_they_arrive() {
        let bytes: Vec<u8> = (0..200_000_u32)
            .map(|at| at.to_le_bytes()[at as usize % 3])
            .collect();
        let (mut other, short) = (bytes.clone(), &bytes[..199_999]);
        other[150_000] ^= 1;
        for (ours, theirs) in [(1 << 20, 7_000), (1_000, 1_001), (65_536, 100_000)] {
            for (with, is_equal) in [(&*bytes, true), (&*other, false), (short, false)] {
                let ours = || body(&bytes, ours, false);
                let theirs = || body(with, theirs, false);
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
            let is_source = request.uri().contains("/from/");
            let bytes: &[u8] = if request.method() == "HEAD" {
                b""
            } else {
                b"1234"
            };
            let body = body(bytes, 4, is_source && !bytes.is_empty());
            let mut response = http_response(200, body);
            let etag = if is_source { "\"1\"" } else { "\"2\"" };
            if self.has_etags {
                response.headers_mut().insert("etag", etag);
            }
            response.headers_mut().insert("content-length", "4");
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    async fn compare_on(server: StallingServer) -> Result<DestinationState, StoreError> {
        let store = store(server, Duration::from_mins(1)).await;
        let route = route("a");
        let compared = timeout(Duration::from_mins(5), store.compare_objects(&route)).await;
        compared.expect("it must not wait for ever")
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_is_given_up() {
        let error = compare_on(StallingServer { has_etags: true })
            .await
            .unwrap_err();
        let is_stall =
            matches!(&error, StoreError::Transient { message, .. } if message.contains("no byte"));
        assert!(is_stall, "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn objects_without_etags_are_not_taken_for_equal() {
        let compared = compare_on(StallingServer { has_etags: false }).await;
        let error = compared.unwrap_err();
        assert_eq!(error.code(), NO_ETAG, "{error:?}");
    }
}
