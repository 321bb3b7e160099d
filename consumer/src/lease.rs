//! Leases: a message in hand is hidden from other consumers for a time, and that time is renewed
//! for as long as the work takes. A lost lease is never acknowledged.

use std::collections::BTreeMap;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::queue::{EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue};
use bucket_brigade_common::retry::Backoff;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

/// Thousands may be parked.
const CONCURRENT_RENEWALS: usize = 32;

/// Renewals that fail in a row before no more is received: leases of which so many failed are about to run out.
const TOLERATED_FAILURES: u32 = 1;

const RENEWAL: &str = "renewing leases";

/// How often leases are renewed while that fails.
const FAILING_INTERVAL: Duration = Duration::from_secs(1);

const PROBE_CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Where all leases were lost, ten messages in so long show whether renewals work again: each costs a receive.
const MAX_PROBE_INTERVAL: Duration = Duration::from_mins(2);

#[derive(Debug)]
struct HeldLease {
    receipt_handle: String,
    expires_at: Instant,
    /// The same by the wall's clock: the other stands still while a machine is suspended.
    expires_on: SystemTime,
}

impl HeldLease {
    fn is_held(&self) -> bool {
        self.expires_at > Instant::now() && self.expires_on > SystemTime::now()
    }
}

#[derive(Debug)]
struct HeldLeases {
    last_number: u64,
    by_number: BTreeMap<u64, HeldLease>,
}

/// Renewals in a row of which the queue confirmed nothing.
#[derive(Debug, Default)]
struct RenewalFailures {
    count: u32,
    failed_at: Option<Instant>,
    /// How often more was received meanwhile.
    probes: u32,
    probed_at: Option<Instant>,
    /// The first of these since the last failure.
    quiet_since: Option<Instant>,
}

#[derive(Debug)]
struct LeaseTable {
    visibility_timeout: Duration,
    held: Mutex<HeldLeases>,
    failures: Mutex<RenewalFailures>,
    // Held during a renewal's requests: a message must not be hidden again after its release.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Clone)]
pub struct Leases(Arc<LeaseTable>);

/// Whether a message is still in hand, for what works on it in a batch.
#[derive(Debug, Clone)]
pub struct LeaseWatch {
    number: u64,
    leases: Leases,
}

/// One message in hand. Dropping it ends the renewals; the message then reappears by itself.
#[derive(Debug)]
pub struct Lease {
    number: u64,
    leases: Leases,
}

impl Leases {
    pub fn new(visibility: Duration) -> Self {
        Self(Arc::new(LeaseTable {
            visibility_timeout: visibility,
            held: Mutex::new(HeldLeases {
                last_number: 0,
                by_number: BTreeMap::new(),
            }),
            failures: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
        }))
    }

    /// Takes a message that has just been received in hand.
    pub fn start_lease(&self, receipt_handle: String) -> Lease {
        let mut held = self.0.held.lock();
        held.last_number += 1;
        let number = held.last_number;
        let lease = HeldLease {
            receipt_handle,
            expires_at: Instant::now() + self.0.visibility_timeout,
            expires_on: SystemTime::now() + self.0.visibility_timeout,
        };
        held.by_number.insert(number, lease);
        Lease {
            number,
            leases: self.clone(),
        }
    }

    fn is_held(&self, number: u64) -> bool {
        let held = self.0.held.lock();
        held.by_number.get(&number).is_some_and(HeldLease::is_held)
    }

    pub fn held_count(&self) -> usize {
        self.0.held.lock().by_number.len()
    }

    /// Renews leases for as long as the future is polled. Six looks in a visibility timeout leave room
    /// for two failed renewals.
    pub async fn renew_forever(&self, queue: &dyn MessageQueue, health: &Health) {
        let regular = self.0.visibility_timeout / 6;
        loop {
            // What is received to see whether they work again may end soon.
            let wait = if self.is_failing() {
                regular.min(FAILING_INTERVAL)
            } else {
                regular
            };
            sleep(wait).await;
            let renewed = self.renew_due(queue).await;
            self.record_renewal(renewed, health);
        }
    }

    /// None where nothing was due; else whether the queue confirmed anything.
    async fn renew_due(&self, queue: &dyn MessageQueue) -> Option<Result<(), String>> {
        let _renewing = self.0.renewing.lock().await;
        let due = self.due_leases();
        let confirmed: Mutex<Option<Result<(), String>>> = Mutex::default();
        let batches = due.chunks(MAX_BATCH_ENTRIES);
        stream::iter(batches)
            .for_each_concurrent(CONCURRENT_RENEWALS, async |batch| {
                let renewed = self.renew_batch(queue, batch).await;
                let mut confirmed = confirmed.lock();
                *confirmed = confirmed.take().filter(Result::is_ok).or(Some(renewed));
            })
            .await;
        confirmed.into_inner()
    }

    /// What is not renewed comes back while it is worked on, and each time costs it a receive.
    fn record_renewal(&self, renewed: Option<Result<(), String>>, health: &Health) {
        let mut failures = self.0.failures.lock();
        let visibility = self.0.visibility_timeout;
        let quiet_since = match failures.count {
            0..=TOLERATED_FAILURES => failures.failed_at,
            _ => failures.quiet_since,
        };
        match renewed {
            Some(Err(reason)) => {
                failures.count += 1;
                failures.failed_at = Some(Instant::now());
                failures.quiet_since = None;
                if failures.count > TOLERATED_FAILURES {
                    health.mark_stuck(Dependency::Queue, RENEWAL, &format!("{RENEWAL}: {reason}"));
                }
            }
            // What is done in time needs no renewal.
            None if quiet_since.is_none_or(|at| at.elapsed() < visibility) => {}
            _ => {
                if mem::take(&mut *failures).count > TOLERATED_FAILURES {
                    health.record_success(Dependency::Queue, RENEWAL);
                }
            }
        }
    }

    fn is_failing(&self) -> bool {
        self.0.failures.lock().count > TOLERATED_FAILURES
    }

    /// While leases cannot be renewed little is taken at a time: what is in hand ends first.
    pub async fn wait_while_failing(&self) {
        while self.is_failing() && (self.holds_any() || !self.starts_probe()) {
            sleep(PROBE_CHECK_INTERVAL).await;
        }
    }

    /// Those that ran out may be kept long: their run is paused, say.
    fn holds_any(&self) -> bool {
        let held = self.0.held.lock();
        held.by_number.values().any(HeldLease::is_held)
    }

    fn starts_probe(&self) -> bool {
        let mut failures = self.0.failures.lock();
        let backoff = Backoff {
            initial_delay: self.0.visibility_timeout,
            max_delay: MAX_PROBE_INTERVAL,
        };
        let wait = backoff.delay_ceiling(failures.probes + 1);
        let last = failures.failed_at.max(failures.probed_at);
        let is_due = last.is_none_or(|at| at.elapsed() >= wait);
        if is_due {
            let now = Instant::now();
            failures.probes += 1;
            failures.probed_at = Some(now);
            failures.quiet_since.get_or_insert(now);
        }
        is_due
    }

    /// Leases past half their time; all, to see whether renewals work again. Those past all of it are lost, and stay so.
    fn due_leases(&self) -> Vec<(u64, String)> {
        let parts = if self.is_failing() { 1 } else { 2 };
        let soon = Instant::now() + self.0.visibility_timeout / parts;
        let held = self.0.held.lock();
        let due = held
            .by_number
            .iter()
            .filter(|(_, lease)| lease.is_held() && lease.expires_at <= soon);
        due.map(|(number, lease)| (*number, lease.receipt_handle.clone()))
            .collect()
    }

    /// An error where the queue confirms none of them, nor refuses one.
    async fn renew_batch(
        &self,
        queue: &dyn MessageQueue,
        batch: &[(u64, String)],
    ) -> Result<(), String> {
        // The new time counts from when the queue takes the call, which is not before now.
        let (time, wall_time) = (Instant::now(), SystemTime::now());
        let change = |(_, handle): &(u64, String)| (handle.clone(), self.0.visibility_timeout);
        let changes: Vec<_> = batch.iter().map(change).collect();
        let limit = self.0.visibility_timeout / 6;
        let entries = match timeout(limit, queue.change_visibility(&changes)).await {
            Ok(Ok(entries)) => entries,
            // Of the whole queue, which the receives tell of.
            Ok(Err(error)) if error.is_about_missing_queue() => return Ok(()),
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no response within {limit:?}")),
        };
        let is_answered = |entry: &EntryOutcome| !matches!(entry, EntryOutcome::Retry(_));
        let answered = entries.iter().any(is_answered);
        let mut held = self.0.held.lock();
        for ((number, _), entry) in batch.iter().zip(entries) {
            let Some(lease) = held.by_number.get_mut(number) else {
                continue;
            };
            match entry {
                // Lost ones stay lost.
                EntryOutcome::Done if !lease.is_held() => {}
                EntryOutcome::Done => {
                    lease.expires_at = time + self.0.visibility_timeout;
                    lease.expires_on = wall_time + self.0.visibility_timeout;
                }
                EntryOutcome::Retry(_) => {}
                EntryOutcome::Refused(reason) => {
                    lease.expires_at = Instant::now();
                    tracing::warn!(
                        reason,
                        "a lease was lost: its message is left to the consumer that has it now"
                    );
                }
            }
        }
        let unconfirmed = || "the queue confirms none".to_owned();
        answered.then_some(()).ok_or_else(unconfirmed)
    }
}

impl LeaseWatch {
    /// Whether the lease has not run out.
    pub fn is_held(&self) -> bool {
        self.leases.is_held(self.number)
    }
}

impl Lease {
    /// Whether it has not run out.
    pub fn is_held(&self) -> bool {
        self.leases.is_held(self.number)
    }

    pub fn watch(&self) -> LeaseWatch {
        LeaseWatch {
            number: self.number,
            leases: self.leases.clone(),
        }
    }

    /// Stops the renewals, waits for one that is under way, and hands out the receipt handle, unless
    /// the lease was lost: then another consumer has the message.
    pub async fn end(self) -> Option<String> {
        let held = self.leases.0.held.lock().by_number.remove(&self.number)?;
        drop(self.leases.0.renewing.lock().await);
        held.is_held().then_some(held.receipt_handle)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.0.held.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use bucket_brigade_common::ledger::fleet_control::WorkerRole;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn renewals_that_fail_are_an_outage_until_one_is_confirmed_or_none_is_due() {
        let visibility = Duration::from_secs(30);
        let (leases, health) = (Leases::new(visibility), Health::new(WorkerRole::Consumer));
        let lease = leases.start_lease("a".into());
        let fail = || leases.record_renewal(Some(Err("no response".into())), &health);
        fail();
        assert!(health.outage().is_none() && leases.due_leases().is_empty());
        fail();
        let outage = health.outage().unwrap_or_default();
        assert!(outage.contains("renewing leases: no response"), "{outage}");
        // Receives that succeed say nothing of it.
        health.mark_up(Dependency::Queue);
        leases.record_renewal(None, &health);
        assert!(health.outage().is_some() && leases.due_leases().len() == 1);
        let waiting = timeout(Duration::from_secs(1), leases.wait_while_failing());
        assert!(waiting.await.is_err());
        leases.record_renewal(Some(Ok(())), &health);
        assert!(health.outage().is_none() && leases.due_leases().is_empty());
        fail();
        fail();
        drop(lease);
        tokio::time::advance(visibility * 2).await;
        leases.record_renewal(None, &health);
        assert!(health.outage().is_some());
        // What is received then ends before its lease does.
        for _ in 0..3 {
            leases.wait_while_failing().await;
        }
        tokio::time::advance(visibility).await;
        leases.record_renewal(None, &health);
        assert!(health.outage().is_none());
    }

    /// The queue may take the renewal, though another consumer has had the message meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ran_out_while_the_machine_was_suspended_stays_lost() {
        let leases = Leases::new(Duration::from_secs(30));
        let lease = leases.start_lease("a".into());
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(leases.due_leases().len(), 1);
        for held in leases.0.held.lock().by_number.values_mut() {
            held.expires_on = SystemTime::now() - Duration::from_secs(1);
        }
        assert!(!lease.watch().is_held());
        assert!(leases.due_leases().is_empty());
        assert_eq!(lease.end().await, None);
    }
}
