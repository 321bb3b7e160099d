//! What a process is doing, as it stands in the ledger and is shown by `status` and the dashboard.

use std::fmt::{self, Display, Formatter};

use serde::{Serialize, Serializer};

/// The state of a process, or of the run as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WorkerState {
    #[default]
    Starting,
    Running,
    NothingToDo,
    Paused,
    DatabaseSlow,
    ThrottledByStore,
    /// For something that is down, or not there.
    Waiting,
    Stopping,
    Feeding,
    FeedingAtLimit,
    BacklogFull,
    Draining,
    Watching,
    /// Of a process of another version.
    Unknown,
}

impl WorkerState {
    pub const ALL: [Self; 14] = [
        Self::Starting,
        Self::Running,
        Self::NothingToDo,
        Self::Paused,
        Self::DatabaseSlow,
        Self::ThrottledByStore,
        Self::Waiting,
        Self::Stopping,
        Self::Feeding,
        Self::FeedingAtLimit,
        Self::BacklogFull,
        Self::Draining,
        Self::Watching,
        Self::Unknown,
    ];

    /// While a consumer is in one of these, another consumer would move nothing faster.
    pub const HELD_BACK: [Self; 4] = [
        Self::Paused,
        Self::DatabaseSlow,
        Self::ThrottledByStore,
        Self::Waiting,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::NothingToDo => "nothing to do",
            Self::Paused => "paused",
            Self::DatabaseSlow => "database slow",
            Self::ThrottledByStore => "throttled by S3",
            Self::Waiting => "waiting",
            Self::Stopping => "stopping",
            Self::Feeding => "feeding",
            Self::FeedingAtLimit => "feeding at the rate limit",
            Self::BacklogFull => "waiting: backlog full",
            Self::Draining => "waiting for the queue to drain",
            Self::Watching => "watching: nothing to do",
            Self::Unknown => "unknown",
        }
    }
}

/// As the ledger has it, where a process of another version may have written.
impl From<String> for WorkerState {
    fn from(text: String) -> Self {
        let mut known = Self::ALL.into_iter();
        let found = known.find(|state| state.as_str() == text);
        found.unwrap_or(Self::Unknown)
    }
}

impl Display for WorkerState {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for WorkerState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_read_as_it_is_written() {
        for state in WorkerState::ALL {
            assert_eq!(WorkerState::from(state.to_string()), state);
        }
        let later = WorkerState::from("dancing".to_owned());
        assert_eq!(later, WorkerState::Unknown);
    }
}
