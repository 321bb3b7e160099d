//! The queue's requests that each image costs, without the SDK's layers: its endpoint rules are asked once, its
//! signer signs, and its HTTP client sends, as for the copies.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::primitives::SdkBody;
use aws_sdk_sqs::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_sigv4::http_request::PayloadChecksumKind;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::http::Headers;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::OnceCell;

use crate::aws::exchange::{self, USER_AGENT, within};
use crate::aws::signer::{RequestSigner, SigningScope, TIME_SKEWED};
use crate::aws::{RequestError, service_endpoint};

/// Ten messages of the longest, each character escaped. Source: SQS API reference, "Quotas".
const MAX_BODY_BYTES: usize = 10 << 20;

/// Where requests go, and how they are signed.
#[derive(Debug)]
struct Service {
    url: String,
    scope: SigningScope,
    signer: RequestSigner,
}

/// Sends requests to SQS.
#[derive(Debug)]
pub(super) struct QueueRequests {
    sdk: SdkConfig,
    connector: SharedHttpConnector,
    service: OnceCell<Service>,
}

impl QueueRequests {
    pub(super) fn new(sdk: &SdkConfig, connector: SharedHttpConnector) -> Self {
        Self {
            sdk: sdk.clone(),
            connector,
            service: OnceCell::new(),
        }
    }

    /// # Errors
    /// What SQS answered, what became of the request, or why it was not sent.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        operation: &str,
        input: &impl Serialize,
        limit: Duration,
    ) -> Result<T, RequestError> {
        let body = serde_json::to_vec(input).map_err(|error| RequestError::not_sent(&error))?;
        let exchange = self.exchange(operation, SdkBody::from(body));
        let body = within(operation, limit, exchange).await?;
        serde_json::from_slice(&body).map_err(|error| exchange::unreadable(error.to_string()))
    }

    /// Once more, where SQS has refused the time: its answer has set the clock, and it has not looked at anything else.
    async fn exchange(&self, operation: &str, body: SdkBody) -> Result<Vec<u8>, RequestError> {
        let again = body.try_clone();
        match (self.exchange_once(operation, body).await, again) {
            (Err(error), Some(again)) if error.code == TIME_SKEWED => {
                Box::pin(self.exchange_once(operation, again)).await
            }
            (result, _) => result,
        }
    }

    async fn exchange_once(&self, operation: &str, body: SdkBody) -> Result<Vec<u8>, RequestError> {
        let not_sent = |error: BoxError| RequestError::not_sent(&*error);
        let service = self.service.get_or_try_init(|| Service::of(&self.sdk));
        let service = service.await.map_err(not_sent)?;
        let identity = service.signer.identity().await;
        let identity = identity.map_err(|error| RequestError::not_sent(&error))?;
        let request = service.sign(operation, body, &identity).map_err(not_sent)?;
        let response = exchange::call(&self.connector, request).await?;
        if response.status().is_success() {
            let (_, _, body) = exchange::read_body(response, MAX_BODY_BYTES).await?;
            return Ok(body);
        }
        let code = header_code(response.headers());
        let (status, date, body) = exchange::read_body(response, MAX_BODY_BYTES).await?;
        let error = read_refusal(status, code, &body);
        service.signer.learn(&error.code, &identity, date);
        Err(error)
    }
}

impl Service {
    async fn of(sdk: &SdkConfig) -> Result<Self, BoxError> {
        let provider = sdk.credentials_provider();
        let provider = provider.ok_or("there are no credentials to sign with")?;
        let region = sdk.region().ok_or("there is no region")?.to_string();
        let params = Params::builder()
            .region(&region)
            .set_use_fips(sdk.use_fips())
            .set_use_dual_stack(sdk.use_dual_stack())
            .set_endpoint(service_endpoint(sdk, "SQS")?)
            .build()?;
        let endpoint = DefaultResolver::new().resolve_endpoint(&params).await?;
        Ok(Self {
            url: format!("{}/", endpoint.url().trim_end_matches('/')),
            scope: SigningScope {
                region,
                service: "sqs".into(),
                payload: PayloadChecksumKind::NoHeader,
            },
            signer: RequestSigner::new(provider),
        })
    }

    fn sign(
        &self,
        operation: &str,
        body: SdkBody,
        identity: &Identity,
    ) -> Result<HttpRequest, BoxError> {
        let length = body.content_length().unwrap_or_default();
        let mut request = HttpRequest::new(body);
        request.set_method("POST")?;
        request.set_uri(&*self.url)?;
        let headers = request.headers_mut();
        headers.try_insert("user-agent", USER_AGENT)?;
        headers.try_insert("content-type", "application/x-amz-json-1.0")?;
        headers.try_insert("content-length", length.to_string())?;
        headers.try_insert("x-amz-target", format!("AmazonSQS.{operation}"))?;
        headers.try_insert("x-amzn-query-mode", "true")?;
        self.signer.sign(&mut request, identity, &self.scope)?;
        Ok(request)
    }
}

/// The code that the older protocol had is what SQS's documentation names.
fn header_code(headers: &Headers) -> Option<String> {
    let query = headers.get("x-amzn-query-error");
    let query = query.and_then(|error| error.split_once(';'));
    let code = query.map(|(code, _)| code);
    let code = code.or_else(|| headers.get("x-amzn-errortype"));
    code.map(|code| bare_code(code).to_owned())
}

/// Without the namespace before it and the address after it.
fn bare_code(code: &str) -> &str {
    let code = code.split_once(':').map_or(code, |(code, _)| code);
    code.split_once('#').map_or(code, |(_, code)| code)
}

fn read_refusal(status: u16, code: Option<String>, body: &[u8]) -> RequestError {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |names: [&str; 3]| names.iter().find_map(|name| body[name].as_str());
    let in_body = text(["code", "__type", ""]).map(|code| bare_code(code).to_owned());
    let message = text(["message", "Message", "errorMessage"]);
    RequestError::refused(status, code.or(in_body), message, None).name_skew()
}
