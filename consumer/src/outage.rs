//! Outage or broken object?
//!
//! A failure counts against its object when another object has been copied since: the copy was sent after
//! the failure, so the store works. Where nothing else is copied, an object that is known to exist, and that
//! needs the same rights and the same condition, is copied once: the newest success of this process; where it has
//! had none, that of a row that moved before or is the table's last, or, where many fail, others that are in hand;
//! or an object of the consumer's own. When that fails too it is an outage: nothing is held against any object,
//! receiving stops, and the same question is asked again until the store works.

mod history;
mod reason;

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::ledger::move_ledger::MoveLedger;
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::{ObjectStore, StoreError};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_common::retry::Backoff;
use bucket_brigade_common::throttle::CopySubject;
use parking_lot::Mutex;
use tokio::sync::{Mutex as FairMutex, Notify};
use tokio::time::{Instant, sleep, timeout};

use crate::context::ConsumerContext;
use history::{CopyHistory, FAILING_OBJECTS, SILENCE, THROTTLED_OUTAGE};
use reason::{CHECK_NETWORK, outage_reason};

/// So long the others in hand may take to show it.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// From so many failures of one object on, each without a copy in between is worth a question too.
const FAILURES_OF_ONE_OBJECT: u32 = 2;

/// After so long an object's failures are worth one whatever their number, and no further attempt.
const MAX_ATTEMPTS_TIME: Duration = Duration::from_mins(1);

/// A throttled object waits longer: the throttle may not have found its rate yet.
const THROTTLED_OF_ONE_OBJECT: u32 = 4;

/// A copy of few bytes, and what goes with it, takes at most so long.
const SMALL_COPY_LIMIT: Duration = Duration::from_secs(30);

/// Waits between probes of a store that is down.
const PROBE_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(500),
    max_delay: Duration::from_secs(30),
};

/// What one object's failures say so far.
#[derive(Debug, Default)]
pub struct FailureStreak {
    began: Option<Instant>,
    failed_at: Option<Instant>,
    failures: u32,
    attempts_time: Duration,
}

impl FailureStreak {
    /// An attempt that failed took so long.
    pub fn add_attempt(&mut self, took: Duration) {
        self.attempts_time += took;
    }

    pub fn is_exhausted(&self) -> bool {
        self.attempts_time >= MAX_ATTEMPTS_TIME
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureVerdict {
    /// Not decided yet.
    Unknown,
    Object,
    Outage,
}

/// Distinguishes outages from broken objects, for the copies of one process.
pub struct OutageDetector {
    store: Arc<dyn ObjectStore>,
    rule: PathRule,
    /// It names objects that this process has not copied.
    pub(crate) ledger: Option<Arc<dyn MoveLedger>>,
    context: ConsumerContext,
    history: Mutex<CopyHistory>,
    /// One question at a time: a thousand requests a second heal nothing.
    asking: FairMutex<()>,
    /// Ends the requests that have met it.
    silence: Notify,
}

impl OutageDetector {
    pub fn new(store: Arc<dyn ObjectStore>, rule: &PathRule, context: &ConsumerContext) -> Self {
        Self {
            store,
            rule: rule.clone(),
            ledger: None,
            context: context.clone(),
            history: Mutex::default(),
            asking: FairMutex::default(),
            silence: Notify::new(),
        }
    }

    /// The store's response to a request, unless it turns out to be silent meanwhile.
    pub async fn watch<T>(
        &self,
        route: &MoveRoute,
        response: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let waiting = self.start_waiting(route);
        tokio::select! {
            biased;
            response = response => {
                let mut history = waiting.0.history.lock();
                if response.as_ref().err().is_none_or(StoreError::is_response) {
                    history.last_response = Some(Instant::now());
                }
                // It is gone: it shows nothing of the others.
                if let Err(StoreError::Permanent { .. }) = &response {
                    history.untried.retain(|key| *key != route.source_key);
                }
                drop(history);
                response
            }
            () = self.silence.notified() => Err(StoreError::transient("Timeout", "the store is silent")),
        }
    }

    /// For a request that a silent store does not end.
    pub fn start_waiting(&self, route: &MoveRoute) -> WaitingRequest<'_> {
        let mut history = self.history.lock();
        if history.waiting == 0 {
            history.waiting_since = Some(Instant::now());
        }
        history.waiting += 1;
        history.add_untried(&route.source_key);
        WaitingRequest(self)
    }

    /// For a copy that waits for the end of an outage.
    pub fn offer_source(&self, route: &MoveRoute) {
        self.history.lock().add_untried(&route.source_key);
    }

    /// A copy that was sent at `sent` succeeded.
    pub fn record_copy(&self, route: &MoveRoute, sent: Instant) {
        let mut history = self.history.lock();
        history.record_success(sent, true);
        history.last_copied = Some(route.source_key.clone());
        history.untried.clear();
    }

    /// What a failure that has just been met is about. Asks the store only when it must.
    pub async fn classify_failure(
        &self,
        route: &MoveRoute,
        error: &StoreError,
        streak: &mut FailureStreak,
    ) -> FailureVerdict {
        // What failed in an outage says nothing of the object.
        if !self.context.health.is_up(Dependency::Objects) {
            *streak = FailureStreak::default();
            return FailureVerdict::Outage;
        }
        let now = Instant::now();
        let previous = streak.failed_at.replace(now);
        streak.began.get_or_insert(now);
        streak.failures += 1;
        let verdict = if previous.is_some_and(|previous| self.has_copied_since(previous)) {
            FailureVerdict::Object
        } else if self.is_only_throttled(error) {
            self.mark_down(error)
        } else if self.is_worth_asking(route, error, streak) {
            self.wait_for_others(streak).await;
            // Boxed, so that it makes no room in the future of each copy.
            Box::pin(self.check_store(error, now)).await
        } else {
            FailureVerdict::Unknown
        };
        if verdict == FailureVerdict::Outage {
            *streak = FailureStreak::default();
        }
        verdict
    }

    fn has_copied_since(&self, time: Instant) -> bool {
        let history = self.history.lock();
        !history.suspects_source() && history.last_sent.is_some_and(|sent| sent >= time)
    }

    fn is_worth_asking(
        &self,
        route: &MoveRoute,
        error: &StoreError,
        streak: &FailureStreak,
    ) -> bool {
        match error {
            StoreError::Throttled { .. } => return streak.failures >= THROTTLED_OF_ONE_OBJECT,
            StoreError::Systemic { .. } => return true,
            _ => {}
        }
        let mut history = self.history.lock();
        history.failing.insert(route.source_key.clone());
        if history.suspects_source() {
            return true;
        }
        streak.failures >= FAILURES_OF_ONE_OBJECT
            || history.failing.len() >= FAILING_OBJECTS
            || streak.is_exhausted()
    }

    /// Before anything was copied, as long as the others in hand may take to fail, too.
    async fn wait_for_others(&self, streak: &FailureStreak) {
        let is_known = self.history.lock().is_source_proven;
        let waited = streak.began.map(|began| began.elapsed());
        if let (false, Some(waited)) = (is_known, waited) {
            sleep(FIRST_PATIENCE.saturating_sub(waited)).await;
        }
    }

    async fn check_store(&self, met: &StoreError, failed_at: Instant) -> FailureVerdict {
        let _asking = self.asking.lock().await;
        // The question may have been answered while this failure waited for its turn.
        if self.has_copied_since(failed_at) {
            return FailureVerdict::Object;
        }
        if !self.context.health.is_up(Dependency::Objects) {
            return FailureVerdict::Outage;
        }
        match self.ask_store(Duration::MAX).await {
            Ok(()) => FailureVerdict::Object,
            Err(StoreError::Throttled { .. }) => FailureVerdict::Unknown,
            // A refused HEAD has no body, and so hides what the copy said of the credentials.
            Err(StoreError::Denied { .. }) if matches!(met, StoreError::Systemic { .. }) => {
                self.mark_down(met)
            }
            Err(error) => self.mark_down(&error),
        }
    }

    fn mark_down(&self, error: &StoreError) -> FailureVerdict {
        let reason = outage_reason(error);
        self.context.health.mark_down(Dependency::Objects, &reason);
        FailureVerdict::Outage
    }

    /// Whether for long no copy has been anything but throttled. To ask would take a turn of its own.
    fn is_only_throttled(&self, error: &StoreError) -> bool {
        if !matches!(error, StoreError::Throttled { .. }) {
            return false;
        }
        self.history.lock().refusals.record() >= THROTTLED_OUTAGE
    }

    async fn ask_store(&self, limit: Duration) -> Result<(), StoreError> {
        let mut sources = self.known_sources().await;
        let prefix = self.rule.destination_key_prefix();
        let subject = CopySubject::Probe;
        let (permit, _slot) = self.context.start_copy(prefix, subject).await;
        let sent = Instant::now();
        {
            let mut history = self.history.lock();
            // What fails by itself shows nothing.
            sources.retain(|key| !history.failing.contains(key));
            sources.extend(history.sample_copies());
        }
        let checked = self.check_rights_within(limit, sources).await;
        let checked = checked.unwrap_or_else(|| {
            let message = format!("a copy has not ended within {limit:?}");
            Err(StoreError::transient("Timeout", message))
        });
        if let Err(StoreError::Throttled { .. }) = checked {
            self.context.counters.throttled.inc();
            permit.throttled();
        } else {
            permit.served();
        }
        let is_of_source = checked?;
        self.history.lock().record_success(sent, is_of_source);
        Ok(())
    }

    /// Source keys of objects that the ledger and the table name, while this process has copied none.
    async fn known_sources(&self) -> Vec<String> {
        let has_copied = self.history.lock().last_copied.is_some();
        let Some(ledger) = self.ledger.as_ref().filter(|_| !has_copied) else {
            return Vec::new();
        };
        let paths = ledger.list_sample_paths().await.unwrap_or_default();
        let routes = paths
            .iter()
            .filter_map(|path| self.rule.route_for(path).ok());
        routes.map(|route| route.source_key).collect()
    }

    /// Asks again and again while the store is down. All copies wait for the end of the outage, so that no
    /// object has to be the first.
    pub async fn probe_while_down(&self) {
        loop {
            tokio::select! {
                () = self.context.health.wait_until_down(Dependency::Objects) => {}
                () = self.notice_silence() => {}
            }
            self.wait_until_store_works().await;
            self.context.health.mark_up(Dependency::Objects);
        }
    }

    /// Returns when the store is down.
    async fn notice_silence(&self) {
        loop {
            sleep(SILENCE / 4).await;
            let (last_response, sources) = {
                let mut history = self.history.lock();
                if !history.is_silent() {
                    continue;
                }
                (history.last_response, history.sample_sources())
            };
            let silent = self.find_silence(sources).await;
            let mut history = self.history.lock();
            let silent = silent.filter(|_| history.last_response == last_response);
            let Some((what, side)) = silent else {
                history.last_response = Some(Instant::now());
                continue;
            };
            history.was_silent = true;
            let silence = history
                .waiting_since
                .max(last_response)
                .map(|at| at.elapsed());
            drop(history);
            let seconds = silence.unwrap_or(SILENCE).as_secs();
            let store = self.store.store_name(side);
            let from = store.map_or_else(String::new, |store| format!(" from the {store}"));
            let reason = format!("no response to {what} for {seconds}s{from}; {CHECK_NETWORK}");
            self.context.health.mark_down(Dependency::Objects, &reason);
            return self.silence.notify_waiters();
        }
    }

    /// What has no response, and on which side: anything, a copy of few bytes, or bytes of the source. Beside the
    /// throttle: copies that are large or slow may be all that there is.
    async fn find_silence(&self, sources: Vec<String>) -> Option<(&'static str, BucketSide)> {
        if let Some(side) = self.store.silent_side().await {
            return Some(("anything", side));
        }
        let (read, copied) = tokio::join!(
            self.store.check_source(&sources),
            self.check_rights_within(SMALL_COPY_LIMIT, sources.clone())
        );
        if read.is_err() {
            return Some(("reads of objects", BucketSide::Source));
        }
        copied
            .is_none()
            .then_some(("copies", BucketSide::Destination))
    }

    /// None where it takes longer. It goes on all the same, and removes what it wrote.
    async fn check_rights_within(
        &self,
        limit: Duration,
        sources: Vec<String>,
    ) -> Option<Result<bool, StoreError>> {
        let (store, rule) = (Arc::clone(&self.store), self.rule.clone());
        let check = async move {
            store.check_source(&sources).await?;
            store.check_rights(&rule, &sources).await
        };
        timeout(limit, tokio::spawn(check)).await.ok()?.ok()
    }

    async fn wait_until_store_works(&self) {
        for tries in 1.. {
            sleep(PROBE_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
            let _asking = self.asking.lock().await;
            if self.store.silent_side().await.is_some() {
                continue;
            }
            // What was sent into an outage may never end; the newest success may be a large object.
            match self.ask_store(SMALL_COPY_LIMIT * tries).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%error, tries, "S3 cannot be used yet"),
            }
        }
    }
}

/// Counted until it has its response, or is given up.
#[must_use = "it is counted until it is dropped"]
pub struct WaitingRequest<'a>(&'a OutageDetector);

impl Drop for WaitingRequest<'_> {
    fn drop(&mut self) {
        self.0.history.lock().waiting -= 1;
    }
}
