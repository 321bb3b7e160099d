//! Once a second each process reports its state, and learns its limits. While the database does not
//! respond, the last limits stand.

use std::mem;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::ledger::fleet_control::{FleetControl, FleetLimits, HEARTBEAT_INTERVAL, Heartbeat};
use crate::ledger::move_ledger::StatementError;
use crate::throttle::Throttle;

/// How often the first heartbeat is retried.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Sends heartbeats until the ledger has the run no more; `report` hears what became of each.
pub async fn send_heartbeats(
    control: &dyn FleetControl,
    throttle: &Throttle,
    mut current: impl FnMut() -> Heartbeat,
    report: impl Fn(Result<(), &StatementError>),
) {
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_lag_known = true;
    loop {
        ticks.tick().await;
        let sent = control.heartbeat(&current()).await;
        report(sent.as_ref().map(drop));
        match sent {
            Ok(limits) => {
                let lag = set_limits(control, throttle, limits).await;
                let was_known = mem::replace(&mut is_lag_known, lag.is_ok());
                if let Err(error) = lag
                    && was_known
                {
                    tracing::warn!(
                        "the replicas' lag cannot be read, the last one stands: {error}"
                    );
                }
            }
            Err(error) => tracing::debug!(%error, "no heartbeat could be sent"),
        }
        if throttle.is_run_gone() {
            return;
        }
    }
}

/// Learns the limits before any work starts: the run may be paused. Retried until `stop`.
pub async fn send_first_heartbeat(
    control: &dyn FleetControl,
    throttle: &Throttle,
    first: &Heartbeat,
    stop: &CancellationToken,
) {
    let sending = async {
        while let Err(error) = send_heartbeat(control, throttle, first).await {
            tracing::warn!(%error, "the run's limits cannot be read yet");
            sleep(FIRST_RETRY_INTERVAL).await;
        }
    };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = sending => {}
    }
}

async fn send_heartbeat(
    control: &dyn FleetControl,
    throttle: &Throttle,
    heartbeat: &Heartbeat,
) -> Result<(), StatementError> {
    let limits = control.heartbeat(heartbeat).await?;
    set_limits(control, throttle, limits).await
}

/// The limits hold whether the lag can be read or not.
async fn set_limits(
    control: &dyn FleetControl,
    throttle: &Throttle,
    limits: FleetLimits,
) -> Result<(), StatementError> {
    throttle.set_limits(limits);
    if throttle.watches_replicas() {
        throttle.set_replica_lag(control.replica_lag().await?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use parking_lot::Mutex;
    use tokio::time::{Instant, timeout};

    use super::*;
    use crate::ledger::fleet_control::WorkerRole;
    use crate::settings::DatabaseLimits;
    use crate::throttle::ThrottleReason;

    /// A ledger in which an operator pauses the run, and whose replica lags.
    #[derive(Default)]
    struct FakeControl {
        limits: Mutex<FleetLimits>,
        lag: Option<Duration>,
        hides_lag: bool,
        failures_left: AtomicU32,
        heartbeats: AtomicU32,
    }

    #[async_trait]
    impl FleetControl for FakeControl {
        async fn heartbeat(&self, _: &Heartbeat) -> Result<FleetLimits, StatementError> {
            self.heartbeats.fetch_add(1, Ordering::Relaxed);
            let left = self.failures_left.load(Ordering::Relaxed);
            self.failures_left
                .store(left.saturating_sub(1), Ordering::Relaxed);
            if left > 0 {
                return Err(StatementError::Unavailable("gone".into()));
            }
            Ok(self.limits.lock().clone())
        }

        async fn deregister(&self) -> Result<(), StatementError> {
            Ok(())
        }

        async fn replica_lag(&self) -> Result<Option<Duration>, StatementError> {
            if self.hides_lag {
                return Err(StatementError::Unavailable("permission denied".into()));
            }
            Ok(self.lag)
        }
    }

    fn pause(control: &FakeControl) {
        control.limits.lock().paused = Some("by ana".into());
    }

    fn starting() -> Heartbeat {
        Heartbeat::starting(WorkerRole::Feeder)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_heard_within_a_second_and_stands_while_the_database_is_away() {
        let control = FakeControl::default();
        let throttle = Throttle::for_rows(DatabaseLimits::default());
        let operator = async {
            sleep(Duration::from_millis(2_500)).await;
            assert_eq!(throttle.held(), None);
            pause(&control);
            sleep(Duration::from_secs(1)).await;
            let paused = Some(ThrottleReason::Paused("by ana".into()));
            assert_eq!(throttle.held(), paused);
            control.failures_left.store(u32::MAX, Ordering::Relaxed);
            sleep(Duration::from_mins(1)).await;
            assert_eq!(throttle.held(), paused);
            control.failures_left.store(0, Ordering::Relaxed);
            control.limits.lock().paused = None;
            sleep(Duration::from_secs(1)).await;
            assert_eq!(throttle.held(), None);
        };
        tokio::select! {
            () = send_heartbeats(&control, &throttle, starting, |_| {}) => {}
            () = operator => {}
        }
        assert!((60..70).contains(&control.heartbeats.load(Ordering::Relaxed)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_heard_where_the_replicas_lag_cannot_be_read() {
        let control = FakeControl {
            hides_lag: true,
            ..FakeControl::default()
        };
        let throttle = Throttle::for_rows(DatabaseLimits {
            replica_lag: Some(Duration::from_secs(5)),
            ..DatabaseLimits::default()
        });
        throttle.set_replica_lag(Some(Duration::from_secs(6)));
        let behind = throttle.held();
        let operator = async {
            sleep(Duration::from_millis(1_500)).await;
            assert_eq!(throttle.held(), behind, "the last one stands");
            pause(&control);
            sleep(Duration::from_secs(1)).await;
            let paused = Some(ThrottleReason::Paused("by ana".into()));
            assert_eq!(throttle.held(), paused);
        };
        tokio::select! {
            () = send_heartbeats(&control, &throttle, starting, |_| {}) => {}
            () = operator => {}
        }
    }

    #[tokio::test(start_paused = true)]
    async fn they_end_with_the_run() {
        let control = FakeControl::default();
        let throttle = Throttle::for_rows(DatabaseLimits::default());
        *control.limits.lock() = FleetLimits::of_gone_run();
        send_heartbeats(&control, &throttle, starting, |_| {}).await;
        assert!(matches!(throttle.held(), Some(ThrottleReason::Paused(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_heartbeat_is_retried_until_it_is_answered_or_the_process_stops() {
        let control = FakeControl {
            failures_left: AtomicU32::new(5),
            ..FakeControl::default()
        };
        pause(&control);
        let throttle = Throttle::for_rows(DatabaseLimits::default());
        let stop = CancellationToken::new();
        let began = Instant::now();
        send_first_heartbeat(&control, &throttle, &starting(), &stop).await;
        assert_eq!(began.elapsed().as_secs(), 5);
        assert!(throttle.held().is_some());
        control.failures_left.store(u32::MAX, Ordering::Relaxed);
        let first = starting();
        let sending = send_first_heartbeat(&control, &throttle, &first, &stop);
        let stopping = async {
            sleep(Duration::from_mins(10)).await;
            stop.cancel();
        };
        let ended = timeout(Duration::from_mins(11), async {
            tokio::join!(sending, stopping)
        });
        assert!(ended.await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_are_asked_about_only_where_their_lag_counts() {
        let control = FakeControl {
            lag: Some(Duration::from_mins(1)),
            ..FakeControl::default()
        };
        let limits = DatabaseLimits {
            replica_lag: Some(Duration::from_secs(5)),
            ..DatabaseLimits::default()
        };
        for (limits, is_held) in [(limits, true), (DatabaseLimits::default(), false)] {
            let throttle = Throttle::for_copies(4, limits);
            let sent = send_heartbeat(&control, &throttle, &starting()).await;
            assert!(sent.is_ok());
            assert_eq!(throttle.held().is_some(), is_held);
        }
    }
}
