//! The feeder: pages the rows in scope out of Postgres and sends them to the queue, until a sweep
//! finds nothing left.

pub mod backlog;
pub mod control;
pub mod count;
pub mod cursor;
pub mod display;
pub mod drain;
pub mod feed;
pub mod lock;
pub mod outcome;
pub mod progress;
pub mod retry;
pub mod send;
pub mod settings;
pub mod spread;
pub mod start;
pub mod sweep;
pub mod watch;
