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

    fn failed(id: &str, code: &str, sender_fault: bool) -> BatchResultErrorEntry {
        let entry = BatchResultErrorEntry::builder().id(id).code(code);
        entry.sender_fault(sender_fault).build().unwrap()
    }

    #[test]
    fn an_entry_the_answer_forgets_is_not_confirmed() {
        let failed = [failed("1", "Code", false), failed("2", "Code", true)];
        let all = entry_outcomes(4, ["0", "99"].into_iter(), &failed);
        assert_eq!(all[0], EntryOutcome::Done);
        assert!(matches!(all[1], EntryOutcome::Retry(_)));
        assert!(matches!(all[2], EntryOutcome::Refused(_)));
        assert!(matches!(all[3], EntryOutcome::Retry(_)));
    }

    #[test]
    fn throttling_and_keys_are_no_fault_of_an_entry() {
        let of_all = "RequestThrottled ThrottlingException KmsThrottled KMS.ThrottlingException OverLimit KmsAccessDenied KmsDisabled AccessDeniedException ServiceUnavailable InternalError";
        for code in of_all.split(' ') {
            let all = entry_outcomes(1, [].into_iter(), &[failed("0", code, true)]);
            assert!(matches!(all[0], EntryOutcome::Retry(_)), "{code}");
        }
        let of_one =
            "InvalidMessageContents MessageTooLong InvalidParameterValue ReceiptHandleIsInvalid";
        for code in of_one.split(' ') {
            assert!(is_about_entry(code), "{code}");
        }
    }
}
