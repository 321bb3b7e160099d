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
    /// What a trigger stored is taken for what was asked for.
    UncheckedPath,
    /// A dead letter counts as confirmed without being sent.
    UnsentDeadLetter,
    /// A message is taken for one of the first run, whatever run it names.
    RunsMixedUp,
    /// Consumers do not know that images have companions.
    ForgottenCompanions,
    /// What may be a row's trouble or the database's is taken for the row's, without a try without rows.
    UntestedSuspicion,
}
