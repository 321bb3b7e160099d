//! Shutdown: finish or release what is in hand within the grace, then go.

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What remains of the grace for releases once the work under way is given up.
const FOR_RELEASES: Duration = Duration::from_secs(2);

/// Waits for everything in hand; gives up what is not done when the grace is nearly over. True when
/// all was finished or released in time.
pub async fn drain(tasks: &TaskTracker, give_up: &CancellationToken, grace: Duration) -> bool {
    tasks.close();
    let for_work = grace.saturating_sub(FOR_RELEASES).max(grace / 2);
    if timeout(for_work, tasks.wait()).await.is_ok() {
        return true;
    }
    tracing::warn!(
        messages = tasks.len(),
        "the grace is nearly over: what is not done is given back to the queue"
    );
    give_up.cancel();
    timeout(grace.saturating_sub(for_work), tasks.wait())
        .await
        .is_ok()
}
