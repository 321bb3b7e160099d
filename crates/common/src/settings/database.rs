//! When the database counts as slow. It serves the application first.

use std::time::Duration;

use clap::Args;

use super::problems::{SettingsProblems, duration_between};

/// The settings as text, from flags or the environment.
#[derive(Debug, Args)]
#[command(next_help_heading = "The database comes first")]
pub struct DatabaseArgs {
    /// A commit that takes longer slows the work down, until commits are faster; or off [default: 1s]
    #[arg(long, env = "MAX_COMMIT_LATENCY", value_name = "DURATION")]
    pub max_commit_latency: Option<String>,
    /// A replica that is further behind stops the work, until it has caught up; or off. Needs the
    /// right to look: GRANT pg_monitor [default: off]
    #[arg(long, env = "MAX_REPLICA_LAG", value_name = "DURATION")]
    pub max_replica_lag: Option<String>,
}

/// When the database counts as slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatabaseLimits {
    /// A commit that takes longer slows the work down; none for never.
    pub commit_latency: Option<Duration>,
    /// A replica that is further behind stops it until it has caught up; none for never.
    pub replica_lag: Option<Duration>,
}

impl DatabaseArgs {
    /// Checks the settings.
    pub fn parse(self, problems: &mut SettingsProblems) -> DatabaseLimits {
        let second = Some(Duration::from_secs(1));
        let (commit, lag) = (self.max_commit_latency, self.max_replica_lag);
        DatabaseLimits {
            commit_latency: problems.parse_value(
                "MAX_COMMIT_LATENCY",
                commit,
                second,
                parse_duration_or_off,
            ),
            replica_lag: problems.parse_value("MAX_REPLICA_LAG", lag, None, parse_duration_or_off),
        }
    }
}

fn parse_duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    if text.eq_ignore_ascii_case("off") {
        return Ok(None);
    }
    let (least, most) = (Duration::from_millis(1), Duration::from_hours(1));
    match duration_between(least, most)(text) {
        Ok(duration) => Ok(Some(duration)),
        Err(problem) => Err(format!("{problem}, nor off")),
    }
}
