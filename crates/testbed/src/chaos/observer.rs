//! Passes every request to S3 and SQS on to those it concerns.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::delete_checker::DeleteChecker;
use crate::application::Application;
use crate::cloud::{CloudObserver, ObservedRequest};
use crate::run::is_of_side_run;
use crate::seed::{SeededRowKind, SeededRows};
use crate::traffic::ActiveRows;

const CONSUMER_CALLER: &str = "consumer";
const FEEDER_CALLER: &str = "feeder";

/// Passes what consumers receive and delete to the delete checker, the rows in hand to the writer that
/// races with them, and what the feeder sent to the sender of duplicates.
pub struct ChaosObserver {
    delete_checker: Arc<DeleteChecker>,
    active_rows: Arc<ActiveRows>,
    sent_bodies: UnboundedSender<String>,
    /// The rows by the keys of their copies.
    ids_by_copy_key: HashMap<String, String>,
}

impl ChaosObserver {
    /// A lookout over what consumers and feeder do for these rows; the bodies of sent messages go to
    /// `fed`.
    pub fn new(
        application: &Application,
        seeded: &SeededRows,
        auditor: Arc<DeleteChecker>,
        hot: Arc<ActiveRows>,
        fed: UnboundedSender<String>,
    ) -> Self {
        let id_of = |path: &str, id: &str| {
            let rest = path.strip_prefix(&application.old_prefix)?;
            let copy = application.location_of(&format!("{}{rest}", application.new_prefix));
            Some((copy.key, id.to_owned()))
        };
        let rows = seeded.rows_of_kind(SeededRowKind::ToMove);
        let ids = rows.filter_map(|row| id_of(&row.path, &row.id)).collect();
        Self {
            delete_checker: auditor,
            active_rows: hot,
            sent_bodies: fed,
            ids_by_copy_key: ids,
        }
    }

    /// Every other row is left to be moved in peace.
    fn mark_active(&self, id: &str) {
        if id.bytes().last().is_some_and(|digit| digit % 2 == 0) {
            self.active_rows.add(id);
        }
    }

    fn handle_received(&self, response: &Value) {
        self.delete_checker.record_received(response);
        for message in response["Messages"].as_array().into_iter().flatten() {
            let body = message["Body"].as_str().unwrap_or_default();
            let task: Value = serde_json::from_str(body).unwrap_or_default();
            // Rows of other runs have the same ids.
            if let Some(id) = task["id"].as_str()
                && !task["path"].as_str().is_some_and(is_of_side_run)
            {
                self.mark_active(id);
            }
        }
    }

    fn forward_sent(&self, request: &Value, response: &Value) {
        for body in sent_bodies(request, response) {
            // There is no listener when there are to be no duplicates.
            let _ = self.sent_bodies.send(body.to_owned());
        }
    }
}

/// Those bodies of a batch that the queue took.
fn sent_bodies<'a>(request: &'a Value, response: &'a Value) -> impl Iterator<Item = &'a str> {
    let taken = response["Successful"].as_array().into_iter().flatten();
    taken.filter_map(|taken| {
        let mut entries = request["Entries"].as_array().into_iter().flatten();
        let entry = entries.find(|entry| entry["Id"] == taken["Id"])?;
        entry["MessageBody"].as_str()
    })
}

impl CloudObserver for ChaosObserver {
    fn before_request<'a>(&'a self, request: ObservedRequest<'a>) -> BoxFuture<'a, ()> {
        match (request.caller, request.operation) {
            (CONSUMER_CALLER, "CopyObject" | "PutObject") => {
                if let Some(id) = self.ids_by_copy_key.get(request.key) {
                    self.mark_active(id);
                }
            }
            (CONSUMER_CALLER, "DeleteMessage" | "DeleteMessageBatch") => {
                return async move {
                    self.delete_checker
                        .check_delete(&parse_json(request.body))
                        .await;
                }
                .boxed();
            }
            _ => {}
        }
        futures::future::ready(()).boxed()
    }

    fn after_response(&self, request: ObservedRequest<'_>, response: &[u8]) {
        match (request.caller, request.operation) {
            (CONSUMER_CALLER, "ReceiveMessage") => self.handle_received(&parse_json(response)),
            (CONSUMER_CALLER, "SendMessageBatch") => {
                let (request, response) = (parse_json(request.body), parse_json(response));
                let is_dead = |url: &str| url.ends_with("-dlq");
                if request["QueueUrl"].as_str().is_some_and(is_dead) {
                    let bodies = sent_bodies(&request, &response).map(str::to_owned);
                    self.delete_checker.record_dead_letters(bodies.collect());
                }
            }
            (FEEDER_CALLER, "SendMessageBatch") => {
                self.forward_sent(&parse_json(request.body), &parse_json(response));
            }
            _ => {}
        }
    }
}

fn parse_json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}
