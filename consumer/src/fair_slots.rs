//! What a process has only so many of, copies in flight and statements under way, shared by the runs that have work.
//!
//! A free slot goes to the run that has the fewest of those that wait: one run alone has all, several have equal
//! parts. A run of which nothing ends may keep its part, and what it has beyond is recalled when another has less
//! than its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as FairMutex, Notify};
use tokio::time::{Instant, timeout};

/// Longer than all but few copies and statements take.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// What waits looks again: whether a run has stalled is a matter of time.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub struct FairSlots(Arc<Mutex<SlotTable>>);

#[derive(Debug)]
struct SlotTable {
    max: usize,
    taken: usize,
    last_number: u64,
    shares: BTreeMap<u64, ShareState>,
}

#[derive(Debug)]
struct ShareState {
    taken: usize,
    /// Its turn, while it waits.
    waiting: Option<u64>,
    /// When one ended last, or the first one began.
    moved_on_at: Instant,
    signals: Arc<Signals>,
}

#[derive(Debug, Default)]
struct Signals {
    freed: Notify,
    recall: Notify,
}

/// One run's share.
#[derive(Debug)]
pub struct SlotShare {
    slots: FairSlots,
    number: u64,
    /// One waits for the next slot, the others for their turn.
    front: FairMutex<()>,
    signals: Arc<Signals>,
}

/// Free again when it is dropped.
#[derive(Debug)]
pub struct Slot<'a> {
    share: &'a SlotShare,
    is_recalled: bool,
}

/// Ends the waiting of a share, however it ends.
struct WaitingForSlot<'a>(&'a SlotShare);

impl FairSlots {
    pub fn new(max: usize) -> Self {
        Self(Arc::new(Mutex::new(SlotTable {
            max,
            taken: 0,
            last_number: 0,
            shares: BTreeMap::new(),
        })))
    }

    /// For another run.
    pub fn share(&self) -> Arc<SlotShare> {
        let signals = Arc::<Signals>::default();
        let mut table = self.0.lock();
        let number = table.next_number();
        let state = ShareState {
            taken: 0,
            waiting: None,
            moved_on_at: Instant::now(),
            signals: Arc::clone(&signals),
        };
        table.shares.insert(number, state);
        Arc::new(SlotShare {
            slots: self.clone(),
            number,
            front: FairMutex::default(),
            signals,
        })
    }
}

impl SlotShare {
    pub async fn acquire(&self) -> Slot<'_> {
        let _front = self.front.lock().await;
        if !self.try_take() {
            let _waiting = WaitingForSlot(self);
            loop {
                drop(timeout(RECHECK_INTERVAL, self.signals.freed.notified()).await);
                if self.try_take() {
                    break;
                }
            }
        }
        Slot {
            share: self,
            is_recalled: false,
        }
    }

    fn try_take(&self) -> bool {
        self.slots.0.lock().try_take(self.number)
    }

    fn is_recall_valid(&self) -> bool {
        self.slots.0.lock().is_recall_valid(self.number)
    }
}

impl Slot<'_> {
    /// Waits until another run needs it: what it was taken for is to be given up, and done again later.
    pub async fn recalled(&mut self) {
        loop {
            self.share.signals.recall.notified().await;
            // A recall that nothing awaited is kept, and the run may have moved on since.
            if self.share.is_recall_valid() {
                self.is_recalled = true;
                return;
            }
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let mut table = self.share.slots.0.lock();
        table.release(self.share.number, self.is_recalled);
    }
}

impl Drop for WaitingForSlot<'_> {
    fn drop(&mut self) {
        let mut table = self.0.slots.0.lock();
        if let Some(state) = table.shares.get_mut(&self.0.number) {
            state.waiting = None;
        }
        table.wake_next();
    }
}

impl Drop for SlotShare {
    fn drop(&mut self) {
        self.slots.0.lock().shares.remove(&self.number);
    }
}

impl SlotTable {
    fn next_number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn try_take(&mut self, number: u64) -> bool {
        let turn = self.next_number();
        if let Some(state) = self.shares.get_mut(&number) {
            state.waiting.get_or_insert(turn);
        }
        if self.next_waiting() != Some(number) {
            self.recall_for(number);
            return false;
        }
        self.taken += 1;
        if let Some(state) = self.shares.get_mut(&number) {
            if state.taken == 0 {
                state.moved_on_at = Instant::now();
            }
            state.taken += 1;
            state.waiting = None;
        }
        self.wake_next();
        true
    }

    fn release(&mut self, number: u64, is_recalled: bool) {
        self.taken -= 1;
        if let Some(state) = self.shares.get_mut(&number) {
            state.taken -= 1;
            if !is_recalled {
                state.moved_on_at = Instant::now();
            }
        }
        self.wake_next();
    }

    fn wake_next(&self) {
        let next = self.next_waiting();
        if let Some(state) = next.and_then(|number| self.shares.get(&number)) {
            state.signals.freed.notify_one();
        }
    }

    /// The share that the next slot is for. There are as many shares as runs are served, a handful.
    fn next_waiting(&self) -> Option<u64> {
        if self.taken >= self.max {
            return None;
        }
        let part = self.part();
        let may_take = |state: &ShareState| state.taken < part || !state.is_stalled();
        let waiting = self.shares.iter();
        let waiting = waiting.filter(|(_, state)| state.waiting.is_some() && may_take(state));
        let next = waiting.min_by_key(|(_, state)| (state.taken, state.waiting));
        next.map(|(number, _)| *number)
    }

    /// What each run that has work is sure of.
    fn part(&self) -> usize {
        let has_work = |state: &&ShareState| state.taken > 0 || state.waiting.is_some();
        let runs = self.shares.values().filter(has_work).count();
        (self.max / runs.max(1)).max(1)
    }

    fn recall_for(&self, number: u64) {
        let part = self.part();
        let lacks_part = |state: &ShareState| state.lacks(part);
        if self.taken < self.max || !self.shares.get(&number).is_some_and(lacks_part) {
            return;
        }
        let stalled = self.shares.values();
        let stalled = stalled.filter(|state| state.is_beyond(part));
        if let Some(state) = stalled.max_by_key(|state| state.taken) {
            state.signals.recall.notify_one();
        }
    }

    /// Whether a recall of this share's slots still holds.
    fn is_recall_valid(&self, number: u64) -> bool {
        let part = self.part();
        self.taken >= self.max
            && self.shares.values().any(|state| state.lacks(part))
            && self
                .shares
                .get(&number)
                .is_some_and(|state| state.is_beyond(part))
    }
}

impl ShareState {
    /// Waits for a slot of its own part.
    fn lacks(&self, part: usize) -> bool {
        self.waiting.is_some() && self.taken < part
    }

    /// Has slots to give back.
    fn is_beyond(&self, part: usize) -> bool {
        self.taken > part && self.is_stalled()
    }

    fn is_stalled(&self) -> bool {
        self.taken > 0 && self.moved_on_at.elapsed() >= STALLED_AFTER
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;

    use futures::FutureExt;
    use futures::future::join_all;
    use tokio::time::sleep;

    fn takes_at_once(share: &SlotShare) -> Option<Slot<'_>> {
        share.acquire().now_or_never()
    }

    async fn take(share: &SlotShare, count: usize) -> Vec<Slot<'_>> {
        join_all((0..count).map(|_| share.acquire())).await
    }

    #[tokio::test(start_paused = true)]
    async fn one_run_alone_has_all_and_several_have_equal_parts() {
        let slots = FairSlots::new(6);
        let (one, other) = (slots.share(), slots.share());
        let mut ones = take(&one, 6).await;
        assert!(takes_at_once(&one).is_none() && takes_at_once(&other).is_none());
        let mut others = Vec::new();
        for _ in 0..3 {
            // Both wait for the slot that is free next.
            let (mut again, mut next) = (Box::pin(one.acquire()), Box::pin(other.acquire()));
            assert!((&mut again).now_or_never().is_none() && (&mut next).now_or_never().is_none());
            ones.pop();
            others.push(next.await);
            assert!(again.now_or_never().is_none());
        }
        assert_eq!((ones.len(), others.len()), (3, 3));
        drop(others);
        assert_eq!(take(&one, 3).await.len(), 3);
    }

    /// Takes a slot again and again, and ends nothing.
    async fn hang(share: &SlotShare) {
        loop {
            share.acquire().await.recalled().await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_run_of_which_nothing_ends_has_beyond_its_part_is_recalled() {
        let slots = FairSlots::new(4);
        let (hung, other) = (slots.share(), slots.share());
        let others = async {
            sleep(Duration::from_millis(1)).await;
            let began = Instant::now();
            let taken = take(&other, 2).await;
            assert!(began.elapsed() < Duration::from_secs(7));
            assert!(
                takes_at_once(&other).is_none(),
                "the hung run keeps its part"
            );
            drop(taken);
            sleep(Duration::from_mins(1)).await;
            let again = timeout(Duration::from_millis(1), take(&other, 2));
            assert!(again.await.is_ok(), "it is known to be stalled");
        };
        tokio::select! {
            _ = join_all((0..4).map(|_| hang(&hung))) => {}
            () = others => {}
        }
    }

    /// Long enough for a recall from a run of which nothing ends.
    async fn wait_in_vain(share: &SlotShare) -> Pin<Box<impl Future<Output = Slot<'_>>>> {
        let mut waiting = Box::pin(share.acquire());
        let waited = timeout(STALLED_AFTER + 2 * RECHECK_INTERVAL, &mut waiting);
        assert!(waited.await.is_err());
        waiting
    }

    /// Nothing awaits it while a large object is copied in parts.
    #[tokio::test(start_paused = true)]
    async fn a_recall_that_was_not_awaited_is_valid_for_as_long_as_it_is_needed() {
        let slots = FairSlots::new(4);
        let (run, other) = (slots.share(), slots.share());
        let mut held = take(&run, 4).await;
        let waiting = wait_in_vain(&other).await;
        assert!(held[0].recalled().now_or_never().is_some());
        drop(waiting);
        drop(wait_in_vain(&other).await);
        let recalled = held[0].recalled().now_or_never();
        assert!(recalled.is_none(), "nothing waits any more");
        let _waiting = wait_in_vain(&other).await;
        drop(held.pop());
        let recalled = held[0].recalled().now_or_never();
        assert!(recalled.is_none(), "a slot is free");
    }

    #[tokio::test(start_paused = true)]
    async fn more_runs_than_slots_take_turns_and_who_gives_up_keeps_none_from_its_turn() {
        let slots = FairSlots::new(1);
        let shares = [(); 3].map(|()| slots.share());
        let first = shares[0].acquire().await;
        let mut second = Box::pin(shares[1].acquire());
        let mut third = Box::pin(shares[2].acquire());
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(second);
        drop(first);
        let mut again = Box::pin(shares[0].acquire());
        assert!(
            (&mut again).now_or_never().is_none(),
            "the third has waited longer"
        );
        drop(third.await);
        drop(again.await);
    }
}
