//! What is known of each run: its stages, its messages in hand and parked, and whether it has room for more.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::queue::MAX_BATCH_ENTRIES;
use bucket_brigade_common::retry::Backoff;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::LeasedMessage;
use super::allowance::Allowance;
use crate::handle::Stages;

/// A run that has its part in hand is waited for, unless nothing of it ends for so long.
const STALLED_AFTER: Duration = Duration::from_secs(5);

/// While some run waits, a run that had a message so lately is reason enough to receive.
const RECENT_USE: Duration = Duration::from_mins(1);

/// What others are to have goes back together after so long, with a third of its receives at most.
const HAND_BACK_INTERVAL: Duration = Duration::from_secs(10);

/// So long only others poll for what has gone back.
const YIELD_TIME: Duration = Duration::from_secs(1);

/// How long the rest is kept: it might come back here.
const EXCLUDED_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_mins(5),
    max_delay: Duration::from_hours(6),
};

pub(super) struct RunSlot {
    /// None until the run has passed its checks.
    pub(super) stages: Option<Arc<Stages>>,
    /// Why it has not.
    pub(super) load_error: Option<String>,
    pub(super) parked: VecDeque<LeasedMessage>,
    pub(super) in_hand: usize,
    /// When a message of it ended last, or the first one in hand began.
    pub(super) moved_on_at: Instant,
    pub(super) used_at: Instant,
    pub(super) changed: Arc<Notify>,
    allowance: Allowance,
}

pub(super) struct RunTable {
    pub(super) slots: BTreeMap<i64, RunSlot>,
    /// Taken on, and not yet looked at.
    pub(super) new_runs: Vec<i64>,
    /// Messages that polls under way may bring.
    pub(super) polled: usize,
    pub(super) parked: usize,
    /// Runs that go on by the ledger, asked for while some wait.
    pub(super) active: Vec<i64>,
    /// No polls until then.
    yields_until: Instant,
    in_hand: usize,
    /// In hand at most, unless a run has less than its part.
    max_in_hand: usize,
    /// What each run may have in hand whatever the others have.
    part: usize,
    /// Messages of runs that wait: they take no room of what the others may receive.
    waiting: usize,
    slow: usize,
}

impl RunSlot {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self {
            stages: None,
            load_error: None,
            parked: VecDeque::new(),
            in_hand: 0,
            moved_on_at: now,
            used_at: now,
            changed: Arc::default(),
            allowance: Allowance::UNTIL_KNOWN,
        }
    }

    /// What was allowed of the run that it was says nothing of the next.
    pub(super) fn unload(&mut self) {
        (self.stages, self.allowance) = (None, Allowance::UNTIL_KNOWN);
    }

    pub(super) fn held_count(&self) -> usize {
        self.in_hand + self.parked.len()
    }

    /// Whether so many more would wait for an operator, the store or the checks, and not for each other.
    fn is_waiting(&self, more: usize, part: usize) -> bool {
        let wanted = self.held_count() + more;
        let is_held = self.load_error.is_some() || wanted > self.allowance.in_hand;
        is_held || (wanted > part && self.moved_on_at.elapsed() > STALLED_AFTER)
    }

    fn is_in_use(&self) -> bool {
        self.used_at.elapsed() < RECENT_USE
    }

    /// A run that is left to other processes stays known: what is not known is received.
    pub(super) fn is_idle(&self, limit: Duration) -> bool {
        let is_over = self.held_count() == 0 && self.used_at.elapsed() > limit;
        is_over && !self.allowance.is_excluded
    }

    /// Why it cannot be worked on.
    pub(super) fn obstacle(&self) -> Option<String> {
        match &self.stages {
            Some(stages) => stages.context.health.own_outage(),
            None => self.load_error.clone(),
        }
    }
}

impl RunTable {
    pub(super) fn new(max_in_hand: usize) -> Self {
        Self {
            slots: BTreeMap::new(),
            new_runs: Vec::new(),
            polled: 0,
            parked: 0,
            active: Vec::new(),
            yields_until: Instant::now(),
            in_hand: 0,
            max_in_hand,
            part: max_in_hand,
            waiting: 0,
            slow: 0,
        }
    }

    pub(super) fn slot(&mut self, run: i64) -> &mut RunSlot {
        self.slots.entry(run).or_insert_with(|| {
            self.new_runs.push(run);
            RunSlot::new()
        })
    }

    pub(super) fn set_allowances(&mut self, allowances: Vec<(i64, Allowance)>) {
        for (run, allowance) in allowances {
            if let Some(slot) = self.slots.get_mut(&run) {
                slot.allowance = allowance;
            }
        }
        let has_work = |slot: &&RunSlot| slot.held_count() > 0;
        let runs = self.slots.values().filter(has_work).count();
        self.part = (self.max_in_hand / runs.max(1)).max(1);
        let waiting = self.waiting_slots().map(|(_, slot)| slot.held_count());
        self.waiting = waiting.sum();
        self.slow = self.slots.values().map(|slot| slot.allowance.slow).sum();
    }

    fn waiting_slots(&self) -> impl Iterator<Item = (i64, &RunSlot)> {
        let more = self.polled + MAX_BATCH_ENTRIES;
        let slots = self.slots.iter().map(|(run, slot)| (*run, slot));
        slots.filter(move |(_, slot)| slot.is_waiting(more, self.part))
    }

    /// Whether what a poll brings has room: a process that is busy is waited for.
    pub(super) fn may_poll(&self) -> bool {
        let yields = Instant::now() < self.yields_until;
        !yields && self.has_poll_room() && self.has_reason_to_poll()
    }

    /// Where a run is held there must be work for another.
    fn has_reason_to_poll(&self) -> bool {
        let waiting = self.waiting_runs();
        let invites = |(run, slot): (&i64, &RunSlot)| slot.is_in_use() && !waiting.contains(run);
        waiting.is_empty() || self.has_work_beside(&waiting) || self.slots.iter().any(invites)
    }

    /// Compared when it matters: a run that waits by now is no reason any more.
    fn has_work_beside(&self, waiting: &[i64]) -> bool {
        self.active.iter().any(|run| !waiting.contains(run))
    }

    fn has_poll_room(&self) -> bool {
        let held = self.in_hand + self.parked + self.polled + MAX_BATCH_ENTRIES;
        held <= self.max_in_hand + self.waiting + self.slow
    }

    pub(super) fn waiting_runs(&self) -> Vec<i64> {
        self.waiting_slots().map(|(run, _)| run).collect()
    }

    /// Begins a message that was received, unless others wait before it; `is_due` where it never waits.
    pub(super) fn begin_received(&mut self, run: i64, is_due: bool) -> Option<Arc<Stages>> {
        let slot = self.slots.get(&run)?;
        let stages = slot.stages.clone()?;
        let may_start = is_due || (slot.parked.is_empty() && self.has_room(slot));
        may_start.then(|| {
            self.begin(run);
            stages
        })
    }

    pub(super) fn begin_parked(&mut self, run: i64) -> Option<(Arc<Stages>, LeasedMessage)> {
        let slot = self.slots.get(&run)?;
        let stages = slot.stages.clone().filter(|_| self.has_room(slot))?;
        // What is held no more is another consumer's.
        while let Some(leased) = self.slots.get_mut(&run)?.parked.pop_front() {
            self.parked -= 1;
            if leased.lease.is_held() {
                self.begin(run);
                return Some((stages, leased));
            }
        }
        None
    }

    fn has_room(&self, slot: &RunSlot) -> bool {
        let is_sure = slot.in_hand < self.part || self.in_hand < self.max_in_hand + self.slow;
        is_sure && slot.in_hand < slot.allowance.in_hand
    }

    pub(super) fn begin(&mut self, run: i64) {
        let slot = self.slot(run);
        if slot.in_hand == 0 {
            slot.moved_on_at = Instant::now();
        }
        slot.in_hand += 1;
        self.in_hand += 1;
    }

    /// Whether another poll may have room now.
    pub(super) fn end(&mut self, run: i64) -> bool {
        if let Some(slot) = self.slots.get_mut(&run) {
            slot.in_hand -= 1;
            self.in_hand -= 1;
            slot.moved_on_at = Instant::now();
            if !slot.parked.is_empty() {
                slot.changed.notify_one();
            }
        }
        self.has_poll_room()
    }

    pub(super) fn park(&mut self, run: i64, messages: impl IntoIterator<Item = LeasedMessage>) {
        let slot = self.slot(run);
        let before = slot.parked.len();
        slot.parked.extend(messages);
        slot.used_at = Instant::now();
        slot.changed.notify_one();
        let added = slot.parked.len() - before;
        self.parked += added;
    }

    pub(super) fn take_parked(&mut self, run: i64) -> VecDeque<LeasedMessage> {
        let parked = self.slots.get_mut(&run).map(|slot| &mut slot.parked);
        let parked = parked.map(std::mem::take).unwrap_or_default();
        self.parked -= parked.len();
        parked
    }

    /// What is parked of a run that the fleet's limits leave to other processes, and may go back to them.
    ///
    /// Each way back costs a receive, which SQS never takes off again, and a queue cannot be asked for the messages
    /// of one run: so they go back while this process does not poll, and cannot receive them itself. It works on
    /// other runs of the queue, too, and others may have no room: the other receives are for waits that grow
    /// with them, and with the last a message does not go back at all.
    pub(super) fn take_for_others(
        &mut self,
        run: i64,
        max_receive_count: Option<u32>,
    ) -> VecDeque<LeasedMessage> {
        let is_in_use = |slot: &RunSlot| slot.is_in_use() && !slot.allowance.is_excluded;
        let is_busy =
            self.has_work_beside(&self.waiting_runs()) || self.slots.values().any(is_in_use);
        let may_go = |leased: &LeasedMessage| {
            let receives = leased.incoming.message.receive_count;
            let wait = match max_receive_count {
                _ if !is_busy => Duration::ZERO,
                Some(most) if receives > most / 3 => EXCLUDED_BACKOFF.delay_ceiling(receives),
                _ => HAND_BACK_INTERVAL,
            };
            leased.received_at.elapsed() >= wait
                && max_receive_count.is_none_or(|most| receives < most)
        };
        let slot = self.slots.get_mut(&run);
        let excluded = slot.filter(|slot| slot.allowance.is_excluded);
        let Some(slot) = excluded.filter(|slot| slot.parked.iter().any(may_go)) else {
            return VecDeque::new();
        };
        self.yields_until = Instant::now() + YIELD_TIME;
        if self.polled > 0 {
            return VecDeque::new();
        }
        let (taken, kept) = std::mem::take(&mut slot.parked)
            .into_iter()
            .partition(may_go);
        slot.parked = kept;
        let taken: VecDeque<_> = taken;
        self.parked -= taken.len();
        taken
    }

    /// Those whose lease is lost are another consumer's.
    pub(super) fn drop_lost_messages(&mut self) {
        for slot in self.slots.values_mut() {
            slot.parked.retain(|parked| parked.lease.is_held());
        }
        self.parked = self.slots.values().map(|slot| slot.parked.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::ConsumerContext;
    use crate::runs::{Admission, IncomingMessage, MAX_PARKED_MESSAGES, Runs, STRAYS};
    use bucket_brigade_common::queue::ReceivedMessage;
    use tokio::time::{advance, timeout};

    fn message(receive_count: u32) -> LeasedMessage {
        let message = ReceivedMessage {
            message_id: "m".into(),
            receipt_handle: String::new(),
            body: "{}".into(),
            receive_count,
            sent_at: None,
            traceparent: None,
            attributes: Vec::new(),
        };
        LeasedMessage {
            incoming: IncomingMessage::new(message),
            lease: ConsumerContext::for_tests().leases.start_lease("r".into()),
            received_at: Instant::now(),
        }
    }

    fn begin_all(table: &mut RunTable, run: i64) -> usize {
        while table.has_room(&table.slots[&run]) {
            table.begin(run);
        }
        table.set_allowances(Vec::new());
        table.slots[&run].in_hand
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_is_taken_on_also_where_no_more_messages_can_be_parked() {
        let runs = Runs::new(100);
        runs.park(1, (0..MAX_PARKED_MESSAGES).map(|_| message(1)));
        assert_eq!(runs.next_new_run().await, 1);
        let admitting = async { runs.admit(2, message(1)) };
        let serving = timeout(Duration::from_secs(1), runs.next_new_run());
        let (new, admission) = tokio::join!(serving, admitting);
        assert!(matches!(admission, Admission::Postpone(_)));
        assert_eq!(new, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_in_hand_is_bounded_and_each_run_is_sure_of_a_part() {
        let mut table = RunTable::new(100);
        for run in [1, 2] {
            table.slot(run).allowance.in_hand = usize::MAX;
        }
        assert_eq!(begin_all(&mut table, 1), 100);
        table.begin(2);
        table.set_allowances(Vec::new());
        assert_eq!(begin_all(&mut table, 2), 50);
        assert!(!table.may_poll());
        // Nothing of the first run ends: the second is received for.
        advance(STALLED_AFTER * 2).await;
        for _ in 0..30 {
            table.end(2);
        }
        table.set_allowances(Vec::new());
        assert!(table.may_poll());
        assert_eq!(begin_all(&mut table, 1), 100);
    }

    #[tokio::test]
    async fn a_run_that_waits_by_now_is_no_reason_to_receive() {
        let mut table = RunTable::new(100);
        table.slot(1).allowance.in_hand = usize::MAX;
        table.slot(STRAYS).load_error = Some("the ledger is silent".into());
        table.active = vec![1];
        assert!(table.may_poll());
        table.slot(1).allowance.in_hand = 5;
        assert!(!table.may_poll());
        table.active = vec![1, 2];
        assert!(table.may_poll());
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_its_run_to_be_taken_on_takes_room() {
        let mut table = RunTable::new(100);
        table.slot(1).allowance.in_hand = usize::MAX;
        table.park(STRAYS, (0..100).map(|_| message(1)));
        table.set_allowances(Vec::new());
        assert!(!table.may_poll());
        // Others go on where that takes long, or is in vain.
        advance(STALLED_AFTER * 2).await;
        table.set_allowances(Vec::new());
        assert!(table.may_poll());
        table.slot(STRAYS).moved_on_at = Instant::now();
        table.set_allowances(Vec::new());
        assert!(!table.may_poll());
        table.slot(STRAYS).load_error = Some("the ledger is silent".into());
        table.set_allowances(Vec::new());
        assert!(table.may_poll());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_to_others_goes_back_when_no_poll_brings_it_again() {
        let mut table = RunTable::new(100);
        table.slot(2).allowance.in_hand = 0;
        table.slot(2).allowance.is_excluded = true;
        table.active = vec![3];
        table.park(2, [message(1), message(3), message(2)]);
        assert!(table.take_for_others(2, Some(3)).is_empty());
        advance(HAND_BACK_INTERVAL).await;
        table.polled = MAX_BATCH_ENTRIES;
        assert!(table.may_poll() && table.take_for_others(2, Some(3)).is_empty());
        assert!(!table.may_poll(), "the polls under way are waited for");
        table.polled = 0;
        assert_eq!(table.take_for_others(2, Some(3)).len(), 1);
        assert!(!table.may_poll(), "others have a moment for it");
        advance(YIELD_TIME).await;
        assert!(table.may_poll());
        // The next receive may be the last one.
        advance(EXCLUDED_BACKOFF.delay_ceiling(2) / 2).await;
        assert!(table.take_for_others(2, Some(3)).is_empty());
        table.active = vec![2];
        assert_eq!(table.take_for_others(2, Some(3)).len(), 1);
        // With the last receive it would be a dead letter.
        advance(Duration::from_hours(10)).await;
        assert!(table.take_for_others(2, Some(3)).is_empty());
        assert_eq!((table.parked, table.take_for_others(2, None).len()), (1, 1));
    }
}
