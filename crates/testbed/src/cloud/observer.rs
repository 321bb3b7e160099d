//! Looking at what passes between the callers and the services.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use futures::future::BoxFuture;

use super::operation::CloudOperation;
use super::response::{self, CloudResponse};

/// A request on its way to the services.
#[derive(Debug, Clone, Copy)]
pub struct ObservedRequest<'a> {
    /// The operation's name in the AWS API, such as `CopyObject`.
    pub operation: &'a str,
    /// The access key id it was signed with.
    pub caller: &'a str,
    /// The object's key; empty for SQS.
    pub key: &'a str,
    /// The body of an SQS request; empty for S3.
    pub body: &'a [u8],
}

/// Sees every request that is performed. What a fault keeps from the services is
/// not shown.
pub trait CloudObserver: Send + Sync {
    /// Called before a request is performed, which waits for the end of this.
    fn before_request<'a>(&'a self, request: ObservedRequest<'a>) -> BoxFuture<'a, ()>;

    /// Called after an SQS request was performed, with the body of its response; whether the
    /// caller ever gets that is another matter.
    fn after_response(&self, request: ObservedRequest<'_>, response: &[u8]);
}

impl CloudOperation {
    pub(super) fn observed_request(&self) -> ObservedRequest<'_> {
        ObservedRequest {
            operation: &self.name,
            caller: &self.caller,
            key: &self.target.key,
            body: &self.body,
        }
    }
}

/// Shows the answer to the watch and returns it.
pub(super) async fn notify_observer(
    watch: &Arc<dyn CloudObserver>,
    operation: &CloudOperation,
    given: CloudResponse,
) -> CloudResponse {
    let (parts, body) = given.into_parts();
    let body = response::collect_body(body).await;
    watch.after_response(operation.observed_request(), &body);
    Response::from_parts(parts, Body::from(body))
}
