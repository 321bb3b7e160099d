//! The answers of S3: every copy succeeds unless its partition is busy, every object exists, listings count up.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, StatusCode};
use md5::{Digest, Md5};

use super::control::StubSetup;
use super::{StubResponse, StubServer, build_response, read_body, simulate_latency};

/// Every object's, made-up, where its bytes do not matter.
const ETAG: &str = "\"9b2cf535f27731c974343645a3985328\"";
const LAST_MODIFIED: &str = "Wed, 25 Nov 2026 12:00:00 GMT";
/// That of the images in the source, which are older than their copies.
const SOURCE_LAST_MODIFIED: &str = "Tue, 24 Nov 2026 12:00:00 GMT";
const COPY_RESPONSE_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CopyObjectResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LastModified>2026-11-25T12:00:00.000Z</LastModified><ETag>&quot;9b2cf535f27731c974343645a3985328&quot;</ETag></CopyObjectResult>";
const PRECONDITION_FAILED_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>PreconditionFailed</Code><Message>At least one of the pre-conditions you specified did not hold</Message><Condition>If-None-Match</Condition></Error>";
const OBJECT_SIZE_BYTES: u64 = 2048;
const LIST_PAGE_SIZE: u64 = 1000;
const XML: &str = "application/xml";

const SLOW_DOWN_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
const UPLOAD_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>";

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// So many zeros, a chunk at a time.
fn zeros(size: u64) -> impl Iterator<Item = &'static [u8]> {
    let (whole, rest) = (size / ZEROS.len() as u64, size % ZEROS.len() as u64);
    let rest = usize::try_from(rest).unwrap_or_default();
    (0..whole).map(|_| &ZEROS[..]).chain([&ZEROS[..rest]])
}

/// What little is remembered: the objects that were put, with their sizes, as a probe does; and how many
/// images a listing of the source holds, and how large they are.
#[derive(Debug, Default)]
pub(super) struct StubStore {
    put: HashMap<String, u64>,
    images: Range<u64>,
    /// Whether a listing of the destination holds them, too.
    is_copied: bool,
    object_bytes: Option<u64>,
    /// Of as many zeros.
    etags: HashMap<u64, String>,
}

impl StubStore {
    pub(super) fn new(setup: &StubSetup) -> Self {
        Self {
            images: setup.rows.clone(),
            is_copied: setup.is_copied,
            object_bytes: setup.object_bytes,
            ..Self::default()
        }
    }

    /// A name that ends otherwise than an image's is a directory's, which some tools ask for first.
    fn size_of(&self, key: &str) -> Option<u64> {
        let put = self.put.get(key).copied();
        let of_image = || self.object_bytes.unwrap_or(OBJECT_SIZE_BYTES);
        put.or_else(|| is_image(key).then(of_image))
    }

    fn etag_of(&mut self, size: u64) -> String {
        if self.object_bytes.is_none() {
            return ETAG.to_owned();
        }
        let etag = self.etags.entry(size).or_insert_with(|| {
            let mut md5 = Md5::new();
            zeros(size).for_each(|chunk| md5.update(chunk));
            let digits: Vec<String> = md5.finalize().iter().map(|b| format!("{b:02x}")).collect();
            format!("\"{}\"", digits.concat())
        });
        etag.clone()
    }
}

fn is_image(key: &str) -> bool {
    key.contains(".png")
}

pub(super) async fn handle_s3_request(
    stub: &StubServer,
    request: Request<Incoming>,
) -> StubResponse {
    let key = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default().to_owned();
    let is_object = key.trim_matches('/').contains('/');
    let is_copy = request.headers().contains_key("x-amz-copy-source");
    let is_put = stub.lock().store.put.contains_key(&key);
    let operation = match *request.method() {
        // A probe's copy is no image's.
        Method::PUT if is_copy && is_put => "CopyObject of a probe",
        Method::PUT if is_copy && !stub.lock().partitions.admits(&key, Instant::now()) => {
            "CopyObject refused"
        }
        Method::PUT if is_copy => "CopyObject",
        Method::PUT if query.contains("partNumber") => "UploadPart",
        Method::PUT => "PutObject",
        Method::HEAD if is_object => "HeadObject",
        Method::HEAD => "HeadBucket",
        Method::DELETE if query.contains("uploadId") => "AbortMultipartUpload",
        Method::DELETE => "DeleteObject",
        Method::GET if query.starts_with("versioning") => "GetBucketVersioning",
        Method::GET if query.contains("tagging") => "GetObjectTagging",
        Method::GET if !is_object => "ListObjects",
        Method::GET if query.is_empty() || query.contains("GetObject") => "GetObject",
        Method::POST if query.contains("delete") => "DeleteObjects",
        Method::POST if query.contains("uploads") => "CreateMultipartUpload",
        Method::POST if query.contains("uploadId") => "CompleteMultipartUpload",
        _ => "other S3 requests",
    };
    let latency = {
        let mut state = stub.lock();
        state.counts.record_request(operation, 1);
        state.s3_latency
    };
    simulate_latency(latency).await;
    match operation {
        "CopyObject" => build_response(StatusCode::OK, XML, COPY_RESPONSE_XML),
        "CopyObject refused" => build_response(StatusCode::SERVICE_UNAVAILABLE, XML, SLOW_DOWN_XML),
        "CopyObject of a probe" => probe_copy(request.headers()),
        "GetObject" => get_object(stub, &key, request.headers()),
        "CreateMultipartUpload" => build_response(StatusCode::OK, XML, UPLOAD_XML),
        "PutObject" | "UploadPart" | "CompleteMultipartUpload" if exists(stub, &key, &request) => {
            precondition_failed()
        }
        "PutObject" => put_object(stub, key, request).await,
        "UploadPart" => upload_part(stub, request).await,
        "CompleteMultipartUpload" => complete_upload(),
        "HeadObject" => head_object(stub, &key),
        "DeleteObject" if is_of_another(request.headers()) => precondition_failed(),
        "DeleteObject" => delete_object(stub, &key),
        "DeleteObjects" => delete_objects(stub, request).await,
        "GetObjectTagging" => build_response(StatusCode::OK, XML, "<Tagging><TagSet/></Tagging>"),
        "GetBucketVersioning" => build_response(StatusCode::OK, XML, "<VersioningConfiguration/>"),
        "ListObjects" => build_response(StatusCode::OK, XML, list_objects(stub, &key, &query)),
        _ => build_response(StatusCode::OK, XML, ""),
    }
}

fn probe_copy(headers: &HeaderMap) -> StubResponse {
    if headers.contains_key("if-none-match") {
        precondition_failed()
    } else {
        build_response(StatusCode::OK, XML, COPY_RESPONSE_XML)
    }
}

fn is_of_another(headers: &HeaderMap) -> bool {
    headers.get("if-match").is_some_and(|etag| etag != ETAG)
}

async fn put_object(stub: &StubServer, key: String, request: Request<Incoming>) -> StubResponse {
    let size = request
        .headers()
        .get("x-amz-decoded-content-length")
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let size = size.unwrap_or(count_body(request).await);
    let mut state = stub.lock();
    if !is_image(&key) {
        state.store.put.insert(key, size);
    }
    let etag = state.store.etag_of(size);
    with_etag(build_response(StatusCode::OK, XML, ""), &etag)
}

async fn upload_part(stub: &StubServer, request: Request<Incoming>) -> StubResponse {
    let size = count_body(request).await;
    let etag = stub.lock().store.etag_of(size);
    with_etag(build_response(StatusCode::OK, XML, ""), &etag)
}

fn complete_upload() -> StubResponse {
    let etag = ETAG.trim_matches('"');
    let text = format!(
        "<CompleteMultipartUploadResult><ETag>{etag}-1</ETag></CompleteMultipartUploadResult>"
    );
    build_response(StatusCode::OK, XML, text)
}

/// Whether a probe is not to be written over.
fn exists(stub: &StubServer, key: &str, request: &Request<Incoming>) -> bool {
    request.headers().contains_key("if-none-match") && stub.lock().store.put.contains_key(key)
}

fn precondition_failed() -> StubResponse {
    let status = StatusCode::PRECONDITION_FAILED;
    build_response(status, XML, PRECONDITION_FAILED_XML)
}

/// How long it is; not kept.
async fn count_body(request: Request<Incoming>) -> u64 {
    let (mut body, mut size) = (request.into_body(), 0);
    while let Some(Ok(frame)) = body.frame().await {
        size += frame.data_ref().map_or(0, |chunk| chunk.len() as u64);
    }
    size
}

fn get_object(stub: &StubServer, key: &str, headers: &HeaderMap) -> StubResponse {
    let mut response = head_object(stub, key);
    // Of AWS it is known that it counts them: no question for each image's.
    let tag_count = HeaderValue::from(0);
    response
        .headers_mut()
        .insert("x-amz-tagging-count", tag_count);
    let length = response.headers().get("content-length");
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    let Some(length) = length else {
        return response;
    };
    let range = headers.get("range").and_then(|range| {
        let range = range.to_str().ok()?.strip_prefix("bytes=")?;
        let (first, last) = range.split_once('-')?;
        let last = last.parse().unwrap_or(length - 1);
        Some(last + 1 - first.parse::<u64>().ok()?)
    });
    let size = range.unwrap_or(length);
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let headers = response.headers_mut();
        headers.insert("content-length", HeaderValue::from(size));
    }
    let frames = zeros(size).map(|chunk| Ok(Frame::data(Bytes::from_static(chunk))));
    *response.body_mut() = StreamBody::new(futures::stream::iter(frames)).boxed();
    response
}

fn delete_object(stub: &StubServer, key: &str) -> StubResponse {
    stub.lock().store.put.remove(key);
    build_response(StatusCode::NO_CONTENT, XML, "")
}

/// What is asked for with its ETag goes.
async fn delete_objects(stub: &StubServer, request: Request<Incoming>) -> StubResponse {
    let body = read_body(request).await;
    let body = String::from_utf8_lossy(&body);
    let entries = body.split("<Object>").skip(1);
    let mut results = Vec::new();
    let mut count = 0;
    for entry in entries {
        let key = entry.split(['<', '>']).skip_while(|part| *part != "Key");
        let key = key.into_iter().nth(1).unwrap_or_default();
        results.push(
            if entry.contains("<ETag>") && !entry.contains(ETAG.trim_matches('"')) {
                format!("<Error><Key>{key}</Key><Code>PreconditionFailed</Code></Error>")
            } else {
                count += 1;
                format!("<Deleted><Key>{key}</Key></Deleted>")
            },
        );
    }
    let text = format!("<DeleteResult>{}</DeleteResult>", results.concat());
    stub.lock().counts.record_request("objects deleted", count);
    build_response(StatusCode::OK, XML, text)
}

fn head_object(stub: &StubServer, key: &str) -> StubResponse {
    let mut state = stub.lock();
    let Some(size) = state.store.size_of(key) else {
        return build_response(StatusCode::NOT_FOUND, XML, "");
    };
    let etag = state.store.etag_of(size);
    let mut response = with_etag(build_response(StatusCode::OK, "image/png", ""), &etag);
    let headers = response.headers_mut();
    headers.insert("content-length", HeaderValue::from(size));
    let modified = if key.contains("old-images") {
        SOURCE_LAST_MODIFIED
    } else {
        LAST_MODIFIED
    };
    headers.insert("last-modified", HeaderValue::from_static(modified));
    response
}

fn with_etag(mut response: StubResponse, etag: &str) -> StubResponse {
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert("etag", etag);
    }
    response
}

/// A page of the source's images, or of their copies.
fn list_objects(stub: &StubServer, path: &str, query: &str) -> String {
    let mut state = stub.lock();
    let images = state.store.images.clone();
    let size = state.store.object_bytes.unwrap_or(OBJECT_SIZE_BYTES);
    let etag = state.store.etag_of(size);
    let is_source = path.contains("old");
    let is_listed = is_source || state.store.is_copied;
    drop(state);
    let after = ["marker=", "continuation-token=", "start-after="]
        .iter()
        .find_map(|name| query.split('&').find_map(|part| part.strip_prefix(name)))
        .and_then(|marker| {
            let number = marker.rsplit(['-', 'D']).next()?;
            number.split('.').next()?.parse().ok()
        });
    let start = after.map_or(images.start, |after: u64| after + 1);
    let (directory, modified) = if is_source {
        ("image", "2026-11-24T12:00:00.000Z")
    } else {
        ("avatar", "2026-11-25T12:00:00.000Z")
    };
    let end = if is_listed { images.end } else { start };
    let page = start..end.min(start + LIST_PAGE_SIZE);
    let (count, is_truncated, last) = (page.clone().count(), page.end < end, page.end.max(1) - 1);
    let next = format!(
        "<NextMarker>{directory}/avatar-{last}.png</NextMarker><NextContinuationToken>avatar-{last}.png</NextContinuationToken>"
    );
    let next = if is_truncated { &*next } else { "" };
    let object = |id| {
        format!(
            "<Contents><Key>{directory}/avatar-{id}.png</Key><LastModified>{modified}</LastModified><ETag>{etag}</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    };
    let objects: Vec<String> = page.map(object).collect();
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>bucket</Name><MaxKeys>1000</MaxKeys><KeyCount>{count}</KeyCount><IsTruncated>{is_truncated}</IsTruncated>{next}{}</ListBucketResult>",
        objects.concat()
    )
}
