//! Decide: does this message's row still ask for the move?

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::catalog::{Catalog, Row};
use bucket_brigade_common::message::Task;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::RowId;
use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use crate::desk::{Answer, Desk};
use crate::gather::Limits;
use crate::health::Health;
use crate::step::{Event, Seen};

/// Fifty rows make a statement worth its while; nobody waits for them longer than a copy takes.
const LIMITS: Limits = Limits {
    size: 200,
    enough: 50,
    linger: Duration::from_millis(20),
    in_flight: 1,
};

/// Reads rows in batches and measures them against their messages.
pub struct Decide {
    rows: Desk<RowId, Option<Row>>,
    rule: PathRule,
}

impl Decide {
    /// Decides on what the catalog holds.
    pub fn new(
        catalog: Arc<dyn Catalog>,
        rule: PathRule,
        health: Health,
        stop: CancellationToken,
    ) -> Self {
        let rows = Desk::open(LIMITS, health, stop, move |ids: Arc<[RowId]>| {
            let catalog = Arc::clone(&catalog);
            async move {
                let found = catalog.look(&ids).await?;
                Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
            }
            .boxed()
        });
        Self { rows, rule }
    }

    /// Reads the task's row.
    pub async fn look(&self, task: &Task) -> Event {
        let row = match self.rows.submit(task.id.clone()).await {
            Answer::Done(row) => row,
            // An id that the database cannot even read names no row.
            Answer::Refused { .. } => None,
            Answer::Interrupted => return Event::Interrupted,
        };
        Event::Looked(Seen::of(row, &task.route, &self.rule))
    }
}
