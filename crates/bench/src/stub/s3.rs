//! The answers of S3: every copy succeeds, every object exists, listings count up.

use std::collections::HashMap;
use std::fmt::Write;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Method, Request, StatusCode};

use super::{StubResponse, StubServer, build_response, read_body, simulate_latency};

/// Every object's, made-up.
const ETAG: &str = "\"9b2cf535f27731c974343645a3985328\"";
const LAST_MODIFIED: &str = "Wed, 25 Nov 2026 12:00:00 GMT";
/// That of the images in the source, which are older than their copies.
const SOURCE_LAST_MODIFIED: &str = "Tue, 24 Nov 2026 12:00:00 GMT";
const COPY_RESPONSE_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<CopyObjectResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><LastModified>2026-11-25T12:00:00.000Z</LastModified><ETag>&quot;9b2cf535f27731c974343645a3985328&quot;</ETag></CopyObjectResult>";
const PRECONDITION_FAILED_XML: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>PreconditionFailed</Code><Message>At least one of the pre-conditions you specified did not hold</Message><Condition>If-None-Match</Condition></Error>";
const OBJECT_SIZE_BYTES: u64 = 2048;
const LIST_PAGE_SIZE: u64 = 1000;
const XML: &str = "application/xml";

/// What little is remembered: the objects that were put, with their sizes, as a probe does; and how many
/// images a listing of the source holds.
#[derive(Debug, Default)]
pub(super) struct StubStore {
    put: HashMap<String, u64>,
    pub(super) images: std::ops::Range<u64>,
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
        Method::PUT if is_copy => "CopyObject",
        Method::PUT => "PutObject",
        Method::HEAD if is_object => "HeadObject",
        Method::HEAD => "HeadBucket",
        Method::DELETE => "DeleteObject",
        Method::GET if query.starts_with("versioning") => "GetBucketVersioning",
        Method::GET if !is_object => "ListObjects",
        Method::POST if query.contains("delete") => "DeleteObjects",
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
        "CopyObject of a probe" => probe_copy(request.headers()),
        "PutObject" => put_object(stub, key, request).await,
        "HeadObject" => head_object(stub, &key),
        "DeleteObject" if is_of_another(request.headers()) => precondition_failed(),
        "DeleteObject" => delete_object(stub, &key),
        "DeleteObjects" => delete_objects(stub, request).await,
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

fn precondition_failed() -> StubResponse {
    build_response(
        StatusCode::PRECONDITION_FAILED,
        XML,
        PRECONDITION_FAILED_XML,
    )
}

fn is_of_another(headers: &HeaderMap) -> bool {
    headers.get("if-match").is_some_and(|etag| etag != ETAG)
}

async fn put_object(stub: &StubServer, key: String, request: Request<Incoming>) -> StubResponse {
    let size = request
        .headers()
        .get("x-amz-decoded-content-length")
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let sent = read_body(request).await.len() as u64;
    stub.lock().store.put.insert(key, size.unwrap_or(sent));
    with_etag(build_response(StatusCode::OK, XML, ""))
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
    let mut text = String::from("<DeleteResult>");
    let mut count = 0;
    for entry in entries {
        let key = entry.split("<Key>").nth(1);
        let key = key
            .and_then(|rest| rest.split("</Key>").next())
            .unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = if entry.contains("<ETag>") && !entry.contains(ETAG.trim_matches('"')) {
            write!(
                text,
                "<Error><Key>{key}</Key><Code>PreconditionFailed</Code></Error>"
            )
        } else {
            count += 1;
            write!(text, "<Deleted><Key>{key}</Key></Deleted>")
        };
    }
    text.push_str("</DeleteResult>");
    stub.lock().counts.record_request("objects deleted", count);
    build_response(StatusCode::OK, XML, text)
}

fn head_object(stub: &StubServer, key: &str) -> StubResponse {
    let put = stub.lock().store.put.get(key).copied();
    // A name that ends otherwise is a directory's, which some tools ask for first.
    let Some(size) = put.or_else(|| key.contains(".png").then_some(OBJECT_SIZE_BYTES)) else {
        return build_response(StatusCode::NOT_FOUND, XML, "");
    };
    let mut response = with_etag(build_response(StatusCode::OK, "image/png", ""));
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

fn with_etag(mut response: StubResponse) -> StubResponse {
    response
        .headers_mut()
        .insert("etag", HeaderValue::from_static(ETAG));
    response
}

/// A page of the source's images; the destination is empty.
fn list_objects(stub: &StubServer, path: &str, query: &str) -> String {
    let images = stub.lock().store.images.clone();
    let after = ["marker=", "continuation-token=", "start-after="]
        .iter()
        .find_map(|name| query.split('&').find_map(|part| part.strip_prefix(name)))
        .and_then(|marker| {
            marker
                .rsplit(['-', 'D'])
                .next()?
                .split('.')
                .next()?
                .parse()
                .ok()
        });
    let start = after.map_or(images.start, |after: u64| after + 1);
    let is_source = path.contains("old");
    let end = if is_source { images.end } else { start };
    let page = start..end.min(start + LIST_PAGE_SIZE);
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>bucket</Name><MaxKeys>1000</MaxKeys><KeyCount>{}</KeyCount><IsTruncated>{}</IsTruncated>",
        page.clone().count(),
        page.end < end
    );
    if page.end < end {
        let last = page.end - 1;
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "<NextMarker>image/avatar-{last}.png</NextMarker><NextContinuationToken>avatar-{last}.png</NextContinuationToken>"
        );
    }
    for id in page {
        let _ = write!(
            text,
            "<Contents><Key>image/avatar-{id}.png</Key><LastModified>2026-11-25T12:00:00.000Z</LastModified><ETag>{ETAG}</ETag><Size>{OBJECT_SIZE_BYTES}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        );
    }
    text.push_str("</ListBucketResult>");
    text
}
