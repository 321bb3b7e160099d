//! The queue and its dead-letter queue.

use std::time::Duration;

use bucket_brigade_common::dead_letter::QueueFacts;
use bucket_brigade_common::queue::QueueError;
use bucket_brigade_common::sqs::SqsQueue;

use super::check::Check;

/// Fewer receives than that, and a few restarts under load send good messages to the dead-letter queue.
const ENOUGH_RECEIVES: u32 = 3;

/// Below that a weekend's outage loses messages.
const LONG_ENOUGH: Duration = Duration::from_hours(4 * 24);

pub(super) async fn check(queue: &SqsQueue) -> Vec<Check> {
    let facts = match queue.facts().await {
        Ok(facts) => facts,
        Err(error) => return vec![unreachable("queue", &error)],
    };
    let mut checks = vec![of_queue(&facts)];
    if let Some(check) = short_lived(&facts) {
        checks.push(check);
    }
    checks.push(match queue.dead_letter_queue_of(&facts) {
        None => Check::fails(
            "redrive",
            "the queue has no redrive policy: messages that cannot be processed circle until they expire",
            "give it a dead-letter queue, with maxReceiveCount 5",
        ),
        Some(dead) => match dead.facts().await {
            Ok(dead) => redrive(&facts, &dead),
            Err(error) => unreachable("redrive", &error),
        },
    });
    checks
}

fn unreachable(about: &'static str, error: &QueueError) -> Check {
    Check::fails(
        about,
        error.to_string(),
        "check QUEUE_URL, AWS_REGION, the credentials, and deploy/policies/operator.json",
    )
}

fn of_queue(facts: &QueueFacts) -> Check {
    let messages = facts.backlog.total();
    let key = match &facts.kms_key {
        Some(key) => format!("encrypted with {key}: feeder and consumers need its rights"),
        None => "no key of KMS".into(),
    };
    if messages == 0 {
        return Check::good("queue", format!("there, empty, {key}"));
    }
    Check::warns(
        "queue",
        format!("there, {messages} messages in it, {key}"),
        "fine when they are of this run; otherwise give the run a queue of its own",
    )
}

fn short_lived(facts: &QueueFacts) -> Option<Check> {
    let retention = facts.retention?;
    let text = humantime::format_duration(retention);
    (retention < LONG_ENOUGH).then(|| {
        Check::warns(
            "queue",
            format!("it keeps messages for {text}"),
            "MessageRetentionPeriod 345600 (4 days) or more, so that an outage loses none",
        )
    })
}

fn redrive(queue: &QueueFacts, dead: &QueueFacts) -> Check {
    let receives = queue.max_receive_count.unwrap_or(0);
    let keeps = |facts: &QueueFacts| facts.retention.unwrap_or_default();
    let (kept, kept_dead) = (keeps(queue), keeps(dead));
    let text = humantime::format_duration;
    if kept_dead <= kept {
        return Check::fails(
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
        dead.backlog.total()
    );
    if receives < ENOUGH_RECEIVES {
        return Check::warns(
            "redrive",
            finding,
            "maxReceiveCount 5: each restart of a consumer may use up a receive",
        );
    }
    Check::good("redrive", finding)
}
