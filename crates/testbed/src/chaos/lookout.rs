//! Sees all that passes at S3 and SQS and tells it to those it concerns.

use std::collections::HashMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::Value;
use tokio::sync::mpsc::UnboundedSender;

use super::auditor::Auditor;
use crate::application::Application;
use crate::cloud::{Passing, Watch};
use crate::seed::{Kind, Seeded};
use crate::traffic::Hot;

const CONSUMER: &str = "consumer";
const FEEDER: &str = "feeder";

/// Tells the auditor what consumers receive and delete, the writer that wants to be in the way which
/// rows are in hand, and whoever sends duplicates what the feeder sent.
pub struct Lookout {
    auditor: Arc<Auditor>,
    hot: Arc<Hot>,
    fed: UnboundedSender<String>,
    /// The rows by the keys of their copies.
    ids: HashMap<String, String>,
}

impl Lookout {
    /// A lookout over what consumers and feeder do for these rows; the bodies of sent messages go to
    /// `fed`.
    pub fn new(
        application: &Application,
        seeded: &Seeded,
        auditor: Arc<Auditor>,
        hot: Arc<Hot>,
        fed: UnboundedSender<String>,
    ) -> Self {
        let id_of = |path: &str, id: &str| {
            let rest = path.strip_prefix(&application.old_prefix)?;
            Some((format!("{}{rest}", application.new_prefix), id.to_owned()))
        };
        let rows = seeded.of(Kind::ToMove);
        let ids = rows.filter_map(|row| id_of(&row.path, &row.id)).collect();
        Self {
            auditor,
            hot,
            fed,
            ids,
        }
    }

    /// Every other row is left to be moved in peace.
    fn is_in_hand(&self, id: &str) {
        if id.bytes().last().is_some_and(|digit| digit % 2 == 0) {
            self.hot.add(id);
        }
    }

    fn received(&self, answer: &Value) {
        self.auditor.received(answer);
        for message in answer["Messages"].as_array().into_iter().flatten() {
            let body = message["Body"].as_str().unwrap_or_default();
            let task: Value = serde_json::from_str(body).unwrap_or_default();
            if let Some(id) = task["id"].as_str() {
                self.is_in_hand(id);
            }
        }
    }

    /// Those bodies of a batch that the queue took.
    fn sent(&self, request: &Value, answer: &Value) {
        for taken in answer["Successful"].as_array().into_iter().flatten() {
            let mut entries = request["Entries"].as_array().into_iter().flatten();
            let entry = entries.find(|entry| entry["Id"] == taken["Id"]);
            if let Some(body) = entry.and_then(|entry| entry["MessageBody"].as_str()) {
                // Nobody listens when there are to be no duplicates.
                let _ = self.fed.send(body.to_owned());
            }
        }
    }
}

impl Watch for Lookout {
    fn before<'a>(&'a self, request: Passing<'a>) -> BoxFuture<'a, ()> {
        match (request.caller, request.operation) {
            (CONSUMER, "CopyObject") => {
                if let Some(id) = self.ids.get(request.key) {
                    self.is_in_hand(id);
                }
            }
            (CONSUMER, "DeleteMessage" | "DeleteMessageBatch") => {
                return async move { self.auditor.deleting(&json(request.body)).await }.boxed();
            }
            _ => {}
        }
        futures::future::ready(()).boxed()
    }

    fn after(&self, request: Passing<'_>, answer: &[u8]) {
        match (request.caller, request.operation) {
            (CONSUMER, "ReceiveMessage") => self.received(&json(answer)),
            (FEEDER, "SendMessageBatch") => self.sent(&json(request.body), &json(answer)),
            _ => {}
        }
    }
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}
