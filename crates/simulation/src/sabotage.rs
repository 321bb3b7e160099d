//! The test for the tests: what model and simulation must find when it is missing.

/// What is taken from the protocol, to show what it was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// The path is set whatever the row holds.
    NoCompareAndSet,
    /// A copy overwrites what stands at the destination.
    UnconditionalCopy,
    /// The message is deleted before the commit.
    DeleteBeforeCommit,
    /// Consumers do not know that images have companions.
    ForgottenCompanions,
}
