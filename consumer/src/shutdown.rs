//! Shutdown: finish or release what is in hand within the grace, then go.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What remains for releases once the work under way is given up.
const RELEASE_RESERVE: Duration = Duration::from_secs(2);

/// What remains of the grace for the process's own end: the runtime's threads get up to a second.
const EXIT_RESERVE: Duration = Duration::from_secs(1);

/// Waits for the last polls and for everything in hand; gives up what is not done in time. True when all was
/// finished or released. The grace counts from now: SIGKILL follows when it ends.
pub async fn drain(
    receivers: &TaskTracker,
    tasks: &TaskTracker,
    give_up: &CancellationToken,
    grace: Duration,
) -> bool {
    let began = Instant::now();
    // What is not released by the exit is left to its visibility timeout.
    let until_exit = grace.saturating_sub(EXIT_RESERVE.min(grace / 4));
    let until_give_up = until_exit
        .saturating_sub(RELEASE_RESERVE)
        .max(until_exit / 2);
    receivers.close();
    tasks.close();
    let all = async {
        // A receiver's last poll may still bring messages: their tasks are waited for after it.
        receivers.wait().await;
        tasks.wait().await;
    };
    tokio::pin!(all);
    if timeout_at(began + until_give_up, &mut all).await.is_ok() {
        return true;
    }
    tracing::warn!(
        messages = tasks.len(),
        "the grace is nearly over: what is not done is given back to the queue"
    );
    give_up.cancel();
    timeout_at(began + until_exit, all).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::sleep;

    /// How long a drain takes from the signal, with a poll and a task that take so many milliseconds;
    /// the task takes 50 more to be released when it is given up.
    async fn drained_after(grace: u64, poll: u64, task: u64) -> (bool, u128) {
        let (receivers, tasks) = (TaskTracker::new(), TaskTracker::new());
        let give_up = CancellationToken::new();
        let given_up = give_up.clone();
        receivers.spawn(sleep(Duration::from_millis(poll)));
        tasks.spawn(async move {
            tokio::select! {
                () = sleep(Duration::from_millis(task)) => {}
                () = given_up.cancelled() => sleep(Duration::from_millis(50)).await,
            }
        });
        let signal = Instant::now();
        let grace = Duration::from_millis(grace);
        let done = drain(&receivers, &tasks, &give_up, grace).await;
        (done, signal.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_takes_as_long_as_its_work() {
        assert_eq!(drained_after(25_000, 1000, 1700).await, (true, 1700));
        assert_eq!(drained_after(25_000, 1000, 10).await, (true, 1000));
    }

    #[tokio::test(start_paused = true)]
    async fn the_grace_counts_from_the_signal_whatever_the_time_was_spent_on() {
        for grace in [2000, 3000, 25_000] {
            for poll in [0, 1000] {
                let (done, after) = drained_after(grace, poll, 3_600_000).await;
                assert!(done && after < u128::from(grace), "{grace}: {after}");
            }
        }
    }
}
