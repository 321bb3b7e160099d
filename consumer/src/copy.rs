//! Copy: one server-side copy per image, proven by its ETag, at the pace S3 allows; and the comparison
//! where something stands at the destination already.
//!
//! What is throttled or broken for the moment is tried again here, in hand and under its lease, so
//! that it uses up no receive count.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::throttle::{Throttle, ThrottlePermit};
use bucket_brigade_common::trace;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::counters::ConsumerCounters;
use crate::health::{Dependency, Health};
use crate::outage::{OutageWatch, Verdict};
use crate::protocol::{Event, FailureCause};

/// Tries of one object in hand before it is given back, when others go well: about ten seconds.
const MAX_ATTEMPTS: u32 = 7;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

/// Waits of a throttled copy; the throttle does the real slowing down.
const THROTTLED_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(3),
};

/// What is asked of the store.
#[derive(Debug, Clone, Copy)]
enum StoreCall {
    Copy,
    Compare,
}

/// How one try ended.
enum AttemptOutcome {
    Completed(Event),
    Permanent(FailureCause),
    Retryable(StoreError),
}

/// A try, and under which circumstances it was made.
struct StoreAttempt {
    outcome: AttemptOutcome,
    sent_at: Instant,
    is_probe: bool,
}

/// Copies objects.
pub struct Copier {
    store: Arc<dyn ObjectStore>,
    throttle: Arc<Throttle>,
    health: Health,
    outages: OutageWatch,
    counters: Arc<ConsumerCounters>,
    stop: CancellationToken,
}

impl Copier {
    /// Copies within the store, as fast as the throttle allows. The witness is an image that was moved
    /// before, if there is one.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        throttle: Arc<Throttle>,
        witness: Option<MoveRoute>,
        health: Health,
        tally: Arc<ConsumerCounters>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            throttle,
            health,
            outages: OutageWatch::new(witness),
            counters: tally,
            stop,
        }
    }

    pub fn throttle(&self) -> &Throttle {
        &self.throttle
    }

    /// Copies until it is proven or hopeless. A stop ends the waiting, not a copy under way.
    pub async fn copy(&self, route: &MoveRoute) -> Event {
        self.retry_call(StoreCall::Copy, route).await
    }

    /// Compares what stands at the destination with the source, as patiently.
    pub async fn compare(&self, route: &MoveRoute) -> Event {
        self.retry_call(StoreCall::Compare, route).await
    }

    async fn retry_call(&self, call: StoreCall, route: &MoveRoute) -> Event {
        let (mut tries, mut probes, mut throttled) = (0, 0, 0);
        loop {
            let Some(tried) = self.try_when_permitted(call, route).await else {
                return Event::Interrupted;
            };
            let wait = match tried.outcome {
                AttemptOutcome::Completed(event) => return event,
                AttemptOutcome::Permanent(trouble) => return Event::CopyFailed(trouble),
                AttemptOutcome::Retryable(StoreError::Throttled { .. }) => {
                    throttled += 1;
                    THROTTLED_BACKOFF.jittered_delay(throttled, fastrand::f64())
                }
                AttemptOutcome::Retryable(error) => {
                    let verdict = self.detect_outage(&error, route, tried.sent_at, tried.is_probe);
                    // What failed in an outage says nothing of this object, and does not count against it.
                    if verdict.await == Verdict::Everybodys {
                        probes += 1;
                        if !self.has_exhausted_probes(&error, probes) {
                            continue;
                        }
                        self.health.up(Dependency::Objects);
                        return Event::CopyFailed(retries_exhausted(&error, probes));
                    }
                    tries += 1;
                    if tries >= MAX_ATTEMPTS {
                        return Event::CopyFailed(retries_exhausted(&error, tries));
                    }
                    RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())
                }
            };
            tokio::select! {
                biased;
                () = sleep(wait) => {}
                () = self.stop.cancelled() => return Event::Interrupted,
            }
        }
    }

    /// Waits for S3 to be well and for the throttle, then tries once. None when the process stops while
    /// waiting, or others are to do it.
    async fn try_when_permitted(&self, call: StoreCall, route: &MoveRoute) -> Option<StoreAttempt> {
        let entering = async {
            let turn = self.health.turn().await;
            (turn, self.throttle.acquire().await)
        };
        let (turn, permit) = tokio::select! {
            biased;
            entered = entering => entered,
            () = self.stop.cancelled() => return None,
            () = self.throttle.excluded() => return None,
        };
        let sent = Instant::now();
        Some(StoreAttempt {
            outcome: self.try_once(call, route, permit).await,
            sent_at: sent,
            is_probe: turn.is_probe(),
        })
    }

    async fn try_once(
        &self,
        call: StoreCall,
        route: &MoveRoute,
        permit: ThrottlePermit<'_>,
    ) -> AttemptOutcome {
        let began = Instant::now();
        let answer = self.call_store(call, route).await;
        if let Ok(Event::Copied(_)) = answer {
            self.counters.copies.observe(began.elapsed().as_secs_f64());
        }
        if matches!(answer, Err(StoreError::Throttled { .. })) {
            self.counters.throttled();
            permit.throttled();
        } else {
            permit.served();
        }
        let outcome = answer.map_or_else(classify_store_error, AttemptOutcome::Completed);
        if let AttemptOutcome::Retryable(error) = &outcome {
            let code = error.code();
            tracing::info!(target: trace::TARGET, { "error.type" = code }, "tried in vain");
        } else {
            self.health.up(Dependency::Objects);
        }
        if let AttemptOutcome::Completed(
            Event::Copied(_) | Event::Compared(DestinationState::Same(_)),
        ) = outcome
        {
            self.outages.went_well(route);
        }
        outcome
    }

    async fn call_store(&self, call: StoreCall, route: &MoveRoute) -> Result<Event, StoreError> {
        if let StoreCall::Compare = call {
            return self.store.compare_objects(route).await.map(Event::Compared);
        }
        let copied = match self.store.copy(route).await {
            Err(StoreError::TooLarge) => self.store.copy_multipart(route).await,
            other => other,
        };
        match copied {
            Err(StoreError::DestinationExists) => Ok(Event::DestinationExists),
            other => other.map(Event::Copied),
        }
    }

    /// Whose trouble an error is. An outage is told, and what is in hand waits for its turn.
    async fn detect_outage(
        &self,
        error: &StoreError,
        route: &MoveRoute,
        sent: Instant,
        is_probe: bool,
    ) -> Verdict {
        // What looks systemic is asked about at once, what looks like one object's trouble after a streak.
        let is_urgent = is_probe || matches!(error, StoreError::Systemic { .. });
        let store = &*self.store;
        let verdict = self.outages.verdict(store, route, sent, is_urgent).await;
        match verdict {
            Verdict::Everybodys => self.health.down(Dependency::Objects, &outage_reason(error)),
            Verdict::Own => self.health.up(Dependency::Objects),
            Verdict::Unknown => {}
        }
        verdict
    }

    /// Before any copy went well there is no witness, and a few broken objects look like an outage. They
    /// must not keep the others from being received for ever, so each is given back in the end.
    fn has_exhausted_probes(&self, error: &StoreError, probes: u32) -> bool {
        let may_pass = matches!(error, StoreError::Transient { .. });
        may_pass && probes >= 3 * MAX_ATTEMPTS && !self.outages.has_witness()
    }
}

/// Errors that no further try changes, and all others.
fn classify_store_error(error: StoreError) -> AttemptOutcome {
    match error {
        StoreError::Permanent { code, message } => AttemptOutcome::Permanent(FailureCause {
            code,
            message,
            permanent: true,
        }),
        other => AttemptOutcome::Retryable(other),
    }
}

/// Not for good: a later delivery tries again, until the redrive policy takes the message.
fn retries_exhausted(error: &StoreError, tries: u32) -> FailureCause {
    FailureCause {
        code: error.code().to_owned(),
        message: format!("{error} (after {tries} tries)"),
        permanent: false,
    }
}

/// An outage's reason, with what to do about it.
fn outage_reason(error: &StoreError) -> String {
    let advice = match error {
        StoreError::Denied { .. } => {
            "check the consumer's policy: s3:GetObject and s3:GetObjectTagging on the source, s3:PutObject and s3:PutObjectTagging on the destination, and the KMS keys of both"
        }
        StoreError::Systemic { code, .. } if code == "NoSuchBucket" => {
            "check SOURCE_BUCKET_NAME and DESTINATION_BUCKET_NAME"
        }
        StoreError::Systemic { .. } => "check the credentials and AWS_REGION",
        _ => "check S3's status and the network",
    };
    format!("{error}; {advice}")
}
