//! The AWS clients, made once, and what their errors say.

use std::error::Error;
use std::time::Duration;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, StalledStreamProtectionConfig, http::HttpResponse};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

/// Receives wait up to 20 s; anything slower than this is lost.
const SQS_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads credentials, region and endpoints the way every AWS tool does: environment, profile,
/// container or instance role. Retries are off: our own policy is the only one, because the SDK's
/// shares one token bucket per process and gives up under throttling.
pub async fn load_config() -> SdkConfig {
    aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .load()
        .await
}

/// An S3 client, for the region of the settings or another.
pub fn s3_client(
    sdk: &SdkConfig,
    force_path_style: bool,
    timeout: Duration,
    region: Option<&str>,
) -> aws_sdk_s3::Client {
    let mut config = aws_sdk_s3::config::Builder::from(sdk);
    if let Some(region) = region {
        config.set_region(Some(Region::new(region.to_owned())));
    }
    let config = config
        .force_path_style(force_path_style)
        .timeout_config(TimeoutConfig::builder().operation_timeout(timeout).build())
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// The SQS client.
pub fn sqs_client(sdk: &SdkConfig) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::config::Builder::from(sdk)
        .timeout_config(
            TimeoutConfig::builder()
                .operation_timeout(SQS_TIMEOUT)
                .build(),
        )
        .build();
    aws_sdk_sqs::Client::from_conf(config)
}

/// Our code for a request that was never sent, for want of credentials, a region or an endpoint.
pub const NOT_SENT_CODE: &str = "RequestNotSent";

/// Where an error arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorOrigin {
    /// The service answered with it.
    Service,
    /// The answer was lost, late or unreadable: the call may have had its effect.
    Transport,
    /// The call was never sent, for want of credentials, a region or an endpoint.
    Local,
}

/// An SDK error reduced to what decisions are made on.
#[derive(Debug, Clone)]
pub struct RequestError {
    /// Where it arose.
    pub origin: ErrorOrigin,
    /// The service's code, or a name of ours for what the transport met.
    pub code: String,
    /// The service's message, or the chain of causes.
    pub message: String,
    /// The HTTP status; 0 without an answer.
    pub status: u16,
}

impl<E> From<SdkError<E, HttpResponse>> for RequestError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
        let meta = error.as_service_error().map(ProvideErrorMetadata::meta);
        let told = meta.and_then(|meta| meta.code());
        let (origin, fallback) = classify_origin(&error, status, told);
        let code = told.unwrap_or(fallback);
        let message = meta.and_then(|meta| meta.message());
        Self {
            origin,
            code: code.to_owned(),
            message: message.map_or_else(|| error_chain(&error), first_line),
            status,
        }
    }
}

fn classify_origin<E>(
    error: &SdkError<E, HttpResponse>,
    status: u16,
    told: Option<&str>,
) -> (ErrorOrigin, &'static str) {
    match error {
        // A success that cannot be read is no refusal.
        SdkError::ServiceError(_) if told.is_none() && (200..300).contains(&status) => {
            (ErrorOrigin::Transport, "UnreadableAnswer")
        }
        SdkError::ServiceError(_) => (ErrorOrigin::Service, code_for_status(status)),
        SdkError::TimeoutError(_) => (ErrorOrigin::Transport, "Timeout"),
        SdkError::ResponseError(_) => (ErrorOrigin::Transport, "UnreadableAnswer"),
        // The SDK wraps what fails before the request is sent (credentials, endpoint) as a dispatch
        // failure of no known kind.
        SdkError::DispatchFailure(failure)
            if failure.is_other() && failure.as_other().is_none() =>
        {
            (ErrorOrigin::Local, NOT_SENT_CODE)
        }
        SdkError::DispatchFailure(_) => (ErrorOrigin::Transport, "ConnectionFailed"),
        _ => (ErrorOrigin::Local, "RequestNotBuilt"),
    }
}

/// The first line of a service's message. What comes after it repeats the request: an answer about a
/// signature quotes its headers, the session token among them.
pub(crate) fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// HEAD answers carry no body, hence no code.
pub(crate) fn code_for_status(status: u16) -> &'static str {
    match status {
        301 => "PermanentRedirect",
        307 => "TemporaryRedirect",
        400 => "BadRequest",
        403 => "AccessDenied",
        404 => "NotFound",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        503 => "ServiceUnavailable",
        500.. => "InternalError",
        _ => "UnknownError",
    }
}

/// An error and its causes on one line, each said once.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
