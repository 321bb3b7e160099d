//! The consumer: takes messages from the queue, copies images, sets paths.
//!
//! ```text
//! receive ──► decide ──► copy ──► commit ──► acknowledge
//!    ▲           │          │         │            │
//!    └── permits └── already moved / changed: acknowledge
//!                           └── failed: record, release with back-off, never delete
//! ```

pub mod acknowledge;
pub mod commit;
pub mod control;
pub mod copy;
pub mod decide;
pub mod desk;
pub mod gather;
pub mod governor;
pub mod handle;
pub mod health;
pub mod lease;
pub mod observation;
pub mod outage;
pub mod pace;
pub mod pipeline;
pub mod receive;
pub mod record;
pub mod settings;
pub mod shutdown;
pub mod start;
pub mod step;
pub mod tally;
pub mod trace;
