//! The queue and its dead-letter queue.

use std::time::Duration;

use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::queue::{MessageQueue, QueueAttributes, QueueError};
use humantime::format_duration;

use super::check::PlanChecks;

/// Fewer receives than that, and a few restarts under load send good messages to the dead-letter queue.
const MIN_RECEIVE_COUNT: u32 = 3;

/// Below that a weekend's outage loses messages.
const MIN_RETENTION: Duration = Duration::from_hours(4 * 24);

pub(super) async fn check_queue(queue: &SqsQueue, checks: &mut PlanChecks) {
    let facts = match queue.queue_attributes().await {
        Ok(facts) => facts,
        Err(error) => return add_unreachable("queue", &error, checks),
    };
    check_backlog(&facts, checks);
    if let Some(kept) = facts.retention.filter(|kept| *kept < MIN_RETENTION) {
        checks.warn(
            "queue",
            format!("it keeps messages for {}", format_duration(kept)),
            "MessageRetentionPeriod 345600 (4 days) or more, so that an outage loses none",
        );
    }
    match queue.dead_letter_queue_of(&facts) {
        None => checks.fail(
            "redrive",
            "the queue has no redrive policy: messages that cannot be processed are received again until they expire",
            "give it a dead-letter queue, with maxReceiveCount 5",
        ),
        Some(dead) => match dead.queue_attributes().await {
            Ok(dead) => check_redrive(&facts, &dead, checks),
            Err(error) => add_unreachable("redrive", &error, checks),
        },
    }
}

fn add_unreachable(about: &'static str, error: &QueueError, checks: &mut PlanChecks) {
    let mend = "check QUEUE_URL, AWS_REGION, the credentials, and deploy/policies/operator.json";
    checks.fail(about, error.to_string(), mend);
}

fn check_backlog(facts: &QueueAttributes, checks: &mut PlanChecks) {
    let messages = facts.backlog.total_messages();
    let key = match &facts.kms_key {
        Some(key) => format!("encrypted with {key}: feeder and consumers need its rights"),
        None => "no KMS key".into(),
    };
    if messages == 0 {
        return checks.ok("queue", format!("exists, empty, {key}"));
    }
    checks.warn(
        "queue",
        format!("exists, {messages} messages in it, {key}"),
        "fine when they are of this run; otherwise give the run a queue of its own",
    );
}

fn check_redrive(queue: &QueueAttributes, dead: &QueueAttributes, checks: &mut PlanChecks) {
    let receives = queue.max_receive_count.unwrap_or(0);
    let kept = queue.retention.unwrap_or_default();
    let kept_dead = dead.retention.unwrap_or_default();
    let (kept_for, dead_for) = (format_duration(kept), format_duration(kept_dead));
    if kept_dead <= kept {
        return checks.fail(
            "redrive",
            format!("dead letters are kept for {dead_for}, messages for {kept_for}: a message keeps its original time, and would expire at once"),
            "MessageRetentionPeriod 1209600 (14 days) for the dead-letter queue",
        );
    }
    let letters = dead.backlog.total_messages();
    let finding = format!(
        "to the dead-letter queue after {receives} receives, kept there for {dead_for}, dead letters: {letters}"
    );
    if receives < MIN_RECEIVE_COUNT {
        let mend = "maxReceiveCount 5: each restart of a consumer may use up a receive";
        return checks.warn("redrive", finding, mend);
    }
    checks.ok("redrive", finding);
}
