//! Entries of SQS batches, and what became of each.

use aws_sdk_sqs::types::BatchResultErrorEntry;

use crate::queue::{EntryOutcome, QueueError};

/// Batch entries named by their position.
pub(super) fn build_entries<T, E, F>(
    items: &[T],
    entry: impl Fn(String, &T) -> Result<E, F>,
) -> Result<Vec<E>, QueueError>
where
    F: std::fmt::Display,
{
    let build = |(index, item)| entry(index_id(index), item);
    items
        .iter()
        .enumerate()
        .map(build)
        .collect::<Result<_, _>>()
        .map_err(|error| QueueError::Unavailable {
            operation: "a batch request",
            message: error.to_string(),
        })
}

fn index_id(index: usize) -> String {
    index.to_string()
}

/// A 200 lists successes and failures; an entry in neither list is not confirmed.
pub(super) fn entry_outcomes<'a>(
    count: usize,
    done: impl Iterator<Item = &'a str>,
    failed: &[BatchResultErrorEntry],
) -> Vec<EntryOutcome> {
    let mut outcomes = vec![EntryOutcome::Retry("the answer did not mention it".into()); count];
    let mut set = |id: &str, outcome| {
        if let Some(slot) = id
            .parse()
            .ok()
            .and_then(|index: usize| outcomes.get_mut(index))
        {
            *slot = outcome;
        }
    };
    done.for_each(|id| set(id, EntryOutcome::Done));
    for entry in failed {
        let reason = format!("{}: {}", entry.code, entry.message().unwrap_or_default());
        let outcome = if entry.sender_fault && is_about_entry(&entry.code) {
            EntryOutcome::Refused(reason)
        } else {
            EntryOutcome::Retry(reason)
        };
        set(&entry.id, outcome);
    }
    outcomes
}

/// Whether sending the same entry again is pointless. Throttling, limits and the key come as the sender's
/// fault, too, and are the same for every entry.
fn is_about_entry(code: &str) -> bool {
    const ABOUT_ALL: [&str; 9] = [
        "Throttl",
        "OverLimit",
        "Kms",
        "KMS",
        "Denied",
        "Unavailable",
        "Internal",
        "QueueDoesNotExist",
        "NonExistentQueue",
    ];
    !ABOUT_ALL.iter().any(|part| code.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_the_answer_forgets_is_not_confirmed() {
        let failed = |id: &str, sender_fault| {
            BatchResultErrorEntry::builder()
                .id(id)
                .code("Code")
                .sender_fault(sender_fault)
                .build()
                .unwrap()
        };
        let all = entry_outcomes(
            4,
            ["0", "99"].into_iter(),
            &[failed("1", false), failed("2", true)],
        );
        assert_eq!(all[0], EntryOutcome::Done);
        assert!(matches!(all[1], EntryOutcome::Retry(_)));
        assert!(matches!(all[2], EntryOutcome::Refused(_)));
        assert!(matches!(all[3], EntryOutcome::Retry(_)));
    }

    #[test]
    fn throttling_and_keys_are_no_fault_of_an_entry() {
        for code in [
            "RequestThrottled",
            "ThrottlingException",
            "KmsThrottled",
            "KMS.ThrottlingException",
            "OverLimit",
            "KmsAccessDenied",
            "KmsDisabled",
            "AccessDeniedException",
            "ServiceUnavailable",
            "InternalError",
        ] {
            let entry = BatchResultErrorEntry::builder().id("0").code(code);
            let failed = entry.sender_fault(true).build().unwrap();
            let all = entry_outcomes(1, [].into_iter(), &[failed]);
            assert!(matches!(all[0], EntryOutcome::Retry(_)), "{code}");
        }
        for code in [
            "InvalidMessageContents",
            "MessageTooLong",
            "InvalidParameterValue",
            "ReceiptHandleIsInvalid",
        ] {
            assert!(is_about_entry(code), "{code}");
        }
    }
}
