//! What stores that are not S3 do otherwise. Source: Ceph 16.2, measured.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response};
use percent_encoding::percent_decode;

use super::backend::CloudBackend;
use super::operation::CloudOperation;
use super::response::{self, CloudResponse};

/// The stand-in behind keeps no header that is not ASCII.
pub const RAW_DISPOSITION: &str = "raw-disposition";

#[expect(clippy::struct_excessive_bools, reason = "each may come alone")]
#[derive(Debug, Clone, Copy, Default)]
pub struct StoreQuirks {
    /// `PutObject` overwrites whatever the condition.
    pub ignores_put_conditions: bool,
    /// `CompleteMultipartUpload` does.
    pub ignores_complete_conditions: bool,
    /// `DeleteObject` removes whatever the ETag.
    pub ignores_delete_conditions: bool,
    /// `DeleteObject` knows RGW's `x-amz-delete-if-unmodified-since`.
    pub knows_unmodified_since: bool,
    /// The answer to a completed upload has an empty `ETag`.
    pub hides_complete_etag: bool,
    /// `PutObject` compares `If-Match` with an ETag that has no quotes.
    pub compares_bare_etags: bool,
    /// Errors have an empty message.
    pub hides_messages: bool,
    /// An object with the metadata [`RAW_DISPOSITION`] has that for its `Content-Disposition`, percent-decoded: bytes
    /// that need not be UTF-8.
    pub sends_raw_headers: bool,
}

impl StoreQuirks {
    pub(super) fn like_ceph() -> Self {
        Self {
            ignores_put_conditions: false,
            ignores_complete_conditions: true,
            ignores_delete_conditions: true,
            knows_unmodified_since: true,
            hides_complete_etag: true,
            compares_bare_etags: true,
            hides_messages: true,
            sends_raw_headers: true,
        }
    }

    /// Takes the conditions away that the store does not look at.
    pub(super) fn strip_conditions(self, operation: &CloudOperation, headers: &mut HeaderMap) {
        let is_ignored = match operation.name.as_str() {
            "PutObject" => self.ignores_put_conditions,
            "CompleteMultipartUpload" => self.ignores_complete_conditions,
            "DeleteObject" => self.ignores_delete_conditions,
            _ => false,
        };
        if is_ignored {
            headers.remove("if-match");
            headers.remove("if-none-match");
        }
    }

    /// Whether an upload over an object has quotes around its ETag.
    pub(super) fn fails_quoted_etag(self, operation: &CloudOperation) -> bool {
        let condition = operation.headers.get("if-match");
        self.compares_bare_etags
            && operation.name == "PutObject"
            && condition.is_some_and(|etag| etag.as_bytes().starts_with(b"\""))
    }

    /// Whether the object was written after the date that a delete names.
    pub(super) fn fails_unmodified_since(
        self,
        backend: &CloudBackend,
        operation: &CloudOperation,
    ) -> bool {
        let header = operation.headers.get("x-amz-delete-if-unmodified-since");
        let date = header.and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| {
            use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
            DateTime::from_str(date, DateTimeFormat::DateTime).ok()
        });
        let written = backend.object_written_at(&operation.target);
        self.knows_unmodified_since
            && operation.name == "DeleteObject"
            && date
                .zip(written)
                .is_some_and(|(date, written)| written > date.as_secs_f64())
    }

    pub(super) async fn distort(
        self,
        operation: &CloudOperation,
        given: CloudResponse,
    ) -> CloudResponse {
        if self.hides_complete_etag && operation.name == "CompleteMultipartUpload" {
            return empty_element(given, "ETag").await;
        }
        if self.hides_messages && given.status().as_u16() >= 400 {
            return empty_element(given, "Message").await;
        }
        if self.sends_raw_headers && ["HeadObject", "GetObject"].contains(&&*operation.name) {
            return with_raw_disposition(given);
        }
        given
    }
}

async fn empty_element(given: CloudResponse, name: &str) -> CloudResponse {
    let (mut parts, body) = given.into_parts();
    let body = response::collect_body(body).await;
    let document = String::from_utf8_lossy(&body);
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let emptied = document.split_once(&open).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(&close)?;
        Some(format!("{before}{open}{close}{after}"))
    });
    let Some(emptied) = emptied else {
        return Response::from_parts(parts, Body::from(body));
    };
    parts.headers.remove("content-length");
    Response::from_parts(parts, Body::from(emptied))
}

fn with_raw_disposition(mut given: CloudResponse) -> CloudResponse {
    let raw = given.headers().get(format!("x-amz-meta-{RAW_DISPOSITION}"));
    let raw = raw.map(|raw| percent_decode(raw.as_bytes()).collect::<Vec<u8>>());
    if let Some(Ok(value)) = raw.map(|raw| HeaderValue::from_bytes(&raw)) {
        given.headers_mut().insert("content-disposition", value);
    }
    given
}
