//! What goes wrong, by dice.

use std::time::Duration;

use fastrand::Rng;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    Success,
    /// It is not carried out, and fails.
    FailsBeforeEffect,
    /// It is carried out, and its answer is lost.
    FailsAfterEffect,
}

/// How bad a world is; each in per cent of the calls, or of the entries of a batch.
#[derive(Debug, Clone)]
pub struct FaultRates {
    /// Calls that fail, half of them after they had their effect.
    pub faults: u32,
    /// Entries of a batch that the queue reports as failed.
    pub failed_entries: u32,
    /// Messages delivered while they are in flight.
    pub duplicate_deliveries: u32,
    pub duplicate_sends: u32,
    /// Renewals that find the lease lost.
    pub lost_leases: u32,
    /// Rows that a commit finds locked.
    pub locked_rows: u32,
    /// Counts of the queue that say it is empty when it is not.
    pub wrong_counts: u32,
    /// Calls that take longer than a visibility timeout.
    pub slow_calls: u32,
    /// Beats at which an operator changes the orders, of each kind.
    pub limit_changes: u32,
    /// A row whose commit the database refuses.
    pub refused_row: Option<String>,
}

impl FaultRates {
    pub fn none() -> Self {
        Self {
            faults: 0,
            failed_entries: 0,
            duplicate_deliveries: 0,
            duplicate_sends: 0,
            lost_leases: 0,
            locked_rows: 0,
            wrong_counts: 0,
            slow_calls: 0,
            limit_changes: 0,
            refused_row: None,
        }
    }

    /// Anything from fine to foul.
    pub fn random(dice: &mut Rng) -> Self {
        let mut most = |most| dice.u32(0..=most);
        Self {
            faults: most(24),
            failed_entries: most(10),
            duplicate_deliveries: most(20),
            duplicate_sends: most(15),
            lost_leases: most(15),
            locked_rows: most(20),
            wrong_counts: most(30),
            slow_calls: most(3),
            limit_changes: most(4),
            refused_row: (most(3) == 0).then(|| most(9).to_string()),
        }
    }

    pub fn pick_outcome(&self, dice: &mut Rng) -> CallOutcome {
        match dice.u32(0..100) {
            number if number < self.faults / 2 => CallOutcome::FailsBeforeEffect,
            number if number < self.faults => CallOutcome::FailsAfterEffect,
            _ => CallOutcome::Success,
        }
    }

    /// The time of a call's way there, and of its way back.
    pub fn pick_latencies(&self, dice: &mut Rng) -> (Duration, Duration) {
        let slow = dice.u32(0..100) < self.slow_calls;
        let back = if slow {
            dice.u64(4_000..9_000)
        } else {
            dice.u64(0..60)
        };
        let there = dice.u64(0..60);
        (Duration::from_millis(there), Duration::from_millis(back))
    }
}
