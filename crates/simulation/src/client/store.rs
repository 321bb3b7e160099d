//! The two buckets as a process reaches them. The faults bear the names under which production tells
//! what S3 did: refusals, and answers that were lost, cut off or empty.

use async_trait::async_trait;
use bucket_brigade_common::object_store::{Copied, Destination, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::Route;

use super::Client;
use crate::fate::Fate;
use crate::sabotage::Sabotage;

/// What keeps a copy from being made, with its code.
const BEFORE: [&str; 6] = [
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "ConnectionFailed",
    // A 200 with an error in its body, and one with no body at all.
    "OkWithError",
    "EmptyAnswer",
];

/// What hides that it was made.
const AFTER: [&str; 4] = [
    "Timeout",
    "UnreadableAnswer",
    "ConnectionFailed",
    "EmptyAnswer",
];

impl Client {
    fn store_error(&self, fate: Fate) -> StoreError {
        let mut things = self.shared.lock();
        let code = match fate {
            Fate::FailsAfter => AFTER[things.dice.usize(0..AFTER.len())],
            _ => BEFORE[things.dice.usize(0..BEFORE.len())],
        };
        if code == "SlowDown" {
            return StoreError::Throttled { code: code.into() };
        }
        StoreError::Transient {
            code: code.into(),
            message: "injected".into(),
        }
    }
}

#[async_trait]
impl ObjectStore for Client {
    async fn copy(&self, route: &Route) -> Result<Copied, StoreError> {
        let lost = |fate| self.store_error(fate);
        self.call("copy", lost, |things| {
            let only_new = things.sabotage != Sabotage::UnconditionalCopy;
            things.buckets.copy(route, only_new)
        })
        .await
    }

    async fn copy_in_parts(&self, route: &Route) -> Result<Copied, StoreError> {
        self.copy(route).await
    }

    async fn compare(&self, route: &Route) -> Result<Destination, StoreError> {
        let lost = |fate| self.store_error(fate);
        self.call("compare", lost, |things| things.buckets.compare(route))
            .await
    }
}
