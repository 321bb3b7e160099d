//! Looking at what passes between the callers and the services.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use futures::future::BoxFuture;

use super::answer::{self, Answer};
use super::operation::Operation;

/// A request on its way to the services.
#[derive(Debug, Clone, Copy)]
pub struct Passing<'a> {
    /// The operation's name in the AWS API, such as `CopyObject`.
    pub operation: &'a str,
    /// The access key id it was signed with.
    pub caller: &'a str,
    /// The object's key; empty for SQS.
    pub key: &'a str,
    /// The body of an SQS request; empty for S3.
    pub body: &'a [u8],
}

/// Somebody who looks at every request that is performed. What a fault keeps from the services is
/// not shown.
pub trait Watch: Send + Sync {
    /// Is told of a request before it is performed, and holds it up until done.
    fn before<'a>(&'a self, request: Passing<'a>) -> BoxFuture<'a, ()>;

    /// Is told of an SQS request that was performed, with the body of its answer; whether the
    /// caller ever gets that is another matter.
    fn after(&self, request: Passing<'_>, answer: &[u8]);
}

impl Operation {
    pub(super) fn passing(&self) -> Passing<'_> {
        Passing {
            operation: &self.name,
            caller: &self.caller,
            key: &self.place.key,
            body: &self.body,
        }
    }
}

/// Shows the answer to the watch and returns it.
pub(super) async fn show(watch: &Arc<dyn Watch>, operation: &Operation, given: Answer) -> Answer {
    let (parts, body) = given.into_parts();
    let body = answer::collect(body).await;
    watch.after(operation.passing(), &body);
    Response::from_parts(parts, Body::from(body))
}
