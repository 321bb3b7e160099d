//! The queue and its dead-letter queue.

use std::time::Duration;

use bucket_brigade_common::preflight::unsent_error;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::queue::{MessageQueue, OWN_DEAD_LETTERS, QueueAttributes, QueueError};
use humantime::format_duration;

use super::check::PlanChecks;

/// Fewer receives than that, and a few restarts under load send good messages to the dead-letter queue.
const MIN_RECEIVE_COUNT: u32 = 3;

/// Below that a weekend's outage loses messages.
const MIN_RETENTION: Duration = Duration::from_hours(4 * 24);

/// The longest path and the longest id, each character escaped, fit into less.
const MIN_MESSAGE_BYTES: u64 = 32 << 10;

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
    check_messages(&facts, checks);
    let mend = "give it a dead-letter queue, with maxReceiveCount 5";
    match queue.dead_letter_queue_of(&facts) {
        Some(_) if facts.is_own_dead_letter_queue() => {
            checks.fail("redrive", OWN_DEAD_LETTERS, mend);
        }
        None => checks.fail(
            "redrive",
            "the queue has no redrive policy: messages that cannot be processed are received again until they expire",
            mend,
        ),
        Some(dead) => match dead.queue_attributes().await {
            Ok(dead) => check_redrive(&facts, &dead, checks),
            Err(error) => add_unreachable("redrive", &error, checks),
        },
    }
}

fn add_unreachable(about: &'static str, error: &QueueError, checks: &mut PlanChecks) {
    if let Some(error) = unsent_error(error) {
        return checks.fail_by(about, &error);
    }
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
        format!(
            "exists, {} in it, {key}",
            counted(messages, "message", "messages")
        ),
        "fine when they are of this run; otherwise give the run a queue of its own",
    );
}

fn check_messages(facts: &QueueAttributes, checks: &mut PlanChecks) {
    let delay = facts.delay.unwrap_or_default();
    if !delay.is_zero() {
        let finding = format!("it hides each message for {} first", format_duration(delay));
        checks.warn("queue", finding, "DelaySeconds 0");
    }
    let most = facts.max_message_bytes;
    if let Some(bytes) = most.filter(|bytes| *bytes < MIN_MESSAGE_BYTES) {
        checks.warn(
            "queue",
            format!("it takes messages of up to {bytes} bytes: rows with long paths or ids would be recorded as failed, RefusedByQueue"),
            "MaximumMessageSize 262144",
        );
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_delays_messages_or_takes_short_ones_alone_is_warned_of() {
        let warnings = |delay_seconds, max_message_bytes| {
            let facts = QueueAttributes {
                delay: Some(Duration::from_secs(delay_seconds)),
                max_message_bytes: Some(max_message_bytes),
                ..QueueAttributes::default()
            };
            let mut checks = PlanChecks::default();
            check_messages(&facts, &mut checks);
            checks.0.into_iter().map(|check| check.finding).collect()
        };
        let found: Vec<String> = warnings(90, 1024);
        assert_eq!(found[0], "it hides each message for 1m 30s first");
        assert!(found[1].contains("up to 1024 bytes"), "{}", found[1]);
        assert_eq!(warnings(0, 256 << 10), Vec::<String>::new());
    }
}
