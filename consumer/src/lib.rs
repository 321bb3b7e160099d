//! The consumer: takes messages from the queue, copies images, sets paths.
//!
//! ```text
//! receive ──► decide ──► copy ──► commit ──► acknowledge
//!    ▲           │          │         │            │
//!    └── permits └── already moved / changed: acknowledge
//!                           └── failed: record, release with back-off, never delete; failed for good: dead letter
//! ```

pub mod acknowledge;
pub mod commit;
mod companions;
pub mod context;
pub mod copy;
pub mod counters;
pub mod dead_letter;
pub mod failing_call;
pub mod fair_slots;
pub mod handle;
mod heartbeat;
pub mod lease;
pub mod ledger_batcher;
pub mod metrics;
pub mod open_files;
pub mod outage;
pub mod pipeline;
pub mod protocol;
pub mod receive;
pub mod record;
pub mod row_reader;
pub mod runs;
pub mod settings;
pub mod shutdown;
pub mod start;
pub mod trace;
