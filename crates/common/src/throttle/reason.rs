//! Why less is started than there is to do.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use crate::ledger::worker_state::WorkerState;
use crate::printable::counted;

/// What holds work back, and the words to show.
#[derive(Debug, Clone, PartialEq)]
pub enum ThrottleReason {
    /// Who paused the run, and why.
    Paused(String),
    /// A condition of an operator's.
    Held(String),
    ReplicaLag {
        lag: Duration,
        max: Duration,
    },
    SlowCommits {
        commit: Duration,
        max: Duration,
        /// Copies in flight until commits are faster; none where nothing starts for a moment.
        allowance: Option<usize>,
    },
    /// The store throttled a request lately.
    StoreRate {
        per_second: f64,
    },
    /// This process's share of the fleet's limits.
    FleetLimit {
        per_second: Option<f64>,
        concurrency: Option<u64>,
    },
}

impl ThrottleReason {
    /// Whether it stands whatever there is to do: an operator or the database asks for it.
    pub fn is_protective(&self) -> bool {
        matches!(
            self.worker_state(),
            WorkerState::Paused | WorkerState::DatabaseSlow
        )
    }

    pub fn worker_state(&self) -> WorkerState {
        match self {
            Self::Paused(_) | Self::Held(_) => WorkerState::Paused,
            Self::ReplicaLag { .. } | Self::SlowCommits { .. } => WorkerState::DatabaseSlow,
            Self::StoreRate { .. } => WorkerState::ThrottledByStore,
            Self::FleetLimit { .. } => WorkerState::Running,
        }
    }

    /// Whether nothing at all starts.
    pub fn holds_everything(&self) -> bool {
        matches!(
            self,
            Self::Paused(_)
                | Self::Held(_)
                | Self::ReplicaLag { .. }
                | Self::SlowCommits {
                    allowance: None,
                    ..
                }
        )
    }
}

impl Display for ThrottleReason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(why) | Self::Held(why) => f.write_str(why),
            Self::ReplicaLag { lag, max } => {
                let lag = lag.as_secs_f64();
                write!(
                    f,
                    "a replica is {lag:.1} s behind, MAX_REPLICA_LAG is {max:?}"
                )
            }
            Self::SlowCommits {
                commit,
                max,
                allowance: Some(copies),
            } => write!(
                f,
                "commits take {commit:.0?}, MAX_COMMIT_LATENCY is {max:?}: at most {} at once",
                counted(*copies, "copy", "copies")
            ),
            Self::SlowCommits { commit, max, .. } => {
                write!(
                    f,
                    "a commit took {commit:.0?}, MAX_COMMIT_LATENCY is {max:?}"
                )
            }
            Self::StoreRate { per_second } => {
                let decimals = usize::from(*per_second < 10.0);
                write!(f, "{per_second:.decimals$} copies per second")
            }
            Self::FleetLimit {
                per_second,
                concurrency,
            } => {
                let limits = [
                    per_second.map(|rate| format!("{rate:.1} rows per second")),
                    concurrency
                        .map(|copies| format!("{} at once", counted(copies, "copy", "copies"))),
                ];
                let limits: Vec<String> = limits.into_iter().flatten().collect();
                write!(f, "limited to {}", limits.join(", "))
            }
        }
    }
}
