//! Requests about objects, copies above all, without the SDK's layers.
//!
//! The SDK makes each request anew out of plugins, interceptors and endpoint rules, which costs more than
//! all the rest of an image. For one bucket the outcome is always the same but for key, copy source and
//! condition. So the SDK's endpoint resolver is asked for the bucket's address once, its signer signs each
//! request, and its HTTP client sends it.

mod address;
mod credentials;
#[cfg(test)]
mod recording_server;
mod response;
#[cfg(test)]
mod signature;
mod signer;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat, SdkBody};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use tokio::time::timeout;

pub(crate) use credentials::CredentialsCache;

pub(super) use address::{BucketAddress, endpoint_params};
pub(super) use response::XmlResponse;
pub(super) use signer::RequestSigner;

use super::S3Bucket;
use super::access::BucketHeaders;
use super::encoding::{copy_source, encode_key};
use crate::aws::{BUCKET_REGION, ErrorOrigin, RequestError, error_chain};
use crate::permissions::s3_arn;

/// Says in the bucket's access log who copied.
const USER_AGENT: &str = concat!("bucket-brigade/", env!("CARGO_PKG_VERSION"));

/// What a small copy takes at most: without an answer by then it is sent once more, on a new connection, and
/// given all the time that a large one takes.
const SMALL_COPY_TIMEOUT: Duration = Duration::from_secs(15);

/// What is longer is no answer of S3's, and would fill the memory.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The code of a request without a response in time.
pub(super) const TIMED_OUT: &str = "Timeout";

pub(super) const NO_CONNECTION: &str = "ConnectionFailed";

pub(super) type RequestHeaders = Vec<(Cow<'static, str>, String)>;

/// One request about an object.
#[derive(Clone, Default)]
pub(super) struct ObjectRequest<'a> {
    /// Its name in S3's API.
    pub operation: &'static str,
    pub method: &'static str,
    pub key: &'a str,
    /// With its `?`, where there is one.
    pub query: &'a str,
    /// Whose bytes the store is to take.
    pub source: Option<(&'a S3Bucket, &'a str)>,
    pub headers: RequestHeaders,
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

impl CopyCondition<'_> {
    pub(super) fn header(self) -> Option<(Cow<'static, str>, String)> {
        match self {
            Self::Absent => Some(("if-none-match".into(), "*".into())),
            Self::Over(etag) => Some(("if-match".into(), etag.into())),
            Self::None => None,
        }
    }
}

/// Sends the requests about the objects of one bucket.
#[derive(Debug, Clone)]
pub(super) struct CopyClient {
    address: Arc<BucketAddress>,
    signer: Arc<RequestSigner>,
    connector: SharedHttpConnector,
    /// When a request that does not answer is given up.
    pub timeout: Duration,
    /// The bucket.
    pub name: String,
    pub headers: BucketHeaders,
}

impl CopyClient {
    pub(super) fn new(
        address: BucketAddress,
        signer: Arc<RequestSigner>,
        connector: SharedHttpConnector,
        timeout: Duration,
        name: &str,
    ) -> Self {
        Self {
            address: Arc::new(address),
            signer,
            connector,
            timeout,
            name: name.to_owned(),
            headers: BucketHeaders::default(),
        }
    }

    /// # Errors
    /// What S3 answered, what became of the request, or why it was not sent.
    pub(super) async fn copy(&self, copy: &ObjectRequest<'_>) -> Result<XmlResponse, RequestError> {
        // The first connection may be dead. A copy that was made all the same is met, and recognised.
        let first = Some(SMALL_COPY_TIMEOUT).filter(|first| *first < self.timeout);
        for limit in first.into_iter().chain([self.timeout]) {
            if let Ok(result) = timeout(limit, self.exchange_once(copy, "")).await {
                return result;
            }
        }
        Err(timed_out(copy.operation))
    }

    /// Sends it with this body, and reads the answer.
    ///
    /// # Errors
    /// As for [`copy`](Self::copy).
    pub(super) async fn exchange(
        &self,
        request: &ObjectRequest<'_>,
        body: &str,
    ) -> Result<XmlResponse, RequestError> {
        let exchange = self.exchange_once(request, body);
        within(request.operation, self.timeout, exchange).await
    }

    async fn exchange_once(
        &self,
        request: &ObjectRequest<'_>,
        body: &str,
    ) -> Result<XmlResponse, RequestError> {
        let body = SdkBody::from(body);
        let (response, identity) = self.send_signed(request, body).await?;
        let (status, date, body) = read_body(response).await?;
        let read = response::read(status, &body);
        read.map_err(|error| self.refused(request, error, &identity, date))
    }

    /// Sends it within a time limit. Of a success the body is still to arrive.
    ///
    /// # Errors
    /// As for [`copy`](Self::copy).
    pub(super) async fn send(
        &self,
        request: &ObjectRequest<'_>,
        body: SdkBody,
        limit: Duration,
    ) -> Result<HttpResponse, RequestError> {
        let sent = self.send_signed(request, body);
        let (response, _) = within(request.operation, limit, sent).await?;
        Ok(response)
    }

    /// Returns with the response the credentials that were used.
    async fn send_signed(
        &self,
        request: &ObjectRequest<'_>,
        body: SdkBody,
    ) -> Result<(HttpResponse, Identity), RequestError> {
        let again = body.try_clone();
        let identity = self.signer.identity().await;
        let identity = identity.map_err(|error| RequestError::not_sent(&error))?;
        let signed = self.sign(request, body, &identity)?;
        let response = self.call(signed).await?;
        if response.status().is_success() {
            return Ok((response, identity));
        }
        // Boxed, so that what is rare makes no room in each copy in flight.
        Box::pin(self.send_at_its_time(request, again, identity, response)).await
    }

    /// Once more, where the store has refused the time: its answer has set the clock, and it has not looked at
    /// anything else.
    async fn send_at_its_time(
        &self,
        request: &ObjectRequest<'_>,
        body: Option<SdkBody>,
        identity: Identity,
        refusal: HttpResponse,
    ) -> Result<(HttpResponse, Identity), RequestError> {
        let error = self.read_refusal(request, refusal, &identity).await;
        let Some(body) = body.filter(|_| error.code == signer::TIME_SKEWED) else {
            return Err(error);
        };
        let signed = self.sign(request, body, &identity)?;
        let response = self.call(signed).await?;
        if response.status().is_success() {
            return Ok((response, identity));
        }
        Err(self.read_refusal(request, response, &identity).await)
    }

    async fn read_refusal(
        &self,
        request: &ObjectRequest<'_>,
        response: HttpResponse,
        identity: &Identity,
    ) -> RequestError {
        let region = response.headers().get(BUCKET_REGION).map(str::to_owned);
        let (status, date, body) = match read_body(response).await {
            Ok(read) => read,
            Err(error) => return error,
        };
        let mut error = response::read_refusal(status, &body, region.as_deref());
        // Without a body there is no code.
        if request.method == "HEAD" && status == 403 && self.signer.is_off(date) {
            signer::TIME_SKEWED.clone_into(&mut error.code);
        }
        self.refused(request, error, identity, date)
    }

    /// Learns from it, and names the right that is missing.
    fn refused(
        &self,
        request: &ObjectRequest<'_>,
        error: RequestError,
        identity: &Identity,
        date: Option<DateTime>,
    ) -> RequestError {
        self.signer.learn(&error.code, identity, date);
        let source = request.source;
        let source = source.map(|(bucket, key)| s3_arn(&bucket.name, key));
        let target = s3_arn(&self.name, request.key);
        error.explain_denial(request.operation, &target, source.as_deref())
    }

    fn sign(
        &self,
        request: &ObjectRequest<'_>,
        body: SdkBody,
        identity: &Identity,
    ) -> Result<HttpRequest, RequestError> {
        let signed = self.build(request, body).and_then(|mut built| {
            self.signer.sign(&mut built, identity, &self.address)?;
            Ok(built)
        });
        signed.map_err(|error| RequestError::not_sent(&*error))
    }

    fn build(&self, request: &ObjectRequest<'_>, body: SdkBody) -> Result<HttpRequest, BoxError> {
        let mut built = HttpRequest::new(body);
        built.set_method(request.method)?;
        let (base, key) = (&self.address.base, encode_key(request.key));
        built.set_uri(format!("{base}{key}{}", request.query))?;
        let length = built.body().content_length();
        let headers = built.headers_mut();
        headers.try_insert("user-agent", USER_AGENT)?;
        if let Some(length @ 1..) = length {
            headers.try_insert("content-length", length.to_string())?;
        }
        if let Some((bucket, key)) = request.source {
            headers.try_insert("x-amz-copy-source", copy_source(&bucket.name, key))?;
            if let Some(owner) = &bucket.copies.headers.expected_owner {
                headers.try_insert("x-amz-source-expected-bucket-owner", owner.clone())?;
            }
        }
        for (name, value) in self.headers.pairs() {
            headers.try_insert(name, value)?;
        }
        for (name, value) in request.headers.iter().cloned() {
            headers.try_append(name, value)?;
        }
        Ok(built)
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
            let response = response.map_err(|error| lost(NO_CONNECTION, error_chain(&error)))?;
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

async fn within<T>(
    operation: &str,
    limit: Duration,
    sent: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    let sent = timeout(limit, sent).await;
    sent.unwrap_or_else(|_| Err(timed_out(operation)))
}

fn timed_out(operation: &str) -> RequestError {
    lost(TIMED_OUT, format!("{operation} has timed out"))
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
