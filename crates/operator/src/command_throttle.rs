//! What holds a command back between two pages, as it holds the fleet: a pause, limits, a slow database, lagging
//! replicas. And what the command says of itself meanwhile: its heartbeat, which `status` prints.

use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::heartbeat::send_heartbeats;
use bucket_brigade_common::ledger::fleet_control::{
    FleetControl, FleetLimits, Heartbeat, WorkerRole,
};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::worker_state::WorkerState;
use bucket_brigade_common::ledger::{LedgerError, PostgresLedger, with_timeout};
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::{RateMeter, Throttle, ThrottleReason};
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::page_pipeline::CommandStopped;
use crate::progress_bar::ProgressReporter;
use crate::statements::retry_statement;

const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(1);

const RATE_OVER: Duration = Duration::from_mins(1);
const MIN_RATE_TIME: Duration = Duration::from_secs(1);

/// None while it is not paused. When it was paused, where that is known.
const SELECT_PAUSE: &str = "SELECT coalesce(paused_at::text, '') FROM bucket_brigade.run
    WHERE id = $1 AND paused";

pub(crate) struct CommandThrottle<'a> {
    ledger: &'a PostgresLedger,
    name: &'static str,
    throttle: Throttle,
    state: Mutex<CommandState>,
}

struct CommandState {
    progress: ProgressReporter,
    rate: RateMeter,
    /// The pause from before the start, which is not meant for the command: the fleet may have been paused so
    /// that it can work.
    ignored_pause: Option<String>,
    /// Whether what holds it now has been logged.
    is_logged: bool,
}

impl<'a> CommandThrottle<'a> {
    /// Reads the limits; the heartbeats come with [`CommandThrottle::run`].
    pub(crate) async fn start(
        ledger: &'a PostgresLedger,
        name: &'static str,
        limits: DatabaseLimits,
    ) -> anyhow::Result<Self> {
        if limits.replica_lag.is_some() {
            ledger.check_replica_lag().await?;
        }
        let command = Self {
            ledger,
            name,
            throttle: Throttle::for_rows(limits),
            state: Mutex::new(CommandState {
                progress: ProgressReporter::new(name, 0),
                rate: RateMeter::new(RATE_OVER, Instant::now()),
                ignored_pause: retry_statement(async || read_pause(ledger).await).await?,
                is_logged: false,
            }),
        };
        let first = Heartbeat::starting(WorkerRole::Command(name));
        let limits = retry_statement(async || command.heartbeat(&first).await).await?;
        command.throttle.set_limits(limits);
        Ok(command)
    }

    pub(crate) async fn run<T>(
        &self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        let result = tokio::select! {
            biased;
            result = work => result,
            () = send_heartbeats(self, &self.throttle, || self.current(), |_| {}) => {
                Err(LedgerError::run_gone().into())
            }
        };
        // Without it others see in a few seconds that this process is gone.
        drop(timeout(DEREGISTER_TIMEOUT, self.deregister()).await);
        result
    }

    /// Waits until so many rows may be worked on; for none, until anything may start.
    pub(crate) async fn acquire(
        &self,
        mut rows: usize,
        stop: &CancellationToken,
    ) -> Result<(), CommandStopped> {
        self.log_hold();
        let acquired = async {
            self.throttle.wait_while_held().await;
            while rows > 0 {
                rows -= self.throttle.acquire_rows(rows).await.min(rows);
            }
        };
        let acquired = stop.run_until_cancelled(acquired).await;
        acquired.ok_or(CommandStopped)
    }

    fn log_hold(&self) {
        let held = self.throttle.held();
        let mut state = self.state.lock();
        if let Some(reason) = held.as_ref().filter(|_| !state.is_logged) {
            if matches!(reason, ThrottleReason::Paused(_)) {
                tracing::info!("paused {reason}: going on after `feeder resume`");
            } else {
                tracing::info!("{reason}: waiting");
            }
        }
        state.is_logged = held.is_some();
    }

    pub(crate) async fn write<T>(
        &self,
        statement: impl Future<Output = Result<T, StatementError>>,
    ) -> Result<T, StatementError> {
        let began = Instant::now();
        let result = statement.await;
        // A database that is away is waited for elsewhere; it is not slow.
        if result.is_ok() {
            self.throttle.commit_took(began.elapsed());
        }
        result
    }

    pub(crate) fn begin_phase(&self, label: &'static str, total: u64) {
        self.state.lock().progress = ProgressReporter::new(label, total);
    }

    pub(crate) fn advance_by(&self, count: usize) {
        let mut state = self.state.lock();
        state.progress.advance_by(count);
        let count = u64::try_from(count).unwrap_or(0);
        state.rate.record(count, Instant::now());
    }

    fn current(&self) -> Heartbeat {
        let (held, commit) = (self.throttle.held(), self.throttle.commit_latency());
        let state = self.state.lock();
        let rate = state.rate.rate(MIN_RATE_TIME..=RATE_OVER, Instant::now());
        let (word, reason) = match held {
            Some(reason) => (reason.worker_state(), reason.to_string()),
            None => (WorkerState::Running, state.progress.describe(rate)),
        };
        Heartbeat {
            state: word,
            reason,
            moved_per_second: rate,
            commit_seconds: commit.map(|took| took.as_secs_f64()),
            ..Heartbeat::starting(WorkerRole::Command(self.name))
        }
    }
}

#[async_trait]
impl FleetControl for CommandThrottle<'_> {
    async fn heartbeat(&self, heartbeat: &Heartbeat) -> Result<FleetLimits, StatementError> {
        let mut limits = self.ledger.heartbeat(heartbeat).await?;
        let ignored = self.state.lock().ignored_pause.clone();
        let is_paused = limits.paused.is_some();
        if is_paused && ignored.is_some() && read_pause(self.ledger).await? == ignored {
            limits.paused = None;
        } else {
            self.state.lock().ignored_pause = None;
        }
        Ok(limits)
    }

    async fn deregister(&self) -> Result<(), StatementError> {
        self.ledger.deregister().await
    }

    async fn replica_lag(&self) -> Result<Option<Duration>, StatementError> {
        self.ledger.replica_lag().await
    }
}

async fn read_pause(ledger: &PostgresLedger) -> Result<Option<String>, StatementError> {
    let query = sqlx::query_scalar(SELECT_PAUSE).bind(ledger.run_id());
    with_timeout(query.fetch_optional(ledger.pool())).await
}
