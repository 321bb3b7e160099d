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

use super::Options;
use super::answer::{self, Answer};
use super::backend::{Backend, Call};
use super::fault::{Effect, Faults};
use super::limit::Limiter;
use super::operation::{Operation, Place, Service};
use super::partial::Divided;
use super::receives::Receives;
use super::requests::Requests;
use super::watch::Watch;
use super::{condition, stale, watch};

/// Enough that two keys seldom wait for each other.
const LOCKS: usize = 256;

/// S3's own words.
const SLOW_DOWN: &str = "Please reduce your request rate.";

/// The connection is to be closed without an answer.
#[derive(Debug)]
pub(super) struct Reset;

impl std::fmt::Display for Reset {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("injected reset")
    }
}

impl std::error::Error for Reset {}

pub(super) struct Front {
    pub(super) requests: Mutex<Requests>,
    pub(super) faults: Faults,
    pub(super) watch: OnceLock<Arc<dyn Watch>>,
    pub(super) limit: Mutex<Option<Limiter>>,
    pub(super) receives: Receives,
    pub(super) backend: Backend,
    options: Options,
    locks: Vec<tokio::sync::Mutex<()>>,
    hasher: RandomState,
}

impl Front {
    pub(super) fn new(backend: Backend, options: Options) -> Self {
        Self {
            requests: Mutex::default(),
            faults: Faults::new(options.seed),
            watch: OnceLock::new(),
            limit: Mutex::default(),
            receives: Receives::default(),
            backend,
            options,
            locks: std::iter::repeat_with(tokio::sync::Mutex::default)
                .take(LOCKS)
                .collect(),
            hasher: RandomState::new(),
        }
    }

    pub(super) async fn answer(
        self: Arc<Self>,
        peer: SocketAddr,
        request: Request<Incoming>,
    ) -> Result<Answer, Reset> {
        let (parts, body) = request.into_parts();
        let is_sqs = Operation::is_sqs(&parts.headers);
        let body = Body::new(body);
        // Only SQS bodies are looked into; an object's bytes are passed on.
        let (text, body) = if is_sqs {
            buffered(body).await
        } else {
            (Bytes::new(), body)
        };
        let operation = Operation::of(&parts, text);
        self.requests.lock().add(&operation);
        if !self.is_within_limit(&operation) {
            return Ok(answer::error(&operation, 503, "SlowDown", SLOW_DOWN));
        }
        let call = Call {
            peer,
            request: Request::from_parts(parts, body),
        };
        match self.faults.strike(&operation) {
            None => Ok(self.perform(&operation, call).await),
            Some(effect) if effect.outlives_its_caller() => {
                let task = async move { self.suffer(effect, &operation, call).await };
                tokio::spawn(task).await.unwrap_or(Err(Reset))
            }
            Some(effect) => self.suffer(effect, &operation, call).await,
        }
    }

    fn is_within_limit(&self, operation: &Operation) -> bool {
        let mut limit = self.limit.lock();
        let limiter = limit.as_mut();
        limiter.is_none_or(|limiter| limiter.admits(operation, Instant::now()))
    }

    async fn suffer(
        &self,
        effect: Effect,
        operation: &Operation,
        call: Call,
    ) -> Result<Answer, Reset> {
        match effect {
            Effect::Error {
                status,
                code,
                message,
            } => Ok(answer::error(operation, status, &code, &message)),
            Effect::ErrorAfterEffect {
                status,
                code,
                message,
            } => {
                self.perform(operation, call).await;
                Ok(answer::error(operation, status, &code, &message))
            }
            Effect::OkWithError { code } => Ok(answer::s3_error(200, &code, "injected", "")),
            Effect::EmptyOk => Ok(answer::empty_ok()),
            Effect::TruncatedBody => {
                Ok(answer::truncated(self.perform(operation, call).await).await)
            }
            Effect::Reset => Err(Reset),
            Effect::ResetAfterEffect => {
                self.perform(operation, call).await;
                Err(Reset)
            }
            Effect::Delay(time) | Effect::Slow(time) => {
                tokio::time::sleep(time).await;
                Ok(self.perform(operation, call).await)
            }
            Effect::LateAnswer(time) => {
                let answer = self.perform(operation, call).await;
                tokio::time::sleep(time).await;
                Ok(answer)
            }
            Effect::FailSomeEntries { code, sender_fault } => Ok(self
                .perform_some(operation, call, &code, sender_fault)
                .await),
            Effect::FailEntries { code, sender_fault } => {
                Ok(answer::failed_entries(&operation.body, &code, sender_fault))
            }
        }
    }

    async fn perform_some(
        &self,
        operation: &Operation,
        call: Call,
        code: &str,
        sender_fault: bool,
    ) -> Answer {
        let mut divided = Divided::of(operation, code, sender_fault);
        let given = match divided.rest.take() {
            Some(rest) => {
                let call = Divided::call(&rest, call);
                Some(self.perform(&rest, call).await)
            }
            None => None,
        };
        divided.answer(given).await
    }

    async fn perform(&self, operation: &Operation, call: Call) -> Answer {
        if let Some(watch) = self.watch.get() {
            watch.before(operation.passing()).await;
        }
        let given = self.perform_alone(operation, call).await;
        match self.watch.get() {
            Some(watch) if operation.service == Service::Sqs => {
                watch::show(watch, operation, given).await
            }
            _ => given,
        }
    }

    async fn perform_alone(&self, operation: &Operation, call: Call) -> Answer {
        // From the check to the effect nobody else writes this key.
        let _alone = if operation.writes_object() {
            Some(self.lock_of(&operation.place).lock().await)
        } else {
            None
        };
        if let Some(refusal) = self.refuse(operation, call.request.headers()) {
            return refusal;
        }
        let given = if operation.name == "DeleteObjects" && self.options.conditional_copy {
            condition::remove_many(&self.backend, operation, call).await
        } else {
            self.backend.perform(call).await
        };
        let given = self.receives.note(operation, given).await;
        stale::forgive(operation, given).await
    }

    fn lock_of(&self, place: &Place) -> &tokio::sync::Mutex<()> {
        let hash = self.hasher.hash_one(place) % LOCKS as u64;
        &self.locks[usize::try_from(hash).unwrap_or_default()]
    }

    /// What S3 refuses and the backend would perform.
    fn refuse(&self, operation: &Operation, headers: &HeaderMap) -> Option<Answer> {
        if operation.name != "CopyObject" {
            return None;
        }
        let only_new = headers
            .get("if-none-match")
            .is_some_and(|value| value == "*");
        if only_new
            && self.options.conditional_copy
            && self.backend.size_bytes(&operation.place).is_some()
        {
            return Some(precondition_failed("If-None-Match"));
        }
        if self.options.conditional_copy && condition::is_another(&self.backend, operation, headers)
        {
            return Some(precondition_failed("If-Match"));
        }
        let limit = self.options.copy_limit_bytes;
        let size = operation
            .source
            .as_ref()
            .and_then(|source| self.backend.size_bytes(source));
        size.filter(|size| *size > limit).map(|_| too_large(limit))
    }
}

async fn buffered(body: Body) -> (Bytes, Body) {
    let bytes = answer::collect(body).await;
    (bytes.clone(), Body::from(bytes))
}

fn precondition_failed(condition: &str) -> Answer {
    let message = "At least one of the pre-conditions you specified did not hold";
    answer::s3_error(
        412,
        "PreconditionFailed",
        message,
        &format!("<Condition>{condition}</Condition>"),
    )
}

fn too_large(limit: u64) -> Answer {
    let message = format!(
        "The specified copy source is larger than the maximum allowable size for a copy source: {limit}"
    );
    answer::s3_error(400, "InvalidRequest", &message, "")
}
