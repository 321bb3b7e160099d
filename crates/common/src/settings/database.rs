//! When the database counts as slow. It serves the application first.

use std::time::Duration;

use clap::Args;

use super::{Setting, SettingsProblems, duration_between, or_off, setting};

#[derive(Debug, Args)]
#[command(next_help_heading = "The database comes first")]
pub struct DatabaseArgs {
    /// A commit that takes longer slows the work down, until commits are faster; or off
    #[arg(
        long,
        env,
        value_name = "DURATION",
        default_value = "1s",
        value_parser = setting(parse_duration_or_off)
    )]
    max_commit_latency: Setting<Option<Duration>>,
    /// A replica that is further behind stops the work, until it has caught up; or off. Needs the
    /// right to look: GRANT pg_monitor
    #[arg(
        long,
        env,
        value_name = "DURATION",
        default_value = "off",
        value_parser = setting(parse_duration_or_off)
    )]
    max_replica_lag: Setting<Option<Duration>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DatabaseLimits {
    /// A commit that takes longer slows the work down; none for never.
    pub commit_latency: Option<Duration>,
    /// A replica that is further behind stops it until it has caught up; none for never.
    pub replica_lag: Option<Duration>,
}

impl DatabaseArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> DatabaseLimits {
        DatabaseLimits {
            commit_latency: self.max_commit_latency.take(problems),
            replica_lag: self.max_replica_lag.take(problems),
        }
    }
}

fn parse_duration_or_off(text: &str) -> Result<Option<Duration>, String> {
    let (least, most) = (Duration::from_millis(1), Duration::from_hours(1));
    or_off(duration_between(least, most))(text)
}
