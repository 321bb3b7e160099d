//! Leases: a message in hand is hidden from other consumers for a time, and that time is renewed
//! for as long as the work takes. A lost lease is never acknowledged.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket_brigade_common::queue::{BATCH, Entry, Queue};
use futures::future::join_all;
use tokio::time::{Instant, interval, timeout};

#[derive(Debug)]
struct Held {
    receipt_handle: String,
    expires: Instant,
}

#[derive(Debug)]
struct Shared {
    visibility: Duration,
    held: Mutex<(u64, BTreeMap<u64, Held>)>,
    // Held during a renewal's requests: a message must not be hidden again after its release.
    renewing: tokio::sync::Mutex<()>,
}

/// All leases of this process.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Shared>);

/// One message in hand. Dropping it ends the renewals; the message then reappears by itself.
#[derive(Debug)]
pub struct Lease {
    number: u64,
    receipt_handle: String,
    leases: Leases,
}

impl Leases {
    /// Leases of the given visibility timeout.
    pub fn new(visibility: Duration) -> Self {
        Self(Arc::new(Shared {
            visibility,
            held: Mutex::default(),
            renewing: tokio::sync::Mutex::default(),
        }))
    }

    /// Takes a message that has just been received in hand.
    pub fn hold(&self, receipt_handle: String) -> Lease {
        let mut held = self.lock();
        held.0 += 1;
        let number = held.0;
        let lease = Held {
            receipt_handle: receipt_handle.clone(),
            expires: Instant::now() + self.0.visibility,
        };
        held.1.insert(number, lease);
        Lease {
            number,
            receipt_handle,
            leases: self.clone(),
        }
    }

    /// How many messages are in hand.
    pub fn count(&self) -> usize {
        self.lock().1.len()
    }

    /// Renews leases for as long as the future is polled. Six looks in a visibility timeout leave room
    /// for two failed renewals.
    pub async fn renew_forever(&self, queue: &dyn Queue) {
        let mut ticks = interval(self.0.visibility / 6);
        loop {
            ticks.tick().await;
            self.renew_due(queue).await;
        }
    }

    async fn renew_due(&self, queue: &dyn Queue) {
        let _renewing = self.0.renewing.lock().await;
        let due = self.due();
        let batches = due.chunks(BATCH).map(|batch| self.renew(queue, batch));
        join_all(batches).await;
    }

    /// Leases past half their time. Those past all of it are lost, and stay so.
    fn due(&self) -> Vec<(u64, String)> {
        let now = Instant::now();
        let soon = now + self.0.visibility / 2;
        let held = self.lock();
        let due = held
            .1
            .iter()
            .filter(|(_, lease)| lease.expires > now && lease.expires <= soon);
        due.map(|(number, lease)| (*number, lease.receipt_handle.clone()))
            .collect()
    }

    async fn renew(&self, queue: &dyn Queue, batch: &[(u64, String)]) {
        // The new time counts from when the queue takes the call, which is not before now.
        let expires = Instant::now() + self.0.visibility;
        let change = |(_, handle): &(u64, String)| (handle.clone(), self.0.visibility);
        let changes: Vec<_> = batch.iter().map(change).collect();
        let patience = self.0.visibility / 4;
        let entries = match timeout(patience, queue.change_visibility(&changes)).await {
            Ok(Ok(entries)) => entries,
            Ok(Err(error)) => {
                return tracing::debug!(%error, "leases were not renewed, trying again");
            }
            Err(_) => return tracing::debug!("leases were not renewed in time, trying again"),
        };
        let mut held = self.lock();
        for ((number, _), entry) in batch.iter().zip(entries) {
            let Some(lease) = held.1.get_mut(number) else {
                continue;
            };
            match entry {
                Entry::Done => lease.expires = expires,
                Entry::Retry(_) => {}
                Entry::Refused(reason) => {
                    lease.expires = Instant::now();
                    tracing::warn!(
                        reason,
                        "a lease was lost: its message is left to whoever has it now"
                    );
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Held>)> {
        // Nothing that can panic runs under this lock.
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Stops the renewals, waits for one that is under way, and hands out the receipt handle, unless
    /// the lease was lost: then the message is somebody else's.
    pub async fn end(self) -> Option<String> {
        let held = self.leases.lock().1.remove(&self.number)?;
        drop(self.leases.0.renewing.lock().await);
        (held.expires > Instant::now()).then(|| self.receipt_handle.clone())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.lock().1.remove(&self.number);
    }
}
