//! What an operator set once for all of a run: a query and hours that hold it, how many rows may fail, and where to
//! report what becomes of it.

mod feed_window;
mod hold;
mod max_failures;
mod observer;

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::ledger::feed_source::{FeedSource, RunProgress};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{DatabasePool, PostgresLedger};
use bucket_brigade_common::notify::{Notifier, RunNotification, parse_notify_url};
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::settings::{
    SecretString, Setting, SettingsProblems, integer_between, optional, or_off, secret_setting,
    setting,
};
use bucket_brigade_common::throttle::Throttle;
use tokio::time::{Instant, MissedTickBehavior, interval};

pub use self::feed_window::FeedWindow;
use self::feed_window::parse_feed_window;
use self::hold::HoldConditions;
use self::max_failures::FailureLimit;
use self::observer::{RunCounts, RunEvent, RunObserver};
use crate::outcome::FeedOutcome;
use crate::progress::FeederProgress;

const CHECK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Holds and notifications")]
pub struct ControlArgs {
    /// SQL, an expression or a SELECT of one value, evaluated every second: while it is true, or above zero, feeding
    /// and copying wait
    #[arg(long, env, value_name = "SQL", default_value = "", hide_default_value = true, value_parser = setting(parse_query))]
    throttle_query: Setting<Option<String>>,
    /// Feed at these hours only: [DAYS] HH:MM-HH:MM [ZONE], such as 22:00-06:00 Europe/Berlin or
    /// Sat,Sun 00:00-24:00 [zone: UTC]
    #[arg(long, env, value_name = "HOURS", default_value = "", hide_default_value = true, value_parser = setting(parse_feed_window))]
    feed_window: Setting<Option<FeedWindow>>,
    /// Pause the run when more rows than this have failed; or off: only when the first 1000 all do
    #[arg(long, env, value_name = "N", default_value = "off", value_parser = setting(or_off(integer_between(0, u64::MAX >> 1))))]
    max_failures: Setting<Option<u64>>,
    /// POST a line of JSON there when the run finishes, stalls, is paused, resumed or limited
    #[arg(long, env, hide_env_values = true, value_name = "URL", default_value = "", hide_default_value = true, value_parser = secret_setting(parse_notify_url))]
    notify_url: Setting<Option<SecretString>>,
}

#[derive(Debug, Clone, Default)]
pub struct ControlSettings {
    conditions: HoldConditions,
    max_failures: Option<u64>,
    notify_url: Option<SecretString>,
}

impl ControlArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> ControlSettings {
        ControlSettings {
            conditions: HoldConditions {
                query: self.throttle_query.take(problems),
                window: self.feed_window.take(problems),
            },
            max_failures: self.max_failures.take(problems),
            notify_url: self.notify_url.take(problems),
        }
    }
}

/// A statement's end is none of an expression's.
fn parse_query(text: &str) -> Result<Option<String>, String> {
    let query = text.trim_end_matches(|last: char| last == ';' || last.is_whitespace());
    if query.is_empty() && !text.is_empty() {
        return Err("is empty".into());
    }
    optional(query)
}

impl ControlSettings {
    /// Whether the database understands them.
    pub(crate) async fn check(&self, pool: &DatabasePool) -> Result<(), PreflightError> {
        self.conditions.check(pool).await
    }

    /// Connections that [`RunControl::run`] uses; for the count of failures alone it shares one.
    pub fn connections(&self) -> u32 {
        let HoldConditions { query, window } = &self.conditions;
        let is_any = query.is_some()
            || window.is_some()
            || self.max_failures.is_some()
            || self.notify_url.is_some();
        u32::from(is_any)
    }
}

/// Looks once a second.
pub struct RunControl {
    settings: ControlSettings,
    ledger: PostgresLedger,
    throttle: Arc<Throttle>,
    progress: Arc<FeederProgress>,
    notifier: Option<Notifier>,
}

impl RunControl {
    /// Checks the settings, and holds what is to be held from the start.
    pub async fn start(
        settings: ControlSettings,
        ledger: &PostgresLedger,
        throttle: &Arc<Throttle>,
        progress: &Arc<FeederProgress>,
    ) -> Result<Self, PreflightError> {
        settings.check(ledger.database()).await?;
        let notifier = settings.notify_url.as_ref().map(Notifier::start);
        let control = Self {
            notifier: notifier.transpose()?,
            settings,
            ledger: ledger.clone(),
            throttle: Arc::clone(throttle),
            progress: Arc::clone(progress),
        };
        if let Err(error) = control.apply_holds().await {
            tracing::debug!(%error, "what holds the run is not known yet");
        }
        Ok(control)
    }

    /// Runs for as long as it is polled. A database that does not answer is reported elsewhere: what held before
    /// stands.
    pub async fn run(&self) {
        let mut limit = FailureLimit::new(self.settings.max_failures);
        let mut observer = None;
        let mut numbers = RunProgress::default();
        let mut ticks = interval(CHECK_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.check(&mut limit).await {
                Ok(read) => numbers = read,
                Err(error) => tracing::debug!(%error, "the run could not be looked at"),
            }
            let observed = self.run_counts(numbers);
            let now = Instant::now();
            let observer = observer.get_or_insert_with(|| RunObserver::new(&observed, now));
            for event in observer.observe(&observed, now) {
                self.notify(event, &numbers);
            }
        }
    }

    async fn check(&self, limit: &mut FailureLimit) -> Result<RunProgress, StatementError> {
        let numbers = self.ledger.run_progress().await?;
        let is_paused = self.throttle.limits().paused.is_some();
        limit.check(&self.ledger, &numbers, is_paused).await?;
        // Last: while a condition cannot be asked, the failures are looked at all the same.
        self.apply_holds().await?;
        Ok(numbers)
    }

    async fn apply_holds(&self) -> Result<(), StatementError> {
        let holds = self
            .settings
            .conditions
            .read(self.ledger.database())
            .await?;
        self.progress.set_fleet_hold(holds.fleet.clone());
        self.throttle.set_hold(holds.fleet.or(holds.feeding));
        Ok(())
    }

    fn run_counts(&self, progress: RunProgress) -> RunCounts {
        RunCounts {
            limits: self.throttle.limits(),
            progress,
            phase: self.progress.phase(),
            pages: self.progress.pages(),
            is_held: self.progress.is_held(),
            outage: self.progress.health().outage(),
        }
    }

    fn notify(&self, event: RunEvent, progress: &RunProgress) {
        let Some(notifier) = &self.notifier else {
            return;
        };
        notifier.notify(&RunNotification {
            event: event.name,
            words: event.words,
            run: self.ledger.run_id(),
            table: self.ledger.table_name(),
            progress: *progress,
        });
    }

    /// Reports how a feeder ended, and waits a little until that has been sent.
    pub async fn finish(self, outcome: Option<&FeedOutcome>) {
        if let Some(outcome) = outcome {
            let event = if outcome.is_canary {
                RunEvent::canary_finished()
            } else {
                RunEvent::finished()
            };
            self.notify(event, &outcome.progress);
        }
        if let Some(notifier) = self.notifier {
            notifier.finish().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_an_expression_and_no_statement() {
        assert_eq!(parse_query("select 1; "), Ok(Some("select 1".into())));
        assert_eq!(parse_query(""), Ok(None));
    }
}
