//! A private Postgres for tests, demo and bench, and the watchdog that cleans up after any of them.

mod cluster;
mod install;
mod watchdog;

pub use cluster::Cluster;
pub use watchdog::Watchdog;
