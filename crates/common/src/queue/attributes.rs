//! What a queue says of itself.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::Value;

use crate::queue::{QueueAttributes, QueueBacklog};

/// None without a count: how much is in the queue is not known then.
pub(super) fn parse_attributes(
    attributes: &HashMap<QueueAttributeName, String>,
) -> Option<QueueAttributes> {
    use QueueAttributeName as Name;
    let number = |name| attributes.get(&name).and_then(|text| text.parse().ok());
    let delayed = Name::ApproximateNumberOfMessagesDelayed;
    let has_delayed = attributes.contains_key(&delayed);
    let policy = attributes.get(&Name::RedrivePolicy);
    let policy: Option<Value> = policy.and_then(|policy| serde_json::from_str(policy).ok());
    let policy = policy.unwrap_or_default();
    Some(QueueAttributes {
        backlog: QueueBacklog {
            visible: number(Name::ApproximateNumberOfMessages)?
                + if has_delayed { number(delayed)? } else { 0 },
            in_flight: number(Name::ApproximateNumberOfMessagesNotVisible)?,
        },
        retention: number(Name::MessageRetentionPeriod).map(Duration::from_secs),
        delay: number(Name::DelaySeconds).map(Duration::from_secs),
        max_message_bytes: number(Name::MaximumMessageSize),
        kms_key: attributes.get(&Name::KmsMasterKeyId).cloned(),
        arn: attributes.get(&Name::QueueArn).cloned(),
        max_receive_count: max_receive_count(&policy),
        dead_letter_arn: policy["deadLetterTargetArn"]
            .as_str()
            .map(ToOwned::to_owned),
    })
}

/// SQS accepts and returns it both as a number and as text.
fn max_receive_count(policy: &Value) -> Option<u32> {
    let count = &policy["maxReceiveCount"];
    match count.as_u64() {
        Some(number) => u32::try_from(number).ok(),
        None => count.as_str()?.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(count: &str) -> HashMap<QueueAttributeName, String> {
        use QueueAttributeName as Name;
        let names = [
            Name::ApproximateNumberOfMessages,
            Name::ApproximateNumberOfMessagesNotVisible,
        ];
        HashMap::from(names.map(|name| (name, count.to_owned())))
    }

    #[test]
    fn a_queue_of_unknown_length_is_not_empty() {
        assert_eq!(parse_attributes(&HashMap::new()), None);
        for count in ["-1", "x", ""] {
            assert_eq!(parse_attributes(&counts(count)), None, "{count}");
        }
    }

    #[test]
    fn a_redrive_policy_spells_the_count_both_ways() {
        let parse = |policy: &str| {
            let policy = (QueueAttributeName::RedrivePolicy, policy);
            let mut attributes = counts("0");
            attributes.extend([policy].map(|(name, value)| (name, value.to_owned())));
            parse_attributes(&attributes).unwrap()
        };
        let policy = r#"{"maxReceiveCount":5,"deadLetterTargetArn":"arn:aws:sqs:a:1:dead"}"#;
        let attributes = parse(policy);
        assert_eq!(attributes.max_receive_count, Some(5));
        let arn = attributes.dead_letter_arn.as_deref();
        assert_eq!(arn, Some("arn:aws:sqs:a:1:dead"));
        let attributes = parse(r#"{"maxReceiveCount":"7"}"#);
        assert_eq!(attributes.max_receive_count, Some(7));
        for policy in ["{}", "", "[]", "null"] {
            assert_eq!(parse(policy), QueueAttributes::default());
        }
    }

    #[test]
    fn a_redrive_policy_may_name_the_queue_itself() {
        let own = |arn: Option<&str>, dead_letter_arn: Option<&str>| {
            let attributes = QueueAttributes {
                arn: arn.map(str::to_owned),
                dead_letter_arn: dead_letter_arn.map(str::to_owned),
                ..QueueAttributes::default()
            };
            attributes.is_own_dead_letter_queue()
        };
        let (queue, dead) = (Some("arn:aws:sqs:a:1:queue"), Some("arn:aws:sqs:a:1:dead"));
        assert!(own(queue, queue));
        assert!(!own(queue, dead) && !own(queue, None) && !own(None, None));
    }

    #[test]
    fn delayed_messages_wait_too() {
        use QueueAttributeName as Name;
        let attributes = [
            (Name::ApproximateNumberOfMessages, "3"),
            (Name::ApproximateNumberOfMessagesDelayed, "4"),
            (Name::ApproximateNumberOfMessagesNotVisible, "5"),
            (Name::MessageRetentionPeriod, "345600"),
        ];
        let attributes = attributes.map(|(name, value)| (name, value.to_owned()));
        let parsed = parse_attributes(&HashMap::from(attributes)).unwrap();
        assert_eq!((parsed.backlog.visible, parsed.backlog.in_flight), (7, 5));
        assert_eq!(parsed.retention, Some(Duration::from_hours(96)));
    }
}
