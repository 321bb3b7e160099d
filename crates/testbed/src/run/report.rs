//! The figures at the end.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::environment::RunEnvironment;
use crate::checker::CheckReport;
use crate::cloud::CloudRequestCounts;
use crate::traffic::TrafficReport;

/// What `--json` prints, in this order.
#[derive(Debug, Serialize)]
pub(crate) struct RunReport {
    images: u64,
    moved: u64,
    changed_by_application: u64,
    failed: u64,
    already_moved: u64,
    reads: u64,
    broken_reads: u64,
    application_writes: u64,
    lost_application_writes: u64,
    overwritten_objects: u64,
    queue_left: u64,
    dead_letters: u64,
    s3_copies: u64,
    sqs_requests: u64,
    seconds: f64,
    /// The requests of feeder and consumers by operation, for people.
    #[serde(skip)]
    requests_by_operation: BTreeMap<String, u64>,
}

impl RunReport {
    pub(crate) async fn collect(
        environment: &RunEnvironment,
        verdict: &CheckReport,
        traffic: &TrafficReport,
        seconds: f64,
    ) -> Result<Self> {
        let requests = environment.cloud.request_counts();
        Ok(Self {
            images: verdict.images,
            moved: verdict.moved,
            changed_by_application: verdict.changed_by_application,
            failed: verdict.failed,
            already_moved: verdict.already_moved,
            reads: traffic.reads,
            broken_reads: traffic.broken_reads,
            application_writes: traffic.application_writes + traffic.deletes,
            lost_application_writes: verdict.lost_application_writes,
            overwritten_objects: verdict.overwritten_objects,
            queue_left: environment.queue_depth().await?.total(),
            dead_letters: environment.dead_letters().await?,
            s3_copies: requests.count_operation_by("consumer", "CopyObject"),
            sqs_requests: requests.total_sqs_by(&["feeder", "consumer"]),
            seconds: (seconds * 100.0).round() / 100.0,
            requests_by_operation: requests_by_operation(&requests),
        })
    }

    /// Whether every image is in one of the four states, and nothing is left in the queue.
    pub(crate) fn is_complete(&self) -> bool {
        let ended = self.moved + self.changed_by_application + self.failed + self.already_moved;
        self.queue_left == 0 && ended == self.images
    }

    /// What is amiss where [`Report::is_complete`] is false.
    pub(crate) fn describe_completeness(&self) -> String {
        format!(
            "of {} images {} moved, {} were changed by the application, {} failed and {} had moved before; {} messages are left in the queue",
            self.images,
            self.moved,
            self.changed_by_application,
            self.failed,
            self.already_moved,
            self.queue_left
        )
    }

    pub(crate) fn has_passed(&self, verdict: &CheckReport) -> bool {
        verdict.has_passed() && self.broken_reads == 0 && self.is_complete()
    }

    /// The figures for people.
    pub(crate) fn render_table(&self) -> String {
        let lines = [
            (
                self.images,
                "images in scope, each of them now in one of four states:",
            ),
            (self.moved, "  moved: copied, and the row has the new path"),
            (
                self.changed_by_application,
                "  changed or deleted by the application first, and left alone",
            ),
            (
                self.failed,
                "  failed: seeded without an object, or in conflict with one of the application's",
            ),
            (self.already_moved, "  moved before the migration began"),
            (
                self.reads,
                "images fetched by the application meanwhile, by their rows' paths",
            ),
            (
                self.broken_reads,
                "  of them not found, or with the bytes of another",
            ),
            (
                self.application_writes,
                "images replaced or deleted by the application meanwhile",
            ),
            (
                self.lost_application_writes,
                "  of them undone by the migration",
            ),
            (
                self.overwritten_objects,
                "objects of the application overwritten by the migration",
            ),
            (self.queue_left, "messages left in the queue"),
            (self.dead_letters, "messages in the dead-letter queue"),
            (self.s3_copies, "CopyObject requests"),
            (self.sqs_requests, "SQS requests"),
        ];
        let mut table = String::from("\n");
        for (number, what) in lines {
            let _ = writeln!(table, "{number:>9}  {what}");
        }
        let _ = writeln!(
            table,
            "{:>9.1}  seconds from the start until the queue was empty",
            self.seconds
        );
        let requests = self.requests_by_operation.iter();
        let requests: Vec<String> = requests
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        let _ = writeln!(table, "\n{:>9}  requests: {}", "", requests.join(", "));
        table
    }
}

/// The requests of feeder and consumers together.
fn requests_by_operation(requests: &CloudRequestCounts) -> BTreeMap<String, u64> {
    let mut all = requests.snapshot_by("feeder");
    for (name, count) in requests.snapshot_by("consumer") {
        *all.entry(name).or_default() += count;
    }
    all
}
