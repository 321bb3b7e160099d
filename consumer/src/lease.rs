//! Leases: a message in hand is hidden from other consumers for a time, and that time is renewed
//! for as long as the work takes. A lost lease is never acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bucket_brigade_common::queue::{EntryOutcome, MAX_BATCH_ENTRIES, MessageQueue};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::{Instant, interval, timeout};

/// Thousands may be parked.
const CONCURRENT_RENEWALS: usize = 32;

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

#[derive(Debug)]
struct LeaseTable {
    visibility_timeout: Duration,
    held: Mutex<HeldLeases>,
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
    pub async fn renew_forever(&self, queue: &dyn MessageQueue) {
        let mut ticks = interval(self.0.visibility_timeout / 6);
        loop {
            ticks.tick().await;
            self.renew_due(queue).await;
        }
    }

    async fn renew_due(&self, queue: &dyn MessageQueue) {
        let _renewing = self.0.renewing.lock().await;
        let due = self.due_leases();
        let batches = due.chunks(MAX_BATCH_ENTRIES);
        stream::iter(batches)
            .for_each_concurrent(CONCURRENT_RENEWALS, |batch| self.renew_batch(queue, batch))
            .await;
    }

    /// Leases past half their time. Those past all of it are lost, and stay so.
    fn due_leases(&self) -> Vec<(u64, String)> {
        let soon = Instant::now() + self.0.visibility_timeout / 2;
        let held = self.0.held.lock();
        let due = held
            .by_number
            .iter()
            .filter(|(_, lease)| lease.is_held() && lease.expires_at <= soon);
        due.map(|(number, lease)| (*number, lease.receipt_handle.clone()))
            .collect()
    }

    async fn renew_batch(&self, queue: &dyn MessageQueue, batch: &[(u64, String)]) {
        // The new time counts from when the queue takes the call, which is not before now.
        let (time, wall_time) = (Instant::now(), SystemTime::now());
        let change = |(_, handle): &(u64, String)| (handle.clone(), self.0.visibility_timeout);
        let changes: Vec<_> = batch.iter().map(change).collect();
        let limit = self.0.visibility_timeout / 4;
        let entries = match timeout(limit, queue.change_visibility(&changes)).await {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) if error.is_denied() => {
                return tracing::warn!("leases are not renewed: {error}");
            }
            Ok(Err(error)) => {
                return tracing::debug!(%error, "leases were not renewed, trying again");
            }
            Err(_) => return tracing::debug!("leases were not renewed in time, trying again"),
        };
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
    use super::*;

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
