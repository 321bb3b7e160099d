//! The exit codes of both binaries. Where `sysexits.h` has a meaning, it is that one.

use thiserror::Error;

/// Everything that was to do is done; for a consumer, a clean drain.
pub const DONE: u8 = 0;
/// What a command checked is not as it should be; its output names it. Never an error of the program's own.
pub const CHECK_FAILED: u8 = 1;
/// The feeder finished, and some rows could not be moved: the ledger's `failures` have the reasons. A rollback
/// or clean finished, and left something as it was.
pub const ROWS_FAILED: u8 = 2;
/// The feeder was asked to stop before everything had moved. Starting it again goes on from there.
pub const STOPPED: u8 = 3;
/// A setting is missing or wrong, or names something that does not exist (`EX_USAGE`).
pub const INVALID_SETTINGS: u8 = 64;
/// The feeder finished, and no row was ever in scope although rows have paths: `OLD_PREFIX` or `PATH_COLUMN` is
/// wrong (`EX_NOINPUT`).
pub const NOTHING_IN_SCOPE: u8 = 66;
/// The database, the queue or a bucket cannot be reached (`EX_UNAVAILABLE`).
pub const UNAVAILABLE: u8 = 69;
/// An unforeseen error, whose causes are printed, or a panic (`EX_SOFTWARE`).
pub const UNEXPECTED: u8 = 70;
/// Another feeder of the same run is at work, or another that would be in the way (`EX_TEMPFAIL`).
pub const ANOTHER_FEEDER: u8 = 75;
/// A right is missing; the message names it, and the statement that grants it (`EX_NOPERM`).
pub const NO_PERMISSION: u8 = 77;
/// A second signal ended the process at once.
pub const KILLED: u8 = 130;

/// A command that is not carried out, and why.
#[derive(Debug, Error)]
#[error("{reason}")]
pub struct CommandError {
    pub code: u8,
    /// Why, and what to do about it.
    pub reason: String,
}
