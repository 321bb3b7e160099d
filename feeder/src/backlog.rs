//! The backlog limit: the feeder does not outrun the consumers, so that no message can come near the
//! queue's retention, and a stop leaves little behind.

use std::time::Duration;

use bucket_brigade_common::queue::{self, Queue};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::persist::{Stopped, pause, persist};
use crate::progress::Progress;

/// How often the queue is asked while there is no room.
const ASK_AGAIN: Duration = Duration::from_secs(1);

const BATCH: u64 = queue::BATCH as u64;

/// How much may be sent before the queue is asked again.
pub struct BacklogLimit<'a> {
    queue: &'a dyn Queue,
    max_backlog: u64,
    room: u64,
    asked: Option<Instant>,
    progress: &'a Progress,
    stop: &'a CancellationToken,
}

impl<'a> BacklogLimit<'a> {
    /// A limit of `max_backlog` messages, in flight ones included.
    pub fn new(
        queue: &'a dyn Queue,
        max_backlog: u64,
        progress: &'a Progress,
        stop: &'a CancellationToken,
    ) -> Self {
        Self {
            queue,
            max_backlog,
            room: 0,
            asked: None,
            progress,
            stop,
        }
    }

    /// Waits for room and takes up to `most` of it.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn take(&mut self, most: usize) -> Result<usize, Stopped> {
        while self.room == 0 {
            self.ask().await?;
        }
        let taken = self.room.min(u64::try_from(most).unwrap_or(u64::MAX));
        self.room -= taken;
        Ok(usize::try_from(taken).unwrap_or(most))
    }

    /// The queue's counts lag behind; asking rarely lets what was sent show up in them.
    async fn ask(&mut self) -> Result<(), Stopped> {
        if let Some(asked) = self.asked {
            pause(ASK_AGAIN.saturating_sub(asked.elapsed()), self.stop).await?;
        }
        let attributes = persist("asking the queue for its backlog", self.stop, async || {
            self.queue.attributes().await
        })
        .await?;
        self.asked = Some(Instant::now());
        let room = self.max_backlog.saturating_sub(attributes.backlog.total());
        // A request costs the same for one message as for ten.
        self.room = if room < BATCH { room } else { room - room % BATCH };
        self.progress.set_phase(if self.room == 0 {
            "waiting: backlog full"
        } else {
            "feeding"
        });
        Ok(())
    }
}
