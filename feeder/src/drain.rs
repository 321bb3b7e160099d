//! Waiting for the queue to drain at the end of a sweep, so that the next sweep does not feed again
//! what is still on its way.

use std::time::Duration;

use bucket_brigade_common::queue::Queue;
use bucket_brigade_common::scope::Scope;
use tokio::time::Instant;

use crate::persist::{Persist, Stopped};
use crate::progress::Progress;

/// How often the queue is asked.
const ASK: Duration = Duration::from_secs(1);

/// The queue's counts are approximate: it counts as empty when it says so this many times in a row.
const EMPTY_ANSWERS: u32 = 3;

/// Without any progress for this long, messages that nobody can process may be circling, or no
/// consumer may be running; the table tells which.
const STALLED: Duration = Duration::from_secs(30);

/// Waits until the queue is empty, or until nothing is left to move although it is not.
///
/// # Errors
/// [`Stopped`]
pub async fn drain(
    queue: &dyn Queue,
    scope: &dyn Scope,
    progress: &Progress,
    persist: Persist<'_>,
) -> Result<(), Stopped> {
    progress.set_phase("waiting for the queue to drain");
    let mut empty_answers = 0;
    let mut stall = Stall::new();
    while empty_answers < EMPTY_ANSWERS {
        let attributes = persist
            .queue("asking for the backlog", async || queue.attributes().await)
            .await?;
        let numbers = persist
            .database("reading progress", async || scope.progress().await)
            .await?;
        let backlog = attributes.backlog.total();
        empty_answers = if backlog == 0 { empty_answers + 1 } else { 0 };
        if stall.is_stalled((backlog, numbers.accounted())) {
            let left = persist
                .database("looking for rows", async || scope.anything_left().await)
                .await?;
            if !left {
                return Ok(());
            }
            tracing::warn!(
                backlog,
                "{backlog} messages wait in the queue and nothing has moved for a while: are consumers running?"
            );
        }
        persist.pause(ASK).await?;
    }
    Ok(())
}

/// Notices when nothing changes any more; each time twice as late, because looking costs a scan.
struct Stall {
    last: Option<(u64, u64)>,
    since: Instant,
    patience: Duration,
}

impl Stall {
    fn new() -> Self {
        Self {
            last: None,
            since: Instant::now(),
            patience: STALLED,
        }
    }

    fn is_stalled(&mut self, now: (u64, u64)) -> bool {
        if self.last != Some(now) {
            self.last = Some(now);
            self.since = Instant::now();
            return false;
        }
        if self.since.elapsed() < self.patience {
            return false;
        }
        self.since = Instant::now();
        self.patience *= 2;
        true
    }
}
