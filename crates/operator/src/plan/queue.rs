//! The queue and its dead-letter queue.

use std::time::Duration;

use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::queue::{MessageQueue, QueueAttributes, QueueError};

use super::check::PlanCheck;

/// Fewer receives than that, and a few restarts under load send good messages to the dead-letter queue.
const MIN_RECEIVE_COUNT: u32 = 3;

/// Below that a weekend's outage loses messages.
const MIN_RETENTION: Duration = Duration::from_hours(4 * 24);

pub(super) async fn check_queue(queue: &SqsQueue) -> Vec<PlanCheck> {
    let facts = match queue.queue_attributes().await {
        Ok(facts) => facts,
        Err(error) => return vec![unreachable_queue("queue", &error)],
    };
    let mut checks = vec![check_backlog(&facts)];
    if let Some(check) = check_retention(&facts) {
        checks.push(check);
    }
    checks.push(match queue.dead_letter_queue_of(&facts) {
        None => PlanCheck::new_failure(
            "redrive",
            "the queue has no redrive policy: messages that cannot be processed circle until they expire",
            "give it a dead-letter queue, with maxReceiveCount 5",
        ),
        Some(dead) => match dead.queue_attributes().await {
            Ok(dead) => check_redrive(&facts, &dead),
            Err(error) => unreachable_queue("redrive", &error),
        },
    });
    checks
}

fn unreachable_queue(about: &'static str, error: &QueueError) -> PlanCheck {
    PlanCheck::new_failure(
        about,
        error.to_string(),
        "check QUEUE_URL, AWS_REGION, the credentials, and deploy/policies/operator.json",
    )
}

fn check_backlog(facts: &QueueAttributes) -> PlanCheck {
    let messages = facts.backlog.total_messages();
    let key = match &facts.kms_key {
        Some(key) => format!("encrypted with {key}: feeder and consumers need its rights"),
        None => "no key of KMS".into(),
    };
    if messages == 0 {
        return PlanCheck::new_ok("queue", format!("there, empty, {key}"));
    }
    PlanCheck::new_warning(
        "queue",
        format!("there, {messages} messages in it, {key}"),
        "fine when they are of this run; otherwise give the run a queue of its own",
    )
}

fn check_retention(facts: &QueueAttributes) -> Option<PlanCheck> {
    let retention = facts.retention?;
    let text = humantime::format_duration(retention);
    (retention < MIN_RETENTION).then(|| {
        PlanCheck::new_warning(
            "queue",
            format!("it keeps messages for {text}"),
            "MessageRetentionPeriod 345600 (4 days) or more, so that an outage loses none",
        )
    })
}

fn check_redrive(queue: &QueueAttributes, dead: &QueueAttributes) -> PlanCheck {
    let receives = queue.max_receive_count.unwrap_or(0);
    let keeps = |facts: &QueueAttributes| facts.retention.unwrap_or_default();
    let (kept, kept_dead) = (keeps(queue), keeps(dead));
    let text = humantime::format_duration;
    if kept_dead <= kept {
        return PlanCheck::new_failure(
            "redrive",
            format!(
                "dead letters are kept for {}, messages for {}: a message keeps its original time, and would expire at once",
                text(kept_dead),
                text(kept)
            ),
            "MessageRetentionPeriod 1209600 (14 days) for the dead-letter queue",
        );
    }
    let finding = format!(
        "to the dead-letter queue after {receives} receives, kept there for {}, dead letters: {}",
        text(kept_dead),
        dead.backlog.total_messages()
    );
    if receives < MIN_RECEIVE_COUNT {
        return PlanCheck::new_warning(
            "redrive",
            finding,
            "maxReceiveCount 5: each restart of a consumer may use up a receive",
        );
    }
    PlanCheck::new_ok("redrive", finding)
}
