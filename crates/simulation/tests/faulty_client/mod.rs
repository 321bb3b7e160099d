//! A client behind which one thing is down.

pub(crate) mod captured_log;

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::empty_scope::PathSample;
use bucket_brigade_common::ledger::feed_source::{
    CursorPosition, FeedSource, PageReader, QueueShare, RowPage, RunProgress, SweepAccess,
};
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, CurrentRow, MoveFailure, MoveLedger, PendingMove, PoisonRecord, StatementError,
};
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::{
    CopiedObject, DestinationState, ObjectStore, StoreError,
};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_common::queue::{
    DeadLetter, EntryOutcome, MessageQueue, OutgoingMessage, QueueAttributes, QueueError,
    ReceivedMessage,
};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_simulation::client::SimulatedClient;
use tokio::time::sleep;

/// What is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SimulatedOutage {
    /// Writing to the destination is denied.
    AccessDenied,
    /// What writes to the destination fails.
    ReadOnly,
    /// What writes to the destination has no response; a HEAD has.
    HungCopies,
    /// What writes to the destination is throttled.
    Throttled,
    /// A receive is answered at once, and brings nothing.
    EarlyReceives,
    /// Every request to S3 is refused for its credentials.
    ExpiredToken,
    /// The database.
    Database,
    /// The queue is not there.
    Queue,
}

/// A copy without a response, by the default of `COPY_TIMEOUT`.
const HUNG_COPY: Duration = Duration::from_secs(15 + 120);

const REFUSED_COPY: Duration = Duration::from_millis(20);

pub(crate) struct FaultyClient {
    client: Arc<SimulatedClient>,
    outage: Mutex<Option<SimulatedOutage>>,
    /// By source key.
    broken_objects: Mutex<HashMap<String, (StoreError, u32)>>,
    highest_receive_count: AtomicU32,
    receives: AtomicU32,
}

impl FaultyClient {
    pub(crate) fn new(client: Arc<SimulatedClient>) -> Self {
        Self {
            client,
            outage: Mutex::default(),
            broken_objects: Mutex::default(),
            highest_receive_count: AtomicU32::new(0),
            receives: AtomicU32::new(0),
        }
    }

    /// Every copy of this object fails like this.
    pub(crate) fn break_object(&self, source_key: String, error: StoreError) {
        let mut broken = self.broken_objects.lock().unwrap();
        broken.insert(source_key, (error, 0));
    }

    /// How often the broken object that was copied most was copied.
    pub(crate) fn most_copies(&self) -> u32 {
        let broken = self.broken_objects.lock().unwrap();
        broken
            .values()
            .map(|(_, copies)| *copies)
            .max()
            .unwrap_or(0)
    }

    pub(crate) fn receives(&self) -> u32 {
        self.receives.load(Ordering::Relaxed)
    }

    pub(crate) fn highest_receive_count(&self) -> u32 {
        self.highest_receive_count.load(Ordering::Relaxed)
    }

    async fn check_object(&self, route: &MoveRoute) -> Result<(), StoreError> {
        let error = {
            let mut broken = self.broken_objects.lock().unwrap();
            let Some((error, copies)) = broken.get_mut(&route.source_key) else {
                return Ok(());
            };
            *copies += 1;
            error.clone()
        };
        let is_hung = error.code() == "Timeout";
        sleep(if is_hung { HUNG_COPY } else { REFUSED_COPY }).await;
        Err(error)
    }

    pub(crate) fn start_outage(&self, outage: SimulatedOutage) {
        *self.outage.lock().unwrap() = Some(outage);
    }

    pub(crate) fn end_outage(&self) {
        *self.outage.lock().unwrap() = None;
    }

    /// Whether this is down; an answer takes a while then too.
    async fn is_down(&self, what: SimulatedOutage) -> bool {
        let is_down = *self.outage.lock().unwrap() == Some(what);
        if is_down {
            sleep(Duration::from_millis(20)).await;
        }
        is_down
    }

    async fn check_store(&self, writes: bool) -> Result<(), StoreError> {
        if self.is_down(SimulatedOutage::ExpiredToken).await {
            return Err(StoreError::Systemic {
                code: "ExpiredToken".into(),
                message: "the token has expired".into(),
            });
        }
        if writes && self.is_down(SimulatedOutage::AccessDenied).await {
            return Err(StoreError::Denied {
                code: "AccessDenied".into(),
                message: "access denied".into(),
            });
        }
        if writes && self.is_down(SimulatedOutage::HungCopies).await {
            sleep(HUNG_COPY).await;
            return Err(StoreError::transient("Timeout", "no response"));
        }
        if writes && self.is_down(SimulatedOutage::Throttled).await {
            return Err(throttled("ServiceUnavailable"));
        }
        if writes && self.is_down(SimulatedOutage::ReadOnly).await {
            return Err(StoreError::Transient {
                code: "XMinioStorageFull".into(),
                message: "storage backend has reached its minimum free drive threshold".into(),
            });
        }
        Ok(())
    }

    async fn check_database(&self) -> Result<(), StatementError> {
        if self.is_down(SimulatedOutage::Database).await {
            return Err(StatementError::Unavailable("connection refused".into()));
        }
        Ok(())
    }

    async fn check_queue(&self, operation: &'static str) -> Result<(), QueueError> {
        if self.is_down(SimulatedOutage::Queue).await {
            return Err(QueueError::Refused {
                operation,
                code: "AWS.SimpleQueueService.NonExistentQueue".into(),
                message: "the queue does not exist".into(),
            });
        }
        Ok(())
    }
}

pub(crate) fn throttled(code: &str) -> StoreError {
    StoreError::Throttled {
        code: code.into(),
        message: "reduce your request rate".into(),
    }
}

#[async_trait]
impl ObjectStore for FaultyClient {
    async fn copy(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        self.check_store(true).await?;
        self.check_object(route).await?;
        self.client.copy(route).await
    }

    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        self.copy(route).await
    }

    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        self.check_store(false).await?;
        self.client.compare_objects(route).await
    }

    async fn check_rights(
        &self,
        rule: &PathRule,
        source_keys: &[String],
    ) -> Result<bool, StoreError> {
        self.check_store(true).await?;
        self.client.check_rights(rule, source_keys).await
    }

    async fn silent_side(&self) -> Option<BucketSide> {
        self.client.silent_side().await
    }
}

#[async_trait]
impl MessageQueue for FaultyClient {
    async fn send_batch(
        &self,
        messages: &[OutgoingMessage],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        self.check_queue("SendMessageBatch").await?;
        self.client.send_batch(messages).await
    }

    async fn receive_batch(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        self.check_queue("ReceiveMessage").await?;
        self.receives.fetch_add(1, Ordering::Relaxed);
        if self.is_down(SimulatedOutage::EarlyReceives).await {
            return Ok(Vec::new());
        }
        let messages = self.client.receive_batch(most, wait, visibility).await?;
        for message in &messages {
            let count = message.receive_count;
            self.highest_receive_count
                .fetch_max(count, Ordering::Relaxed);
        }
        Ok(messages)
    }

    async fn delete_batch(
        &self,
        receipt_handles: &[String],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        self.check_queue("DeleteMessageBatch").await?;
        self.client.delete_batch(receipt_handles).await
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        self.check_queue("ChangeMessageVisibilityBatch").await?;
        self.client.change_visibility(changes).await
    }

    async fn send_dead_letters(
        &self,
        letters: &[DeadLetter],
    ) -> Result<Vec<EntryOutcome>, QueueError> {
        self.check_queue("SendMessageBatch").await?;
        self.client.send_dead_letters(letters).await
    }

    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.check_queue("GetQueueAttributes").await?;
        self.client.queue_attributes().await
    }
}

#[async_trait]
impl MoveLedger for FaultyClient {
    async fn read_rows(&self, ids: &[RowId]) -> Result<HashMap<RowId, CurrentRow>, StatementError> {
        self.check_database().await?;
        self.client.read_rows(ids).await
    }

    async fn commit(&self, moves: &[&PendingMove]) -> Result<HashSet<RowId>, StatementError> {
        self.check_database().await?;
        self.client.commit(moves).await
    }

    async fn record_changed_rows(&self, settlements: &[ChangedRow]) -> Result<(), StatementError> {
        self.check_database().await?;
        self.client.record_changed_rows(settlements).await
    }

    async fn record_failures(&self, failures: &[MoveFailure]) -> Result<(), StatementError> {
        self.check_database().await?;
        self.client.record_failures(failures).await
    }

    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), StatementError> {
        self.check_database().await?;
        self.client.record_poison(records).await
    }
}

#[async_trait]
impl PageReader for FaultyClient {
    async fn prepare(&self) -> Result<SweepAccess, StatementError> {
        Ok(SweepAccess::Stretches)
    }

    async fn read(&self, cursor: Option<&RowId>, size: u32) -> Result<RowPage, StatementError> {
        self.check_database().await?;
        self.client.read(cursor, size).await
    }
}

#[async_trait]
impl FeedSource for FaultyClient {
    async fn cursor_position(&self) -> Result<CursorPosition, StatementError> {
        self.check_database().await?;
        self.client.cursor_position().await
    }

    async fn advance_cursor(&self, cursor: &RowId, fed: u64) -> Result<(), StatementError> {
        self.check_database().await?;
        self.client.advance_cursor(cursor, fed).await
    }

    async fn begin_sweep(&self) -> Result<(), StatementError> {
        self.check_database().await?;
        self.client.begin_sweep().await
    }

    async fn queue_share(&self) -> Result<Option<QueueShare>, StatementError> {
        self.check_database().await?;
        self.client.queue_share().await
    }

    async fn run_progress(&self) -> Result<RunProgress, StatementError> {
        self.check_database().await?;
        self.client.run_progress().await
    }

    async fn has_rows_left(
        &self,
        cursor: Option<&RowId>,
    ) -> Result<ControlFlow<bool, RowId>, StatementError> {
        self.check_database().await?;
        self.client.has_rows_left(cursor).await
    }

    async fn settle_stale_failures(
        &self,
        cursor: Option<&RowId>,
    ) -> Result<ControlFlow<(), RowId>, StatementError> {
        self.check_database().await?;
        self.client.settle_stale_failures(cursor).await
    }

    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, StatementError> {
        self.check_database().await?;
        self.client.failures_by_code().await
    }

    async fn sample_paths(&self) -> Result<PathSample, StatementError> {
        self.check_database().await?;
        self.client.sample_paths().await
    }

    async fn finish_run(&self) -> Result<bool, StatementError> {
        self.check_database().await?;
        self.client.finish_run().await
    }
}
