//! Copy: one server-side copy per image, proven by its ETag, at the rate S3 allows; and the comparison
//! where an object stands at the destination already.
//!
//! What is throttled or broken for the moment is tried again here, in hand and under its lease, so
//! that it uses up no receive count.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::ledger::move_ledger::MoveLedger;
use bucket_brigade_common::object_store::{ObjectStore, StoreError};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_common::retry::Backoff;
use bucket_brigade_common::throttle::{CopySubject, Throttle, ThrottlePermit};
use bucket_brigade_common::trace;
use tokio::time::{Instant, sleep};

use crate::context::ConsumerContext;
use crate::fair_slots::Slot;
use crate::outage::{FailureStreak, FailureVerdict, OutageDetector};
use crate::protocol::{Event, FailureCause};

/// Failures that count against an object before it is given up: about ten seconds. One is enough where the
/// attempts have taken long.
const MAX_FAILURES: u32 = 7;

/// A refusal does not pass by waiting. The second one that counts rules out that it was an outage's first
/// moment.
const MAX_REFUSALS: u32 = 2;

/// Throttled requests that count against an object: so many in a row, while others are served in between,
/// are no bad luck. About a minute.
const MAX_THROTTLED: u32 = 20;

/// From so many on they do not slow down the others.
const THROTTLED_ALONE: u32 = 2;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

/// The throttle does the real slowing down.
const THROTTLED_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(3),
};

#[derive(Debug, Clone, Copy)]
enum StoreCall {
    Copy,
    Compare,
}

enum CallOutcome {
    Ended(Result<Event, StoreError>),
    /// Another run needs the place.
    Recalled,
    Stopped,
}

#[derive(Debug, Default)]
struct ObjectAttempts {
    streak: FailureStreak,
    made: u32,
    /// Failures that count against the object.
    failures: u32,
    /// The same of throttled requests.
    throttled: u32,
}

pub struct Copier {
    /// It names the companions.
    pub(crate) rule: PathRule,
    store: Arc<dyn ObjectStore>,
    outages: OutageDetector,
    context: ConsumerContext,
}

impl Copier {
    pub fn new(store: Arc<dyn ObjectStore>, rule: &PathRule, context: &ConsumerContext) -> Self {
        Self {
            outages: OutageDetector::new(Arc::clone(&store), rule, context),
            store,
            rule: rule.clone(),
            context: context.clone(),
        }
    }

    /// Asks the ledger for objects while none was copied.
    #[must_use]
    pub fn with_ledger(mut self, ledger: &Arc<dyn MoveLedger>) -> Self {
        self.outages.ledger = Some(Arc::clone(ledger));
        self
    }

    pub fn throttle(&self) -> &Throttle {
        &self.context.throttle
    }

    pub fn outages(&self) -> &OutageDetector {
        &self.outages
    }

    /// Copies until it is proven or given up. A stop ends the waiting, not a copy in flight.
    pub async fn copy(&self, route: &MoveRoute, subject: CopySubject) -> Event {
        self.retry_call(StoreCall::Copy, route, subject).await
    }

    /// Compares what stands at the destination with the source, with the same retries.
    pub async fn compare(&self, route: &MoveRoute, subject: CopySubject) -> Event {
        self.retry_call(StoreCall::Compare, route, subject).await
    }

    async fn retry_call(&self, call: StoreCall, route: &MoveRoute, subject: CopySubject) -> Event {
        let mut attempts = ObjectAttempts::default();
        loop {
            let error = match self.try_call(call, route, subject, &mut attempts).await {
                CallOutcome::Stopped => return Event::Interrupted,
                CallOutcome::Recalled => continue,
                CallOutcome::Ended(Ok(event)) => return event,
                CallOutcome::Ended(Err(StoreError::Permanent { code, message })) => {
                    return Event::CopyFailed(FailureCause::new(code, message, true));
                }
                CallOutcome::Ended(Err(error)) => error,
            };
            let recovering = pin!(self.recover(route, error, &mut attempts));
            match self.unless_stopped(recovering).await {
                None => return Event::Interrupted,
                Some(Some(cause)) => return Event::CopyFailed(cause),
                Some(None) => {}
            }
        }
    }

    /// None when the process stops first, or other processes are to do the work.
    async fn unless_stopped<T>(&self, waiting: impl Future<Output = T> + Unpin) -> Option<T> {
        tokio::select! {
            biased;
            waited = waiting => Some(waited),
            () = self.context.stop.cancelled() => None,
            () = self.context.throttle.excluded() => None,
        }
    }

    async fn start_copy<'a>(
        &'a self,
        route: &'a MoveRoute,
        subject: CopySubject,
    ) -> (ThrottlePermit<'a>, Slot<'a>) {
        let health = &self.context.health;
        loop {
            if !health.is_up(Dependency::Objects) {
                self.outages.offer_source(route);
                health.wait_until_up(Dependency::Objects).await;
            }
            let key = &route.destination_key;
            let started = self.context.start_copy(key, subject).await;
            // An outage may have begun while this copy waited for its turn.
            if health.is_up(Dependency::Objects) {
                return started;
            }
        }
    }

    /// Waits before the next attempt; or returns why there is none.
    async fn recover(
        &self,
        route: &MoveRoute,
        error: StoreError,
        attempts: &mut ObjectAttempts,
    ) -> Option<FailureCause> {
        let outages = &self.outages;
        let verdict = outages.classify_failure(route, &error, &mut attempts.streak);
        match verdict.await {
            FailureVerdict::Outage => {
                *attempts = ObjectAttempts::default();
                return None;
            }
            FailureVerdict::Object => attempts.count_failure(&error),
            FailureVerdict::Unknown => {}
        }
        let cause = attempts.give_up_cause(&error);
        if cause.is_none() {
            sleep(attempts.next_delay(&error)).await;
        }
        cause
    }

    async fn try_call(
        &self,
        call: StoreCall,
        route: &MoveRoute,
        subject: CopySubject,
        attempts: &mut ObjectAttempts,
    ) -> CallOutcome {
        // Boxed, so that it makes no room in a copy in flight.
        let starting = Box::pin(self.start_copy(route, subject));
        let Some((permit, mut slot)) = self.unless_stopped(starting).await else {
            return CallOutcome::Stopped;
        };
        let sent = Instant::now();
        let mut result = tokio::select! {
            biased;
            result = self.outages.watch(route, self.call_store(call, route)) => result,
            () = slot.recalled() => return CallOutcome::Recalled,
        };
        if let Err(StoreError::TooLarge) = result {
            // It keeps its place, and outlasts a silence: what has been copied would be lost.
            let _waiting = self.outages.start_waiting(route);
            let copied = self.store.copy_multipart(route).await;
            result = copied.map(Event::Copied);
        }
        if let Err(StoreError::DestinationExists) = result {
            result = Ok(Event::DestinationExists);
        }
        self.record_result(&result, route, sent);
        match &result {
            Err(StoreError::Throttled { .. }) => {
                self.context.counters.throttled.inc();
                // Dropped, the permit says nothing of the store.
                if attempts.throttled < THROTTLED_ALONE {
                    permit.throttled();
                }
            }
            Err(_) => {
                attempts.streak.add_attempt(sent.elapsed());
                permit.served();
            }
            Ok(_) => permit.served(),
        }
        CallOutcome::Ended(result)
    }

    fn record_result(&self, result: &Result<Event, StoreError>, route: &MoveRoute, sent: Instant) {
        match result {
            Ok(Event::Copied(_)) => {
                let took = sent.elapsed().as_secs_f64();
                self.context.counters.copies.observe(took);
                self.outages.record_copy(route, sent);
            }
            Ok(_) => {}
            Err(error) => {
                let code = error.code();
                tracing::info!(target: trace::TARGET, { "error.type" = code }, "attempt failed");
            }
        }
    }

    async fn call_store(&self, call: StoreCall, route: &MoveRoute) -> Result<Event, StoreError> {
        match call {
            StoreCall::Copy => self.store.copy(route).await.map(Event::Copied),
            StoreCall::Compare => self.store.compare_objects(route).await.map(Event::Compared),
        }
    }
}

impl ObjectAttempts {
    fn count_failure(&mut self, error: &StoreError) {
        match error {
            StoreError::Throttled { .. } => self.throttled += 1,
            _ => self.failures += 1,
        }
    }

    /// A refusal is for good: another delivery would be refused as well. What else fails may pass: a later
    /// delivery tries again, until the redrive policy takes the message.
    fn give_up_cause(&self, error: &StoreError) -> Option<FailureCause> {
        let is_refusal = is_refusal(error);
        let max_failures = if is_refusal {
            MAX_REFUSALS
        } else {
            MAX_FAILURES
        };
        let is_exhausted = self.failures > 0 && self.streak.is_exhausted();
        if self.failures < max_failures && self.throttled < MAX_THROTTLED && !is_exhausted {
            return None;
        }
        let message = format!("{error} (after {} tries)", self.made + 1);
        Some(FailureCause::new(error.code(), message, is_refusal))
    }

    fn next_delay(&mut self, error: &StoreError) -> Duration {
        self.made += 1;
        let backoff = match error {
            StoreError::Throttled { .. } => THROTTLED_BACKOFF,
            _ => RETRY_BACKOFF,
        };
        backoff.jittered_delay(self.made, fastrand::f64())
    }
}

fn is_refusal(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Denied { .. } | StoreError::Suspect { .. }
    )
}
