//! Leases: a message in hand is hidden from other consumers for a time, and that time is renewed
//! for as long as the work takes. A lost lease is never acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucket_brigade_common::health::Health;
use bucket_brigade_common::queue::{EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::failing_call::{CallFailure, FAILING_INTERVAL, FailingCall};

/// Thousands may be parked.
const CONCURRENT_RENEWALS: usize = 32;

const RENEWAL: &str = "renewing leases";

#[derive(Debug)]
pub struct HeldLease {
    pub receipt_handle: String,
    /// Whether all that is left is the delete, which the queue has not confirmed.
    is_finished: bool,
    /// Whether a request that renews it is under way.
    is_renewing: bool,
    expires_at: Instant,
    /// The same by the wall's clock: the other stands still while a machine is suspended.
    expires_on: SystemTime,
}

impl HeldLease {
    fn is_held(&self) -> bool {
        self.expires_at > Instant::now() && self.expires_on > SystemTime::now()
    }
}

const RENEWAL_CHECK_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct HeldLeases {
    last_number: u64,
    by_number: BTreeMap<u64, HeldLease>,
}

#[derive(Debug)]
struct LeaseTable {
    visibility_timeout: Duration,
    held: Mutex<HeldLeases>,
    renewals: FailingCall,
    /// Requests that renew leases have ended.
    renewed: Notify,
}

/// A request that renews these leases. A message must not be hidden again after its release, which waits for its end.
struct RenewalRequest<'a> {
    table: &'a LeaseTable,
    due: Vec<(u64, String)>,
}

impl<'a> RenewalRequest<'a> {
    /// Of those that are in hand still.
    fn begin(table: &'a LeaseTable, batch: &[(u64, String)]) -> Self {
        let mut held = table.held.lock();
        let mut due = batch.to_vec();
        due.retain(|(number, _)| {
            let lease = held.by_number.get_mut(number);
            lease.map(|lease| lease.is_renewing = true).is_some()
        });
        drop(held);
        Self { table, due }
    }
}

impl Drop for RenewalRequest<'_> {
    fn drop(&mut self) {
        let mut held = self.table.held.lock();
        for (number, _) in &self.due {
            if let Some(lease) = held.by_number.get_mut(number) {
                lease.is_renewing = false;
            }
        }
        drop(held);
        self.table.renewed.notify_waiters();
    }
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
    pub fn new(visibility: Duration, health: &Health) -> Self {
        Self(Arc::new(LeaseTable {
            visibility_timeout: visibility,
            held: Mutex::new(HeldLeases {
                last_number: 0,
                by_number: BTreeMap::new(),
            }),
            renewals: FailingCall::new(RENEWAL, health, visibility),
            renewed: Notify::new(),
        }))
    }

    /// Takes a message that has just been received in hand.
    pub fn start_lease(&self, receipt_handle: String) -> Lease {
        let mut held = self.0.held.lock();
        held.last_number += 1;
        let number = held.last_number;
        let lease = HeldLease {
            receipt_handle,
            is_finished: false,
            is_renewing: false,
            expires_at: Instant::now() + self.0.visibility_timeout,
            expires_on: SystemTime::now() + self.0.visibility_timeout,
        };
        held.by_number.insert(number, lease);
        Lease {
            number,
            leases: self.clone(),
        }
    }

    pub fn visibility(&self) -> Duration {
        self.0.visibility_timeout
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
    pub async fn renew_forever(&self, queue: &dyn MessageQueue) {
        let regular = self.0.visibility_timeout / 6;
        loop {
            // What is received to see whether they work again may end soon.
            let wait = if self.0.renewals.is_failing() {
                regular.min(FAILING_INTERVAL)
            } else {
                regular
            };
            sleep(wait).await;
            let renewed = self.renew_due(queue).await;
            self.record_renewal(renewed);
        }
    }

    /// None where nothing was due; else whether the queue confirmed anything.
    async fn renew_due(&self, queue: &dyn MessageQueue) -> Option<Result<(), CallFailure>> {
        let due = self.due_leases();
        let confirmed: Mutex<Option<Result<(), CallFailure>>> = Mutex::default();
        let batches = due.chunks(MAX_BATCH_ENTRIES);
        stream::iter(batches)
            .for_each_concurrent(CONCURRENT_RENEWALS, async |batch| {
                let renewed = self.renew_batch(queue, batch).await;
                let mut confirmed = confirmed.lock();
                if !matches!(*confirmed, Some(Ok(()))) && renewed.is_some() {
                    *confirmed = renewed;
                }
            })
            .await;
        confirmed.into_inner()
    }

    fn record_renewal(&self, renewed: Option<Result<(), CallFailure>>) {
        match renewed {
            Some(Ok(())) => self.0.renewals.record_success(),
            Some(Err(failure)) => self.0.renewals.record_failure(&failure),
            // What is done in time needs no renewal.
            None => self.0.renewals.record_idle(),
        }
    }

    /// While leases cannot be renewed little is taken at a time. Those that ran out may be kept long: their run is
    /// paused, say.
    pub async fn wait_while_failing(&self) {
        let holds_any = || self.count(HeldLease::is_held) > 0;
        self.0.renewals.wait_while_failing(holds_any).await;
    }

    /// Messages that are finished and in hand still.
    pub fn finished_count(&self) -> usize {
        self.count(|lease| lease.is_finished && lease.is_held())
    }

    fn count(&self, is_counted: impl Fn(&HeldLease) -> bool) -> usize {
        let held = self.0.held.lock();
        let leases = held.by_number.values();
        leases.filter(|lease| is_counted(lease)).count()
    }

    /// Leases past half their time; all, to see whether renewals work again. Those past all of it are lost, and stay so.
    fn due_leases(&self) -> Vec<(u64, String)> {
        let parts = if self.0.renewals.is_failing() { 1 } else { 2 };
        let soon = Instant::now() + self.0.visibility_timeout / parts;
        let held = self.0.held.lock();
        let due = held
            .by_number
            .iter()
            .filter(|(_, lease)| lease.is_held() && lease.expires_at <= soon);
        due.map(|(number, lease)| (*number, lease.receipt_handle.clone()))
            .collect()
    }

    /// None where nothing of it is in hand any more.
    async fn renew_batch(
        &self,
        queue: &dyn MessageQueue,
        batch: &[(u64, String)],
    ) -> Option<Result<(), CallFailure>> {
        let request = RenewalRequest::begin(&self.0, batch);
        if request.due.is_empty() {
            return None;
        }
        Some(self.renew_requested(queue, request).await)
    }

    /// An error where the queue confirms none of them, nor refuses one.
    async fn renew_requested(
        &self,
        queue: &dyn MessageQueue,
        request: RenewalRequest<'_>,
    ) -> Result<(), CallFailure> {
        // The new time counts from when the queue takes the call, which is not before now.
        let (time, wall_time) = (Instant::now(), SystemTime::now());
        let change = |(_, handle): &(u64, String)| (handle.clone(), self.0.visibility_timeout);
        let changes: Vec<_> = request.due.iter().map(change).collect();
        let limit = self.0.visibility_timeout / 6;
        let entries = match timeout(limit, queue.change_visibility(&changes)).await {
            Ok(Ok(entries)) => entries,
            // Of the whole queue, which the receives tell of.
            Ok(Err(error)) if error.is_about_missing_queue() => return Ok(()),
            Ok(Err(error)) => return Err(CallFailure::since(time, &error)),
            Err(_) => {
                return Err(CallFailure {
                    reason: format!("no response within {limit:?}"),
                    is_answered: false,
                });
            }
        };
        let is_answered = |entry: &EntryOutcome| !matches!(entry, EntryOutcome::Retry(_));
        let answered = entries.iter().any(is_answered);
        let mut held = self.0.held.lock();
        for ((number, _), entry) in request.due.iter().zip(entries) {
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
                // It was deleted, and the answer to that was lost.
                EntryOutcome::Refused(_) if lease.is_finished => lease.expires_at = Instant::now(),
                EntryOutcome::Refused(reason) => {
                    lease.expires_at = Instant::now();
                    tracing::warn!(
                        reason,
                        "a lease was lost: its message is left to the consumer that has it now"
                    );
                }
            }
        }
        drop(held);
        let unconfirmed = || CallFailure {
            reason: "the queue confirms none".into(),
            is_answered: true,
        };
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
    pub async fn suspend(&self) -> Option<HeldLease> {
        let table = &self.leases.0;
        loop {
            let renewed = table.renewed.notified();
            {
                let held = &mut table.held.lock().by_number;
                if !held.get(&self.number)?.is_renewing {
                    let lease = held.remove(&self.number);
                    return lease.filter(HeldLease::is_held);
                }
            }
            renewed.await;
        }
    }

    /// Waits until at least half of its time is left, or it is lost.
    pub async fn wait_until_renewed(&self) {
        let table = &self.leases.0;
        let is_old = || {
            let soon = Instant::now() + table.visibility_timeout / 2;
            let held = table.held.lock();
            let lease = held.by_number.get(&self.number);
            lease.is_some_and(|lease| lease.is_held() && lease.expires_at < soon)
        };
        while is_old() {
            sleep(RENEWAL_CHECK_INTERVAL).await;
        }
    }

    /// Goes on with the renewals: the message is finished, and was not deleted.
    pub fn resume(&self, held: HeldLease) {
        let finished = HeldLease {
            is_finished: true,
            ..held
        };
        let mut held = self.leases.0.held.lock();
        held.by_number.insert(self.number, finished);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.0.held.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use bucket_brigade_common::health::Dependency;
    use bucket_brigade_common::ledger::fleet_control::WorkerRole;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn renewals_that_fail_are_an_outage_until_one_is_confirmed_or_none_is_due() {
        let visibility = Duration::from_secs(30);
        let health = Health::new(WorkerRole::Consumer);
        let leases = Leases::new(visibility, &health);
        let lease = leases.start_lease("a".into());
        let fail = || {
            leases.record_renewal(Some(Err(CallFailure {
                reason: "no response".into(),
                is_answered: true,
            })));
        };
        fail();
        assert!(health.outage().is_none() && leases.due_leases().is_empty());
        fail();
        let outage = health.outage().unwrap_or_default();
        assert!(outage.contains("renewing leases: no response"), "{outage}");
        // Receives that succeed say nothing of it.
        health.mark_up(Dependency::Queue);
        leases.record_renewal(None);
        assert!(health.outage().is_some() && leases.due_leases().len() == 1);
        let waiting = timeout(Duration::from_secs(1), leases.wait_while_failing());
        assert!(waiting.await.is_err());
        leases.record_renewal(Some(Ok(())));
        assert!(health.outage().is_none() && leases.due_leases().is_empty());
        fail();
        fail();
        drop(lease);
        tokio::time::advance(visibility * 2).await;
        leases.record_renewal(None);
        assert!(health.outage().is_some());
        // What is received then ends before its lease does.
        for _ in 0..3 {
            leases.wait_while_failing().await;
        }
        tokio::time::advance(visibility).await;
        leases.record_renewal(None);
        assert!(health.outage().is_none());
    }

    /// Its silence is over when something can be received.
    #[tokio::test(start_paused = true)]
    async fn after_silence_more_is_received_soon() {
        let visibility = Duration::from_mins(2);
        let leases = Leases::new(visibility, &Health::new(WorkerRole::Consumer));
        let silence = || CallFailure {
            reason: "no response".into(),
            is_answered: false,
        };
        for _ in 0..5 {
            leases.record_renewal(Some(Err(silence())));
        }
        let began = Instant::now();
        leases.wait_while_failing().await;
        assert!(began.elapsed() < Duration::from_secs(3));
        // Each time later, but not as if each receive cost something.
        for _ in 0..10 {
            leases.wait_while_failing().await;
        }
        assert!(began.elapsed() < Duration::from_mins(3));
    }

    /// The queue may take the renewal, though another consumer has had the message meanwhile.
    #[tokio::test(start_paused = true)]
    async fn a_lease_that_ran_out_while_the_machine_was_suspended_stays_lost() {
        let health = Health::new(WorkerRole::Consumer);
        let leases = Leases::new(Duration::from_secs(30), &health);
        let lease = leases.start_lease("a".into());
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!(leases.due_leases().len(), 1);
        for held in leases.0.held.lock().by_number.values_mut() {
            held.expires_on = SystemTime::now() - Duration::from_secs(1);
        }
        assert!(!lease.watch().is_held());
        assert!(leases.due_leases().is_empty());
        assert!(lease.suspend().await.is_none());
    }
}
