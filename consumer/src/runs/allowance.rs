//! How much of a run a process may have in hand.

use crate::handle::Stages;

/// What the throttle and the store of a run allow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowance {
    /// Messages in hand. What cannot be copied soon is better left to others, and to the queue if we have to stop.
    pub(super) in_hand: usize,
    /// Those that wait for a slow range of keys: they take no room of what can go on.
    pub(super) slow: usize,
    /// The fleet's limits leave nothing of the run to this process.
    pub(super) is_excluded: bool,
}

impl Allowance {
    /// While a run is taken on nothing is known against it: its messages take room like any.
    pub(super) const UNTIL_KNOWN: Self = Self {
        in_hand: usize::MAX,
        slow: 0,
        is_excluded: false,
    };

    pub(super) fn of(stages: &Stages) -> Self {
        let throttle = &stages.context.throttle;
        let is_up = stages.context.health.own_outage().is_none();
        let slow = throttle.excess_waiting();
        let in_hand = throttle.max_in_hand().saturating_add(slow);
        Self {
            in_hand: if is_up { in_hand } else { 0 },
            slow,
            is_excluded: throttle.is_excluded(),
        }
    }
}
