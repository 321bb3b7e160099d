//! A client behind which one thing is down.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::catalog::{
    Catalog, CatalogError, Failure, Move, PoisonRecord, Row, Settlement,
};
use bucket_brigade_common::object_store::{Copied, Destination, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::Route;
use bucket_brigade_common::queue::{Entry, Message, Outgoing, Queue, QueueAttributes, QueueError};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::scope::{Page, Position, Progress, Scope};
use bucket_brigade_simulation::client::Client;
use tokio::time::sleep;

/// What is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// Writing to the destination is denied.
    AccessDenied,
    /// Every request to S3 is refused for its credentials.
    ExpiredToken,
    /// The database.
    Database,
    /// The queue is not there.
    Queue,
}

pub(crate) struct Broken {
    client: Arc<Client>,
    outage: Mutex<Option<Outage>>,
}

impl Broken {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        let outage = Mutex::new(None);
        Self { client, outage }
    }

    pub(crate) fn breaks(&self, outage: Outage) {
        *self.outage.lock().unwrap() = Some(outage);
    }

    pub(crate) fn heals(&self) {
        *self.outage.lock().unwrap() = None;
    }

    /// Whether this is down; an answer takes a while then too.
    async fn is_down(&self, what: Outage) -> bool {
        let is_down = *self.outage.lock().unwrap() == Some(what);
        if is_down {
            sleep(Duration::from_millis(20)).await;
        }
        is_down
    }

    async fn store(&self, writes: bool) -> Result<(), StoreError> {
        if self.is_down(Outage::ExpiredToken).await {
            return Err(StoreError::Systemic {
                code: "ExpiredToken".into(),
                message: "the token has expired".into(),
            });
        }
        if writes && self.is_down(Outage::AccessDenied).await {
            return Err(StoreError::Denied {
                code: "AccessDenied".into(),
                message: "access denied".into(),
            });
        }
        Ok(())
    }

    async fn database(&self) -> Result<(), CatalogError> {
        if self.is_down(Outage::Database).await {
            return Err(CatalogError::Unavailable("connection refused".into()));
        }
        Ok(())
    }

    async fn queue(&self, operation: &'static str) -> Result<(), QueueError> {
        if self.is_down(Outage::Queue).await {
            return Err(QueueError::Refused {
                operation,
                code: "AWS.SimpleQueueService.NonExistentQueue".into(),
                message: "the queue does not exist".into(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Broken {
    async fn copy(&self, route: &Route) -> Result<Copied, StoreError> {
        self.store(true).await?;
        self.client.copy(route).await
    }

    async fn copy_in_parts(&self, route: &Route) -> Result<Copied, StoreError> {
        self.copy(route).await
    }

    async fn compare(&self, route: &Route) -> Result<Destination, StoreError> {
        self.store(false).await?;
        self.client.compare(route).await
    }
}

#[async_trait]
impl Queue for Broken {
    async fn send(&self, messages: &[Outgoing]) -> Result<Vec<Entry>, QueueError> {
        self.queue("SendMessageBatch").await?;
        self.client.send(messages).await
    }

    async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        self.queue("ReceiveMessage").await?;
        self.client.receive(most, wait, visibility).await
    }

    async fn delete(&self, receipt_handles: &[String]) -> Result<Vec<Entry>, QueueError> {
        self.queue("DeleteMessageBatch").await?;
        self.client.delete(receipt_handles).await
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<Entry>, QueueError> {
        self.queue("ChangeMessageVisibilityBatch").await?;
        self.client.change_visibility(changes).await
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        self.queue("GetQueueAttributes").await?;
        self.client.attributes().await
    }
}

#[async_trait]
impl Catalog for Broken {
    async fn look(&self, ids: &[RowId]) -> Result<HashMap<RowId, Row>, CatalogError> {
        self.database().await?;
        self.client.look(ids).await
    }

    async fn commit(&self, moves: &[Move]) -> Result<HashSet<RowId>, CatalogError> {
        self.database().await?;
        self.client.commit(moves).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<(), CatalogError> {
        self.database().await?;
        self.client.settle(settlements).await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<(), CatalogError> {
        self.database().await?;
        self.client.fail(failures).await
    }

    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), CatalogError> {
        self.database().await?;
        self.client.record_poison(records).await
    }
}

#[async_trait]
impl Scope for Broken {
    async fn position(&self) -> Result<Position, CatalogError> {
        self.database().await?;
        self.client.position().await
    }

    async fn page(&self, cursor: Option<&RowId>, size: u32) -> Result<Page, CatalogError> {
        self.database().await?;
        self.client.page(cursor, size).await
    }

    async fn advance(&self, cursor: &RowId, fed: u64) -> Result<(), CatalogError> {
        self.database().await?;
        self.client.advance(cursor, fed).await
    }

    async fn begin_sweep(&self) -> Result<(), CatalogError> {
        self.database().await?;
        self.client.begin_sweep().await
    }

    async fn count_scope(&self) -> Result<u64, CatalogError> {
        self.database().await?;
        self.client.count_scope().await
    }

    async fn progress(&self) -> Result<Progress, CatalogError> {
        self.database().await?;
        self.client.progress().await
    }

    async fn anything_left(&self) -> Result<bool, CatalogError> {
        self.database().await?;
        self.client.anything_left().await
    }

    async fn settle_stale_failures(&self) -> Result<u64, CatalogError> {
        self.database().await?;
        self.client.settle_stale_failures().await
    }

    async fn failures_by_code(&self) -> Result<Vec<(String, u64)>, CatalogError> {
        self.database().await?;
        self.client.failures_by_code().await
    }

    async fn finish(&self) -> Result<(), CatalogError> {
        self.database().await?;
        self.client.finish().await
    }
}
