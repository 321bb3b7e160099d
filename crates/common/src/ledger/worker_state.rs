//! What a process is doing, as it stands in the ledger and is shown by `status` and the dashboard.

use std::fmt::{self, Display, Formatter};

use serde::{Serialize, Serializer};

macro_rules! worker_states {
    ($($(#[$attribute:meta])* $state:ident = $text:literal,)*) => {
        /// The state of a process, or of the run as a whole.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub enum WorkerState {
            $($(#[$attribute])* $state,)*
        }

        impl WorkerState {
            const ALL: &[Self] = &[$(Self::$state,)*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$state => $text,)*
                }
            }
        }
    };
}

worker_states! {
    #[default]
    Starting = "starting",
    Running = "running",
    NothingToDo = "nothing to do",
    Paused = "paused",
    DatabaseSlow = "database slow",
    ThrottledByStore = "throttled by S3",
    /// For something that is down, or not there.
    Waiting = "waiting",
    Stopping = "stopping",
    Feeding = "feeding",
    FeedingAtLimit = "feeding at the rate limit",
    BacklogFull = "waiting: backlog full",
    Draining = "waiting for the queue to drain",
    Watching = "watching: nothing to do",
    /// Of a process of another version.
    Unknown = "unknown",
}

impl WorkerState {
    /// While a consumer is in one of these, another consumer would move nothing faster.
    pub const HELD_BACK: [Self; 4] = [
        Self::Paused,
        Self::DatabaseSlow,
        Self::ThrottledByStore,
        Self::Waiting,
    ];
}

/// As the ledger has it, where a process of another version may have written.
impl From<String> for WorkerState {
    fn from(text: String) -> Self {
        let mut known = Self::ALL.iter().copied();
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
            assert_eq!(WorkerState::from(state.to_string()), *state);
        }
        let later = WorkerState::from("dancing".to_owned());
        assert_eq!(later, WorkerState::Unknown);
    }
}
