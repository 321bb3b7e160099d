//! Requests about objects, copies above all, without the SDK's layers.
//!
//! The SDK makes each request anew out of plugins, interceptors and endpoint rules, which costs more than
//! all the rest of an image. For one bucket the outcome is always the same but for key, copy source and
//! condition. So the SDK's endpoint resolver is asked for the bucket's address once, its signer signs each
//! request, and its HTTP client sends it.

mod address;
mod response;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::primitives::{DateTime, SdkBody};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use tokio::time::timeout;

pub(super) use address::{BucketAddress, endpoint_params};
pub(super) use response::XmlResponse;

use super::S3Bucket;
use super::access::{BucketHeaders, StoreLabel};
use super::encoding::{copy_source, encode_key};
use crate::aws::exchange::{self, USER_AGENT, timed_out, within};
use crate::aws::signer::{self, RequestSigner};
use crate::aws::{BUCKET_REGION, ErrorOrigin, RequestError, describe_page, is_proxy_page};
use crate::permissions::s3_arn;

/// What a small copy takes at most: without an answer by then it is sent once more, on a new connection, and
/// given all the time that a large one takes.
const SMALL_COPY_TIMEOUT: Duration = Duration::from_secs(15);

/// What is longer is no answer of S3's, and would fill the memory.
const MAX_BODY_BYTES: usize = 64 << 10;

pub(super) type RequestHeaders = Vec<(Cow<'static, str>, String)>;

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
    pub name: String,
    pub headers: BucketHeaders,
    pub store: StoreLabel,
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
            store: StoreLabel::default(),
        }
    }

    /// Whether AWS itself responds, under whatever partition's name.
    pub(super) fn is_aws(&self) -> bool {
        let host = self.address.base.split('/').nth(2);
        host.is_some_and(|host| host.contains(".amazonaws."))
    }

    /// # Errors
    /// What S3 answered, what became of the request, or why it was not sent.
    pub(super) async fn copy(&self, copy: &ObjectRequest<'_>) -> Result<XmlResponse, RequestError> {
        // The first connection may be dead. A copy that was made all the same is met, and recognised.
        let first = Some(SMALL_COPY_TIMEOUT).filter(|first| *first < self.timeout);
        for limit in first.into_iter().chain([self.timeout]) {
            if let Ok(result) = timeout(limit, self.exchange_once(copy, "")).await {
                return result.map_err(|error| self.name_store(error));
            }
        }
        Err(self.name_store(timed_out(copy.operation)))
    }

    fn name_store(&self, mut error: RequestError) -> RequestError {
        if error.origin == ErrorOrigin::Transport {
            error.message = format!("{} (bucket '{}')", error.message, self.name);
        }
        self.store.append_to(&mut error.message);
        error
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
        let response = within(request.operation, self.timeout, exchange).await;
        response.map_err(|error| self.name_store(error))
    }

    async fn exchange_once(
        &self,
        request: &ObjectRequest<'_>,
        body: &str,
    ) -> Result<XmlResponse, RequestError> {
        let body = SdkBody::from(body);
        let (response, identity) = self.send_signed(request, body).await?;
        let (status, date, body) = exchange::read_body(response, MAX_BODY_BYTES).await?;
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
        let response = within(request.operation, limit, sent).await;
        let (response, _) = response.map_err(|error| self.name_store(error))?;
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
        let response = exchange::call(&self.connector, signed).await?;
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
        let response = exchange::call(&self.connector, signed).await?;
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
        if response.status().as_u16() == 404 && is_proxy_page(&response) {
            return exchange::unreadable(describe_page(404));
        }
        let (status, date, body) = match exchange::read_body(response, MAX_BODY_BYTES).await {
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
            self.signer
                .sign(&mut built, identity, &self.address.scope)?;
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
}
