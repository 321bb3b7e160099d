//! `CopyObject` without the SDK's layers.
//!
//! The SDK makes each request anew out of plugins, interceptors and endpoint rules, which costs more than
//! all the rest of an image. For one bucket the outcome is always the same but for key, copy source and
//! condition. So the SDK's endpoint resolver is asked for the bucket's address once, its signer signs each
//! request, and its HTTP client sends it.

mod address;
#[cfg(test)]
mod by_sdk;
mod credentials;
mod head;
mod response;
#[cfg(test)]
mod signature;
mod signer;
#[cfg(test)]
mod tests;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use tokio::time::timeout;

pub(crate) use credentials::CredentialsCache;

pub(super) use address::{BucketAddress, endpoint_params};
pub(super) use head::{HeadResponse, ObjectHeaders};
pub(super) use signer::RequestSigner;
pub(super) use transfer::{PutRequest, RequestHeaders};

use super::CopyAttributes;
use super::encoding::encode_key;
use crate::aws::{ErrorOrigin, RequestError, error_chain};

/// Says in the bucket's access log who copied.
const USER_AGENT: &str = concat!("bucket-brigade/", env!("CARGO_PKG_VERSION"));

/// What a small copy takes at most: without an answer by then it is sent once more, on a new connection, and
/// given all the time that a large one takes.
const SMALL_COPY_TIMEOUT: Duration = Duration::from_secs(15);

/// What is longer is no answer of S3's, and would fill the memory.
const MAX_BODY_BYTES: usize = 64 << 10;

/// One copy, as its request describes it.
#[derive(Debug, Clone)]
pub(super) struct CopyRequest<'a> {
    pub key: &'a str,
    /// `bucket/key` of the source, percent-encoded.
    pub source: String,
    /// When the copy may be written.
    pub condition: CopyCondition<'a>,
    pub attributes: &'a CopyAttributes,
    /// What is said of both buckets.
    pub bucket_headers: &'a [(&'static str, String)],
}

/// When a copy may be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum CopyCondition<'a> {
    /// Only where there is no object.
    Absent,
    /// Only over the object with this `ETag`.
    Over(&'a str),
    /// The store knows no conditions.
    None,
}

/// Sends the copies to one bucket.
#[derive(Debug, Clone)]
pub(super) struct CopyClient {
    address: Arc<BucketAddress>,
    signer: Arc<RequestSigner>,
    connector: SharedHttpConnector,
    timeout: Duration,
}

impl CopyClient {
    pub(super) fn new(
        address: BucketAddress,
        signer: Arc<RequestSigner>,
        connector: SharedHttpConnector,
        timeout: Duration,
    ) -> Self {
        Self {
            address: Arc::new(address),
            signer,
            connector,
            timeout,
        }
    }

    /// Copies, and returns the copy's `ETag` as S3 wrote it; none where it wrote none.
    ///
    /// # Errors
    /// What S3 answered, what became of the request, or why it was not sent.
    pub(super) async fn copy(
        &self,
        copy: &CopyRequest<'_>,
    ) -> Result<Option<String>, RequestError> {
        // The first connection may be dead. A copy that was made all the same is met, and recognised.
        let first = Some(SMALL_COPY_TIMEOUT).filter(|first| *first < self.timeout);
        for limit in first.into_iter().chain([self.timeout]) {
            if let Ok(result) = timeout(limit, self.send(copy)).await {
                return result;
            }
        }
        Err(lost("Timeout", format!("no answer in {:?}", self.timeout)))
    }

    async fn send(&self, copy: &CopyRequest<'_>) -> Result<Option<String>, RequestError> {
        match self.try_once(copy).await {
            // The answer has set the clock, and S3 has not looked at anything else.
            Err(error) if error.code == "RequestTimeTooSkewed" => self.try_once(copy).await,
            other => other,
        }
    }

    async fn try_once(&self, copy: &CopyRequest<'_>) -> Result<Option<String>, RequestError> {
        let body = SignableBody::Bytes(&[]);
        let (response, identity) = self.send_signed(self.build(copy), body).await?;
        let (status, date, body) = read_body(response).await?;
        let result = response::read(status, &body);
        if let Err(error) = &result {
            self.signer.learn(&error.code, &identity, date);
        }
        result
    }

    fn build(&self, copy: &CopyRequest<'_>) -> Result<HttpRequest, BoxError> {
        let mut request = self.new_request("PUT", copy.key, "?x-id=CopyObject")?;
        let headers = request.headers_mut();
        headers.try_insert("x-amz-copy-source", copy.source.clone())?;
        match copy.condition {
            CopyCondition::Absent => drop(headers.try_insert("if-none-match", "*")?),
            CopyCondition::Over(etag) => drop(headers.try_insert("if-match", etag.to_owned())?),
            CopyCondition::None => {}
        }
        for (name, value) in copy.attributes.headers() {
            headers.try_insert(name, value.to_owned())?;
        }
        for (name, value) in copy.bucket_headers {
            headers.try_insert(*name, value.clone())?;
        }
        Ok(request)
    }

    fn new_request(&self, method: &str, key: &str, query: &str) -> Result<HttpRequest, BoxError> {
        let mut request = HttpRequest::empty();
        request.set_method(method)?;
        let (base, key) = (&self.address.base, encode_key(key));
        request.set_uri(format!("{base}{key}{query}"))?;
        request.headers_mut().try_insert("user-agent", USER_AGENT)?;
        Ok(request)
    }

    /// Returns with the response the credentials that were used.
    async fn send_signed(
        &self,
        request: Result<HttpRequest, BoxError>,
        body: SignableBody<'static>,
    ) -> Result<(HttpResponse, Identity), RequestError> {
        let identity = self.signer.identity().await;
        let identity = identity.map_err(|error| RequestError::not_sent(&error))?;
        let signed = request.and_then(|mut request| {
            self.signer
                .sign(&mut request, body, &identity, &self.address)?;
            Ok(request)
        });
        let signed = signed.map_err(|error| RequestError::not_sent(&*error))?;
        Ok((self.call(signed).await?, identity))
    }

    /// No `async fn`, which would have room for the request twice, in each copy in flight.
    fn call(
        &self,
        mut request: HttpRequest,
    ) -> impl Future<Output = Result<HttpResponse, RequestError>> + use<> {
        let connection = CaptureSmithyConnection::new();
        request.add_extension(connection.clone());
        let response = self.connector.call(request);
        async move {
            let response = response.await;
            let response =
                response.map_err(|error| lost("ConnectionFailed", error_chain(&error)))?;
            // The server behind this connection may be the one that is broken, and the pool hands out first
            // what was used last. The SDK does the same.
            let status = response.status().as_u16();
            if let (500 | 502 | 504, Some(connection)) = (status, connection.get()) {
                connection.poison();
            }
            Ok(response)
        }
    }
}

/// Its status, date and body. S3 sends spaces while it copies.
async fn read_body(
    response: HttpResponse,
) -> Result<(u16, Option<DateTime>, Vec<u8>), RequestError> {
    let status = response.status().as_u16();
    let date = response.headers().get("date");
    let date = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
    let (mut body, mut bytes) = (ByteStream::new(response.into_body()), Vec::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| lost("UnreadableAnswer", error_chain(&error)))?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() > MAX_BODY_BYTES {
            let length = format!("it has more than {MAX_BODY_BYTES} bytes");
            return Err(lost("UnreadableAnswer", length));
        }
    }
    Ok((status, date, bytes))
}

/// What became of the request is not known.
fn lost(code: &str, message: String) -> RequestError {
    RequestError {
        origin: ErrorOrigin::Transport,
        code: code.to_owned(),
        message,
        status: 0,
    }
}
