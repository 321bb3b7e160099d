//! Faults to inject, and which of them strikes a request.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;

use super::operation::CloudOperation;

#[derive(Debug, Clone)]
pub enum FaultEffect {
    /// The operation is not performed and answered with this error.
    Error {
        status: u16,
        code: String,
        message: String,
    },
    /// The operation is performed, yet answered with this error.
    ErrorAfterEffect {
        status: u16,
        code: String,
        message: String,
    },
    /// S3 alone: not performed and answered with status 200 and this error in the body.
    OkWithError { code: String },
    /// Not performed and answered with status 200 and no body.
    EmptyOk,
    /// Performed, but the connection ends in the middle of the answer's body.
    TruncatedBody,
    /// Performed, but no byte of the answer's body ever comes.
    StalledBody,
    /// Not performed; the connection ends without an answer.
    Reset,
    /// Performed; the connection ends without an answer.
    ResetAfterEffect,
    /// Performed after this time, as long as the caller waits.
    Delay(Duration),
    /// Performed after this time, whether the caller still waits or not, as S3 goes on with what it
    /// has begun.
    Slow(Duration),
    /// Performed, and answered after this time.
    DelayedResponse(Duration),
    /// SQS batches alone: not performed and answered with every entry under `Failed`.
    FailEntries { code: String, sender_fault: bool },
    /// SQS batches alone: every other entry, beginning with the first, is not performed and comes
    /// back under `Failed`.
    FailSomeEntries { code: String, sender_fault: bool },
}

impl FaultEffect {
    /// [`Effect::Error`] with a message of no matter.
    pub fn error(status: u16, code: &str) -> Self {
        Self::Error {
            status,
            code: code.to_owned(),
            message: format!("injected {code}"),
        }
    }

    /// Whether it goes on when the caller has gone.
    pub(super) fn outlives_caller(&self) -> bool {
        matches!(self, Self::Slow(_))
    }

    /// [`Effect::ErrorAfterEffect`] with a message of no matter.
    pub fn error_after(status: u16, code: &str) -> Self {
        Self::ErrorAfterEffect {
            status,
            code: code.to_owned(),
            message: format!("injected {code}"),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Fault {
    /// The operation's name in the AWS API, such as `CopyObject`.
    pub operation: String,
    /// Only requests with this text in their key, their copy source or their SQS body.
    pub key_contains: Option<String>,
    /// Only requests signed with this access key id.
    pub caller: Option<String>,
    /// The share of these requests that is struck, from 0 to 1.
    pub probability: f64,
    /// A header that the request must have, or must not have.
    pub header: Option<(&'static str, bool)>,
    /// How many requests are struck at most.
    pub times: Option<u64>,
    pub effect: FaultEffect,
}

impl Fault {
    /// Strikes every request of `operation`.
    pub fn new(operation: impl Into<String>, effect: FaultEffect) -> Self {
        let operation = operation.into();
        Self {
            operation,
            key_contains: None,
            caller: None,
            probability: 1.0,
            header: None,
            times: None,
            effect,
        }
    }

    /// Strikes only requests with this header.
    #[must_use]
    pub fn with_header(self, name: &'static str) -> Self {
        let header = Some((name, true));
        Self { header, ..self }
    }

    /// Strikes only requests without this header.
    #[must_use]
    pub fn without_header(self, name: &'static str) -> Self {
        let header = Some((name, false));
        Self { header, ..self }
    }

    /// Strikes only requests with `text` in their key, copy source or SQS body.
    #[must_use]
    pub fn key_contains(self, text: impl Into<String>) -> Self {
        Self {
            key_contains: Some(text.into()),
            ..self
        }
    }

    /// Strikes only requests signed with this access key id.
    #[must_use]
    pub fn caller(self, access_key_id: impl Into<String>) -> Self {
        Self {
            caller: Some(access_key_id.into()),
            ..self
        }
    }

    /// Strikes this share of the requests, from 0 to 1.
    #[must_use]
    pub fn probability(self, probability: f64) -> Self {
        Self {
            probability,
            ..self
        }
    }

    /// Strikes this many requests at most.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self {
            times: Some(times),
            ..self
        }
    }

    fn matches_operation(&self, operation: &CloudOperation) -> bool {
        self.operation == operation.name
            && self
                .caller
                .as_ref()
                .is_none_or(|caller| *caller == operation.caller)
            && self
                .key_contains
                .as_ref()
                .is_none_or(|text| operation.contains_text(text))
            && self
                .header
                .is_none_or(|(name, has)| operation.headers.contains_key(name) == has)
    }
}

#[derive(Debug)]
struct ActiveFault {
    fault: Fault,
    hits: AtomicU64,
}

#[derive(Debug)]
struct FaultRegistry {
    active: Vec<Arc<ActiveFault>>,
    random: fastrand::Rng,
}

#[derive(Debug)]
pub(super) struct ActiveFaults(Arc<Mutex<FaultRegistry>>);

impl ActiveFaults {
    pub(super) fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self(Arc::new(Mutex::new(FaultRegistry {
            active: Vec::new(),
            random,
        })))
    }

    pub(super) fn insert(&self, fault: Fault) -> FaultHandle {
        let armed = Arc::new(ActiveFault {
            fault,
            hits: AtomicU64::new(0),
        });
        self.0.lock().active.push(Arc::clone(&armed));
        FaultHandle {
            active: armed,
            registry: Arc::downgrade(&self.0),
        }
    }

    /// The effect on this request of the first fault that strikes it.
    pub(super) fn pick_effect(&self, operation: &CloudOperation) -> Option<FaultEffect> {
        let FaultRegistry {
            active: armed,
            random,
        } = &mut *self.0.lock();
        let struck = armed
            .iter()
            .find(|armed| armed.should_apply(operation, random))?;
        struck.hits.fetch_add(1, Ordering::Relaxed);
        Some(struck.fault.effect.clone())
    }
}

impl ActiveFault {
    fn should_apply(&self, operation: &CloudOperation, random: &mut fastrand::Rng) -> bool {
        let left = self
            .fault
            .times
            .is_none_or(|times| self.hits.load(Ordering::Relaxed) < times);
        left && self.fault.matches_operation(operation) && random.f64() < self.fault.probability
    }
}

/// A fault in force until this is dropped.
#[must_use = "the fault ends when its handle is dropped"]
#[derive(Debug)]
pub struct FaultHandle {
    active: Arc<ActiveFault>,
    registry: Weak<Mutex<FaultRegistry>>,
}

impl FaultHandle {
    pub fn hits(&self) -> u64 {
        self.active.hits.load(Ordering::Relaxed)
    }

    pub fn remove(self) {}
}

impl Drop for FaultHandle {
    fn drop(&mut self) {
        if let Some(faults) = self.registry.upgrade() {
            faults
                .lock()
                .active
                .retain(|armed| !Arc::ptr_eq(armed, &self.active));
        }
    }
}
