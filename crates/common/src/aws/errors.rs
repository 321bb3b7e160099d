//! The errors of the AWS clients, reduced to what decisions are made on.

use std::error::Error;
use std::iter::successors;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::exchange;
use super::signer::TIME_SKEWED;
use crate::permissions::{describe_denial, describe_key_denial};

/// Our code for a request that was never sent, for want of credentials, a region or an endpoint.
pub const NOT_SENT_CODE: &str = "RequestNotSent";

/// Where an error arose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorOrigin {
    /// The service responded with it.
    Service,
    /// The response was lost, late or unreadable: the call may have had its effect.
    Transport,
    /// The call was never sent, for want of credentials, a region or an endpoint.
    Local,
    /// The call was not sent, because the provider of credentials failed or did not respond.
    Credentials,
}

/// An SDK error reduced to what decisions are made on.
#[derive(Debug, Clone)]
pub struct RequestError {
    pub origin: ErrorOrigin,
    /// The service's code, or a name of ours for what the transport met.
    pub code: String,
    /// The service's message, or the chain of causes.
    pub message: String,
    /// The HTTP status; 0 without a response.
    pub status: u16,
}

impl RequestError {
    /// A request that was not sent.
    pub(crate) fn not_sent(error: &(dyn Error + 'static)) -> Self {
        let (origin, code) = classify_unsent(error);
        Self {
            origin,
            code: code.to_owned(),
            message: error_chain(error),
            status: 0,
        }
    }

    /// A service's refusal. Without a message the status describes it; a 403's stays empty, for
    /// [`explain_denial`](Self::explain_denial).
    pub(crate) fn refused(
        status: u16,
        code: Option<String>,
        message: Option<&str>,
        region: Option<&str>,
    ) -> Self {
        let message = message.map(first_line);
        let message = message.filter(|message| !message.is_empty());
        Self {
            origin: ErrorOrigin::Service,
            code: code.unwrap_or_else(|| code_for_status(status).to_owned()),
            message: message.unwrap_or_else(|| match status {
                403 => String::new(),
                _ => describe_status(status, region),
            }),
            status,
        }
    }

    /// Names a clock that is off as S3 does: SQS calls it a wrong signature.
    /// Source: AWS Signature Version 4, "Troubleshoot AWS signature errors".
    #[must_use]
    pub(crate) fn name_skew(mut self) -> Self {
        let skews = ["Signature expired", "Signature not yet current"];
        let is_skewed = skews.iter().any(|text| self.message.starts_with(text));
        if is_skewed || ["RequestExpired", TIME_SKEWED].contains(&&*self.code) {
            TIME_SKEWED.clone_into(&mut self.code);
            self.message = format!("this host's clock is off: {}", self.message);
        }
        self
    }

    /// With the right that is missing, where access is denied and the service does not name it.
    #[must_use]
    pub(crate) fn explain_denial(
        mut self,
        operation: &str,
        target: &str,
        source: Option<&str>,
    ) -> Self {
        if self.code.contains("AccessDenied") || (self.status == 403 && self.message.is_empty()) {
            let is_about_key = self.code.to_ascii_lowercase().starts_with("kms");
            self.message = if is_about_key {
                describe_key_denial(operation, target, &self.message)
            } else {
                describe_denial(operation, target, source, &self.message)
            };
        }
        self
    }
}

impl<E> From<SdkError<E, HttpResponse>> for RequestError
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let status = error.raw_response().map_or(0, |raw| raw.status().as_u16());
        let meta = error.as_service_error().map(ProvideErrorMetadata::meta);
        let reported = meta.and_then(|meta| meta.code());
        let (origin, fallback) = classify_origin(&error, status, reported);
        let code = reported.unwrap_or(fallback);
        let message = meta.and_then(|meta| meta.message()).map(first_line);
        let message = message.unwrap_or_default();
        let is_silent = message.is_empty();
        let page = error.raw_response().filter(|raw| is_proxy_page(raw));
        let message = match error.raw_response() {
            _ if page.is_some() => describe_page(status),
            // Its own words say more.
            Some(_) if is_silent && status == 403 => message,
            Some(response) if is_silent && status >= 300 => {
                describe_status(status, response.headers().get(BUCKET_REGION))
            }
            _ if is_silent => error_chain(&error),
            _ => message,
        };
        let error = Self {
            origin,
            code: code.to_owned(),
            message,
            status,
        };
        error.name_skew()
    }
}

/// `CopyObject` of its `CopyObjectError`.
pub(crate) fn operation_name<E>() -> &'static str {
    let name = std::any::type_name::<E>().rsplit("::").next();
    let operation = name.and_then(|name| name.strip_suffix("Error"));
    operation.unwrap_or_default()
}

fn classify_origin<E: Error + 'static>(
    error: &SdkError<E, HttpResponse>,
    status: u16,
    reported: Option<&str>,
) -> (ErrorOrigin, &'static str) {
    match error {
        // A success that cannot be read is no refusal.
        SdkError::ServiceError(_) if reported.is_none() && (200..300).contains(&status) => {
            (ErrorOrigin::Transport, "UnreadableAnswer")
        }
        // A proxy's that has no store behind it.
        SdkError::ServiceError(_) if reported.is_none() && status == 503 && has_body(error) => {
            (ErrorOrigin::Transport, "UnreadableAnswer")
        }
        SdkError::ServiceError(_)
            if status == 404 && error.raw_response().is_some_and(is_proxy_page) =>
        {
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
            let unsent = failure.as_connector_error();
            unsent.map_or((ErrorOrigin::Local, NOT_SENT_CODE), |error| {
                classify_unsent(error)
            })
        }
        SdkError::DispatchFailure(_) => (ErrorOrigin::Transport, exchange::connection_code(error)),
        _ => (ErrorOrigin::Local, NOT_SENT_CODE),
    }
}

/// Whether a proxy answers that knows no such address: that there is no such object it cannot say. Stores answer in
/// XML, and name the request. R2 names Cloudflare's; its HEAD's type is not documented, and may be the one that
/// workers give to text.
pub(crate) fn is_proxy_page(response: &HttpResponse) -> bool {
    let headers = response.headers();
    let kind = headers.get("content-type").unwrap_or_default();
    let is_r2s = |name: &str| name == "cf-ray" && kind == "text/plain;charset=UTF-8";
    let is_stores =
        |name: &str| name.starts_with("x-amz") || name.starts_with("x-goog") || is_r2s(name);
    kind.starts_with("text/") && !headers.iter().any(|(name, _)| is_stores(name))
}

pub(crate) fn describe_page(status: u16) -> String {
    format!("HTTP status {status} with a page of text: a proxy's, not the store's")
}

fn has_body<E>(error: &SdkError<E, HttpResponse>) -> bool {
    let body = error.raw_response().and_then(|raw| raw.body().bytes());
    body.is_some_and(|body| !body.is_empty())
}

/// What is not set is never there; a provider of credentials may be back in a moment.
fn classify_unsent(error: &(dyn Error + 'static)) -> (ErrorOrigin, &'static str) {
    use CredentialsError::{CredentialsNotLoaded, ProviderError, ProviderTimedOut, Unhandled};
    let mut causes = successors(Some(error), |&error| error.source());
    let has_failed = causes.any(|cause| match cause.downcast_ref() {
        Some(ProviderError(_) | ProviderTimedOut(_) | Unhandled(_)) => true,
        // The SDK asks for an instance's role everywhere, and takes silence for "not on an instance".
        Some(CredentialsNotLoaded(_)) => {
            format!("{cause:?}").contains("ImdsCommunicationError") && is_instance()
        }
        // The type of the SDK's own cache for this is private.
        None => cause.to_string().starts_with("identity resolver timed out"),
        Some(_) => false,
    });
    if has_failed {
        (ErrorOrigin::Credentials, "CredentialsUnavailable")
    } else {
        (ErrorOrigin::Local, NOT_SENT_CODE)
    }
}

/// Whether this runs on EC2, or the environment says where an instance's role is asked for.
fn is_instance() -> bool {
    let vendor = std::fs::read_to_string("/sys/class/dmi/id/sys_vendor");
    std::env::var_os("AWS_EC2_METADATA_SERVICE_ENDPOINT").is_some()
        || vendor.is_ok_and(|vendor| vendor.starts_with("Amazon EC2"))
}

/// The first line of a service's message. What comes after it repeats the request: a response about a
/// signature quotes its headers, the session token among them.
fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

pub(crate) const BUCKET_REGION: &str = "x-amz-bucket-region";

/// In place of a message; a proxy's, perhaps.
pub(crate) fn describe_status(status: u16, region: Option<&str>) -> String {
    match region {
        Some(region) if matches!(status, 301 | 307) => format!("the bucket is in {region}"),
        // A HEAD's has no message at all.
        Some(region) if status == 400 => {
            format!("HTTP status 400 without a message (the bucket is in {region})")
        }
        _ => format!("HTTP status {status} without a message"),
    }
}

/// Responses to HEAD carry no body, hence no code.
fn code_for_status(status: u16) -> &'static str {
    match status {
        301 => "PermanentRedirect",
        307 => "TemporaryRedirect",
        400 => "BadRequest",
        403 => "AccessDenied",
        404 => "NotFound",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        501 => "NotImplemented",
        // A proxy's: the store behind it may be at work on the request still.
        502 => "BadGateway",
        503 => "ServiceUnavailable",
        504 => "GatewayTimeout",
        500.. => "InternalError",
        _ => "UnknownError",
    }
}

/// An error and its causes on one line, each once; of a database's its message, without the line of the server's
/// source that sqlx adds.
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in successors(Some(error), |&error| error.source()) {
        let database = cause.downcast_ref::<sqlx::Error>();
        let database = database.and_then(sqlx::Error::as_database_error);
        let cause_text = match database {
            Some(error) => {
                text = text.replace(&error.to_string(), error.message());
                error.message().to_owned()
            }
            None => cause.to_string(),
        };
        if text.is_empty() {
            text = cause_text;
        } else if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        if database.is_some() {
            break;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As sqlx's Postgres shows its errors.
    #[derive(Debug, thiserror::Error)]
    #[error("no partner at line 3891")]
    struct ServerError;

    impl sqlx::error::DatabaseError for ServerError {
        fn message(&self) -> &'static str {
            "no partner"
        }

        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }

        fn as_error(&self) -> &(dyn Error + Send + Sync + 'static) {
            self
        }

        fn as_error_mut(&mut self) -> &mut (dyn Error + Send + Sync + 'static) {
            self
        }

        fn into_error(self: Box<Self>) -> Box<dyn Error + Send + Sync + 'static> {
            self
        }
    }

    #[test]
    fn a_line_of_the_servers_source_is_not_shown() {
        let error = || sqlx::Error::Database(Box::new(ServerError));
        assert_eq!(error_chain(&error()), "no partner");
        let opening = crate::ledger::LedgerError::from(error());
        let text = "the database failed while the run was opened: no partner";
        assert_eq!(error_chain(&opening), text);
        let migration = sqlx::migrate::MigrateError::Execute(error());
        assert!(error_chain(&migration).ends_with("no partner"));
    }
}
