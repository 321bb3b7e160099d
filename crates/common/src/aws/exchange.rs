//! A signed request and its response, without the SDK's layers.

use std::error::Error;
use std::iter::successors;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use tokio::time::timeout;

use super::{ErrorOrigin, RequestError, error_chain};

/// Says in access logs who asked.
pub(crate) const USER_AGENT: &str = concat!("bucket-brigade/", env!("CARGO_PKG_VERSION"));

/// The code of a request without a response in time.
pub(crate) const TIMED_OUT: &str = "Timeout";

/// The code of a request whose connection broke.
pub(crate) const NO_CONNECTION: &str = "ConnectionFailed";

/// The code of a request that was not sent, for want of a connection.
pub(crate) const NOT_CONNECTED: &str = "NotConnected";

/// The code of an answer whose headers are too many for the HTTP library: an object's metadata may be.
pub(crate) const UNREADABLE: &str = "Unreadable";

/// No `async fn`, which would have room for the request twice, in each copy in flight.
pub(crate) fn call(
    connector: &SharedHttpConnector,
    mut request: HttpRequest,
) -> impl Future<Output = Result<HttpResponse, RequestError>> + use<> {
    let connection = CaptureSmithyConnection::new();
    request.add_extension(connection.clone());
    let response = connector.call(request);
    async move {
        let response = response.await;
        let response = response.map_err(|error| no_response(&error))?;
        // The server behind this connection may be the one that is broken, and the pool hands out first
        // what was used last. The SDK does the same.
        let status = response.status().as_u16();
        if let (500 | 502 | 504, Some(connection)) = (status, connection.get()) {
            connection.poison();
        }
        Ok(response)
    }
}

fn no_response(error: &(dyn Error + 'static)) -> RequestError {
    let causes = successors(Some(error), |&error| error.source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref::<hyper::Error>());
    if causes.any(hyper::Error::is_parse_too_large) {
        return lost(UNREADABLE, "the answer has more than 100 headers".into());
    }
    lost(connection_code(error), error_chain(error))
}

pub(crate) fn connection_code(error: &(dyn Error + 'static)) -> &'static str {
    let causes = successors(Some(error), |&error| error.source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref());
    if causes.any(hyper_util::client::legacy::Error::is_connect) {
        NOT_CONNECTED
    } else {
        NO_CONNECTION
    }
}

pub(crate) async fn within<T>(
    operation: &str,
    limit: Duration,
    sent: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, RequestError> {
    let sent = timeout(limit, sent).await;
    sent.unwrap_or_else(|_| Err(timed_out(operation)))
}

pub(crate) fn timed_out(operation: &str) -> RequestError {
    lost(TIMED_OUT, format!("{operation} has timed out"))
}

/// Its status, date and body, which may have so many bytes. S3 sends spaces while it copies.
pub(crate) async fn read_body(
    response: HttpResponse,
    most: usize,
) -> Result<(u16, Option<DateTime>, Vec<u8>), RequestError> {
    let status = response.status().as_u16();
    let date = response.headers().get("date");
    let date = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok());
    let (mut body, mut bytes) = (ByteStream::new(response.into_body()), Vec::new());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| unreadable(error_chain(&error)))?;
        bytes.extend_from_slice(&chunk);
        if bytes.len() > most {
            return Err(unreadable(format!("it has more than {most} bytes")));
        }
    }
    Ok((status, date, bytes))
}

pub(crate) fn unreadable(problem: String) -> RequestError {
    lost("UnreadableAnswer", problem)
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
