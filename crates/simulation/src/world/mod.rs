//! The outside world in memory, as plain values: the application's table with the ledger beside it,
//! the two buckets, the queue. No time, no faults, no tasks: those are added by whoever drives it.

mod buckets;
mod mailbox;
mod table;

pub use buckets::Buckets;
pub use mailbox::{Mailbox, Queued};
pub use table::{Failed, Moved, Table};

use bucket_brigade_common::path_rule::PathRule;

/// The prefix of paths and keys to move from.
pub const OLD: &str = "image/";

/// The prefix of paths and keys to move to.
pub const NEW: &str = "avatar/";

/// The path rule of this world.
#[expect(clippy::expect_used, reason = "two constants that make a rule")]
pub fn rule() -> PathRule {
    PathRule::new(OLD, NEW, None, None).expect("a rule")
}
