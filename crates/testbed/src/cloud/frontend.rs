//! The thin HTTP layer in front of the backend: it counts requests, injects faults and adds what
//! the backend lacks of S3 and SQS.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request};
use hyper::body::Incoming;
use parking_lot::Mutex;

use super::CloudOptions;
use super::backend::{BackendCall, CloudBackend};
use super::fault::{ActiveFaults, FaultEffect};
use super::limit::CopyLimiter;
use super::observer::CloudObserver;
use super::operation::{BucketKey, CloudOperation, CloudService};
use super::partial::PartialBatch;
use super::receives::ReceiveCounts;
use super::requests::CloudRequestCounts;
use super::response::{self, CloudResponse};
use super::{condition, observer, stale_handles};

/// Enough that two keys seldom wait for each other.
const KEY_LOCK_COUNT: usize = 256;

const SLOW_DOWN_MESSAGE: &str = "Please reduce your request rate.";

/// The connection is to be closed without an answer.
#[derive(Debug)]
pub(super) struct ConnectionReset;

impl std::fmt::Display for ConnectionReset {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("injected reset")
    }
}

impl std::error::Error for ConnectionReset {}

pub(super) struct CloudFrontend {
    pub(super) request_counts: Mutex<CloudRequestCounts>,
    pub(super) faults: ActiveFaults,
    pub(super) observer: OnceLock<Arc<dyn CloudObserver>>,
    pub(super) copy_limiter: Mutex<Option<CopyLimiter>>,
    pub(super) receive_counts: ReceiveCounts,
    pub(super) backend: CloudBackend,
    options: CloudOptions,
    key_locks: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
}

impl CloudFrontend {
    pub(super) fn new(backend: CloudBackend, options: CloudOptions) -> Self {
        Self {
            request_counts: Mutex::default(),
            faults: ActiveFaults::new(options.seed),
            observer: OnceLock::new(),
            copy_limiter: Mutex::default(),
            receive_counts: ReceiveCounts::default(),
            backend,
            options,
            key_locks: std::iter::repeat_with(tokio::sync::Mutex::default)
                .take(KEY_LOCK_COUNT)
                .collect(),
            hasher: RandomState::new(),
        }
    }

    pub(super) async fn handle_request(
        self: Arc<Self>,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<CloudResponse, ConnectionReset> {
        let (parts, body) = request.into_parts();
        let is_sqs = CloudOperation::is_sqs(&parts.headers);
        let body = Body::new(body);
        // Only SQS bodies are looked into; an object's bytes are passed on.
        let (text, body) = if is_sqs {
            buffer_body(body).await
        } else {
            (Bytes::new(), body)
        };
        let operation = CloudOperation::from_request(&parts, text);
        self.request_counts.lock().count_request(&operation);
        if !self.is_within_limit(&operation) {
            return Ok(response::error_response(
                &operation,
                503,
                "SlowDown",
                SLOW_DOWN_MESSAGE,
            ));
        }
        let call = BackendCall {
            peer,
            request: Request::from_parts(parts, body),
        };
        let quirks = self.options.quirks;
        let named = operation.clone();
        let given = match self.faults.pick_effect(&operation) {
            None => Ok(self.perform_observed(&operation, call).await),
            Some(effect) if effect.outlives_caller() => {
                // The rest of a body would end with its connection.
                let (parts, body) = call.request.into_parts();
                let request = Request::from_parts(parts, buffer_body(body).await.1);
                let call = BackendCall { request, ..call };
                let task = async move { self.apply_effect(effect, &operation, call).await };
                tokio::spawn(task).await.unwrap_or(Err(ConnectionReset))
            }
            Some(effect) => self.apply_effect(effect, &operation, call).await,
        };
        Ok(quirks.distort(&named, given?).await)
    }

    fn is_within_limit(&self, operation: &CloudOperation) -> bool {
        let mut limit = self.copy_limiter.lock();
        let limiter = limit.as_mut();
        limiter.is_none_or(|limiter| limiter.admits_operation(operation, Instant::now()))
    }

    async fn apply_effect(
        &self,
        effect: FaultEffect,
        operation: &CloudOperation,
        call: BackendCall,
    ) -> Result<CloudResponse, ConnectionReset> {
        match effect {
            FaultEffect::Error {
                status,
                code,
                message,
            } => Ok(response::error_response(operation, status, &code, &message)),
            FaultEffect::ErrorAfterEffect {
                status,
                code,
                message,
            } => {
                self.perform_observed(operation, call).await;
                Ok(response::error_response(operation, status, &code, &message))
            }
            FaultEffect::OkWithError { code } => {
                Ok(response::s3_error_response(200, &code, "injected", ""))
            }
            FaultEffect::EmptyOk => Ok(response::empty_response()),
            FaultEffect::TruncatedBody => {
                Ok(response::truncate_body(self.perform_observed(operation, call).await).await)
            }
            FaultEffect::StalledBody => Ok(response::stall_body(
                self.perform_observed(operation, call).await,
            )),
            FaultEffect::Reset => Err(ConnectionReset),
            FaultEffect::ResetAfterEffect => {
                self.perform_observed(operation, call).await;
                Err(ConnectionReset)
            }
            FaultEffect::Delay(time) | FaultEffect::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(self.perform_observed(operation, call).await)
            }
            FaultEffect::DelayedResponse(time) => {
                let response = self.perform_observed(operation, call).await;
                tokio::time::sleep(time).await;
                Ok(response)
            }
            FaultEffect::FailSomeEntries { code, sender_fault } => Ok(self
                .perform_partially(operation, call, &code, sender_fault)
                .await),
            FaultEffect::FailEntries { code, sender_fault } => Ok(response::failed_entries(
                &operation.body,
                &code,
                sender_fault,
            )),
        }
    }

    async fn perform_partially(
        &self,
        operation: &CloudOperation,
        call: BackendCall,
        code: &str,
        sender_fault: bool,
    ) -> CloudResponse {
        let mut divided = PartialBatch::split(operation, code, sender_fault);
        let given = match divided.remaining.take() {
            Some(rest) => {
                let call = PartialBatch::remaining_call(&rest, call);
                Some(self.perform_observed(&rest, call).await)
            }
            None => None,
        };
        divided.merge_response(given).await
    }

    async fn perform_observed(
        &self,
        operation: &CloudOperation,
        call: BackendCall,
    ) -> CloudResponse {
        if let Some(watch) = self.observer.get() {
            watch.before_request(operation.observed_request()).await;
        }
        let given = self.perform_locked(operation, call).await;
        match self.observer.get() {
            Some(watch) if operation.service == CloudService::Sqs => {
                observer::notify_observer(watch, operation, given).await
            }
            _ => given,
        }
    }

    async fn perform_locked(
        &self,
        operation: &CloudOperation,
        mut call: BackendCall,
    ) -> CloudResponse {
        // From the check to the effect there is no other write to this key.
        let _guard = if operation.writes_object() {
            Some(self.key_lock(&operation.target).lock().await)
        } else {
            None
        };
        if let Some(refusal) = self.check_refusal(operation, call.request.headers()) {
            return refusal;
        }
        let quirks = self.options.quirks;
        quirks.strip_conditions(operation, call.request.headers_mut());
        let given = if operation.name == "DeleteObjects" && self.options.conditional_copy {
            condition::delete_objects(&self.backend, operation, call).await
        } else {
            self.backend.dispatch_call(call).await
        };
        let given = self.receive_counts.record_response(operation, given).await;
        stale_handles::accept_stale_deletes(operation, given).await
    }

    fn key_lock(&self, target: &BucketKey) -> &tokio::sync::Mutex<()> {
        let hash = self.hasher.hash_one(target) % KEY_LOCK_COUNT as u64;
        &self.key_locks[usize::try_from(hash).unwrap_or_default()]
    }

    /// What S3 refuses and the backend would perform.
    fn check_refusal(
        &self,
        operation: &CloudOperation,
        headers: &HeaderMap,
    ) -> Option<CloudResponse> {
        let quirks = self.options.quirks;
        if quirks.fails_unmodified_since(&self.backend, operation) {
            return Some(precondition_failed("x-amz-delete-if-unmodified-since"));
        }
        if quirks.fails_quoted_etag(operation) {
            return Some(precondition_failed("If-Match"));
        }
        if operation.name != "CopyObject" {
            return None;
        }
        let only_new = headers
            .get("if-none-match")
            .is_some_and(|value| value == "*");
        if only_new
            && self.options.conditional_copy
            && self.backend.object_size_bytes(&operation.target).is_some()
        {
            return Some(precondition_failed("If-None-Match"));
        }
        if self.options.conditional_copy
            && condition::fails_if_match(&self.backend, operation, headers)
        {
            return Some(precondition_failed("If-Match"));
        }
        let limit = self.options.copy_limit_bytes;
        let size = operation
            .source
            .as_ref()
            .and_then(|source| self.backend.object_size_bytes(source));
        size.filter(|size| *size > limit).map(|_| too_large(limit))
    }
}

async fn buffer_body(body: Body) -> (Bytes, Body) {
    let bytes = response::collect_body(body).await;
    (bytes.clone(), Body::from(bytes))
}

fn precondition_failed(condition: &str) -> CloudResponse {
    let message = "At least one of the pre-conditions you specified did not hold";
    response::s3_error_response(
        412,
        "PreconditionFailed",
        message,
        &format!("<Condition>{condition}</Condition>"),
    )
}

fn too_large(limit: u64) -> CloudResponse {
    let message = format!(
        "The specified copy source is larger than the maximum allowable size for a copy source: {limit}"
    );
    response::s3_error_response(400, "InvalidRequest", &message, "")
}
