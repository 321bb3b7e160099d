//! What goes wrong, by dice.

use std::time::Duration;

use fastrand::Rng;

/// What goes wrong with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Good,
    /// It is not carried out, and fails.
    FailsBefore,
    /// It is carried out, and its answer is lost.
    FailsAfter,
}

/// How bad a world is; each in per cent of the calls, or of the entries of a batch.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Calls that fail, half of them after they had their effect.
    pub faults: u32,
    /// Entries of a batch that the queue reports as failed.
    pub failed_entries: u32,
    /// Messages delivered while they are in flight.
    pub second_deliveries: u32,
    /// Messages sent twice.
    pub sent_twice: u32,
    /// Renewals that find the lease lost.
    pub lost_leases: u32,
    /// Rows that a commit finds locked.
    pub locks: u32,
    /// Counts of the queue that say it is empty when it is not.
    pub wrong_counts: u32,
    /// Calls that take longer than a visibility timeout.
    pub slow_calls: u32,
    /// Beats at which an operator changes the orders, of each kind.
    pub orders: u32,
    /// A row whose commit the database refuses.
    pub refused_row: Option<String>,
}

impl Weather {
    /// Nothing goes wrong.
    pub fn fine() -> Self {
        Self {
            faults: 0,
            failed_entries: 0,
            second_deliveries: 0,
            sent_twice: 0,
            lost_leases: 0,
            locks: 0,
            wrong_counts: 0,
            slow_calls: 0,
            orders: 0,
            refused_row: None,
        }
    }

    /// Anything from fine to foul.
    pub fn roll(dice: &mut Rng) -> Self {
        let mut most = |most| dice.u32(0..=most);
        Self {
            faults: most(24),
            failed_entries: most(10),
            second_deliveries: most(20),
            sent_twice: most(15),
            lost_leases: most(15),
            locks: most(20),
            wrong_counts: most(30),
            slow_calls: most(3),
            orders: most(4),
            refused_row: (most(3) == 0).then(|| most(9).to_string()),
        }
    }

    /// The fate of a call.
    pub fn fate(&self, dice: &mut Rng) -> Fate {
        match dice.u32(0..100) {
            number if number < self.faults / 2 => Fate::FailsBefore,
            number if number < self.faults => Fate::FailsAfter,
            _ => Fate::Good,
        }
    }

    /// The time of a call's way there, and of its way back.
    pub fn travel(&self, dice: &mut Rng) -> (Duration, Duration) {
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
