//! The outside world in memory, as plain values: the application's table with the ledger beside it,
//! the two buckets, the queue. No time, no faults, no tasks: those are added by its drivers.

mod buckets;
mod memory_queue;
mod table;

pub use buckets::MemoryBuckets;
pub use memory_queue::{MemoryQueue, QueuedMessage};
pub use table::{MemoryTable, RecordedFailure, RecordedMove};

use bucket_brigade_common::path_rule::PathRule;

/// The prefix of paths and keys to move from.
pub const OLD_PREFIX: &str = "image/";

/// The prefix of paths and keys to move to.
pub const NEW_PREFIX: &str = "avatar/";

/// What a companion's key ends with after that of its image.
pub const COMPANION_SUFFIX: &str = ".thumb";

pub const RUN: i64 = 1;

#[expect(clippy::expect_used, reason = "two constants that make a rule")]
pub fn world_path_rule() -> PathRule {
    PathRule::new(OLD_PREFIX, NEW_PREFIX, None, None).expect("a rule")
}
