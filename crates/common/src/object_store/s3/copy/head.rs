//! `HeadObject` on the way of the copies, for commands that look at millions of objects. What is not a plain
//! answer is asked again by the SDK, which reads the rest.

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_sdk_s3::types::ServerSideEncryption;
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use tokio::time::timeout;

use super::{CopyClient, lost};
use crate::aws::{ErrorOrigin, RequestError, code_for_status};
use crate::connections::has_marked_byte;
use crate::object_store::s3::access::BucketHeaders;

/// When the head of a response that needs no work of the store's is given up.
const HEAD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(15);

/// The headers of an object that matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::object_store::s3) struct ObjectHeaders {
    pub etag: String,
    pub size_bytes: i64,
    pub modified_seconds: i64,
    /// None where it is not encrypted, or nothing is said of it.
    pub encryption: Option<ServerSideEncryption>,
    pub customer_algorithm: Option<String>,
}

/// What S3 answered.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::object_store::s3) enum HeadResponse {
    Found(ObjectHeaders),
    Missing,
    /// It has to be asked for with more care.
    Unclear,
}

impl CopyClient {
    /// # Errors
    /// The store is too busy, or broken, or does not answer.
    pub(in crate::object_store::s3) async fn head(
        &self,
        key: &str,
        headers: &BucketHeaders,
    ) -> Result<HeadResponse, RequestError> {
        match timeout(self.timeout.min(HEAD_TIMEOUT), self.send_head(key, headers)).await {
            Ok(response) => response,
            Err(_) => Err(lost("Timeout", "HeadObject has timed out".into())),
        }
    }

    async fn send_head(
        &self,
        key: &str,
        headers: &BucketHeaders,
    ) -> Result<HeadResponse, RequestError> {
        let request = self.build_head(key, headers);
        let (response, _) = self.send_signed(request, SignableBody::Bytes(&[])).await?;
        match response.status().as_u16() {
            200 => Ok(read_headers(&response).map_or(HeadResponse::Unclear, HeadResponse::Found)),
            404 => Ok(HeadResponse::Missing),
            status @ (429 | 500..) => Err(RequestError {
                origin: ErrorOrigin::Service,
                code: code_for_status(status).to_owned(),
                message: format!("S3 answered {status} without a message"),
                status,
            }),
            _ => Ok(HeadResponse::Unclear),
        }
    }

    fn build_head(&self, key: &str, headers: &BucketHeaders) -> Result<HttpRequest, BoxError> {
        let mut request = self.new_request("HEAD", key, "")?;
        for (name, value) in headers.pairs() {
            request.headers_mut().try_insert(name, value)?;
        }
        Ok(request)
    }
}

/// None where one is missing, or no UTF-8: which of them that is the careful way says.
fn read_headers(response: &HttpResponse) -> Option<ObjectHeaders> {
    let mut all = response.headers().iter();
    if all.any(|(_, value)| has_marked_byte(value)) {
        return None;
    }
    let header = |name: &str| response.headers().get(name);
    let modified = DateTime::from_str(header("last-modified")?, DateTimeFormat::HttpDate);
    Some(ObjectHeaders {
        etag: header("etag").filter(|etag| etag.len() > 2)?.to_owned(),
        size_bytes: header("content-length")?.parse().ok()?,
        modified_seconds: modified.ok()?.secs(),
        encryption: header("x-amz-server-side-encryption").map(ServerSideEncryption::from),
        customer_algorithm: header("x-amz-server-side-encryption-customer-algorithm")
            .map(ToOwned::to_owned),
    })
}
