//! Once a second each process says what it is doing, and learns what it may do. While the database does
//! not answer, the last limits stand.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::fleet_control::{FleetControl, HEARTBEAT_INTERVAL, Heartbeat};
use crate::move_ledger::StatementError;
use crate::throttle::Throttle;

/// How often the first heartbeat is retried.
const FIRST_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Sends heartbeats for as long as it is polled.
pub async fn send_heartbeats(
    control: &dyn FleetControl,
    throttle: &Throttle,
    mut current: impl FnMut() -> Heartbeat,
) {
    let mut ticks = interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let sent = send_heartbeat(control, throttle, &current()).await;
        if let Err(error) = sent {
            tracing::debug!(%error, "no heartbeat could be sent");
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
    let lag = if throttle.watches_replicas() {
        control.replica_lag().await?
    } else {
        None
    };
    throttle.set_limits(limits, lag);
    Ok(())
}
