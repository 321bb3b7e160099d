//! The backlog limit: the feeder does not outrun the consumers, so that no message can come near the
//! queue's retention, and a stop leaves little behind.

use std::time::Duration;

use bucket_brigade_common::queue::{self, Queue};
use tokio::time::Instant;

use crate::persist::{Persist, Stopped};
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
    persist: Persist<'a>,
}

impl<'a> BacklogLimit<'a> {
    /// A limit of `max_backlog` messages, in flight ones included.
    pub fn new(
        queue: &'a dyn Queue,
        max_backlog: u64,
        progress: &'a Progress,
        persist: Persist<'a>,
    ) -> Self {
        Self {
            queue,
            max_backlog,
            room: 0,
            asked: None,
            progress,
            persist,
        }
    }

    /// Waits for room and takes up to `most` of it.
    ///
    /// # Errors
    /// [`Stopped`]
    pub async fn take(&mut self, most: usize) -> Result<usize, Stopped> {
        let wanted = u64::try_from(most)
            .unwrap_or(u64::MAX)
            .min(self.worthwhile());
        while self.room < wanted {
            self.ask().await?;
        }
        let taken = self.room.min(u64::try_from(most).unwrap_or(u64::MAX));
        self.room -= taken;
        Ok(usize::try_from(taken).unwrap_or(most))
    }

    /// A request costs the same for one message as for ten, so less than ten is waited for; but not
    /// when the limit is so low that a few circling messages would keep it from ever being reached.
    fn worthwhile(&self) -> u64 {
        BATCH.min((self.max_backlog / 10).max(1))
    }

    /// The queue's counts lag behind; asking rarely lets what was sent show up in them.
    async fn ask(&mut self) -> Result<(), Stopped> {
        if let Some(asked) = self.asked {
            self.persist
                .pause(ASK_AGAIN.saturating_sub(asked.elapsed()))
                .await?;
        }
        let attributes = self
            .persist
            .queue("asking for the backlog", async || {
                self.queue.attributes().await
            })
            .await?;
        self.asked = Some(Instant::now());
        self.room = self.max_backlog.saturating_sub(attributes.backlog.total());
        self.progress.set_phase(if self.room < self.worthwhile() {
            "waiting: backlog full"
        } else {
            "feeding"
        });
        Ok(())
    }
}
