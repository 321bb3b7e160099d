//! The two buckets as a process reaches them. The faults bear the names under which production reports
//! what S3 did: refusals, and answers that were lost, cut off or empty.

use async_trait::async_trait;
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::{
    CopiedObject, DestinationState, ObjectStore, StoreError,
};
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};

use super::SimulatedClient;
use crate::fault_rates::CallOutcome;
use crate::sabotage::Sabotage;

/// What keeps a copy from being made, with its code.
const CODES_BEFORE_EFFECT: [&str; 6] = [
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "ConnectionFailed",
    // A 200 with an error in its body, and one with no body at all.
    "OkWithError",
    "EmptyAnswer",
];

/// What hides that it was made.
const CODES_AFTER_EFFECT: [&str; 4] = [
    "Timeout",
    "UnreadableAnswer",
    "ConnectionFailed",
    "EmptyAnswer",
];

impl SimulatedClient {
    fn store_error(&self, outcome: CallOutcome) -> StoreError {
        let mut things = self.shared.lock();
        let code = match outcome {
            CallOutcome::FailsAfterEffect => {
                CODES_AFTER_EFFECT[things.dice.usize(0..CODES_AFTER_EFFECT.len())]
            }
            _ => CODES_BEFORE_EFFECT[things.dice.usize(0..CODES_BEFORE_EFFECT.len())],
        };
        if code == "SlowDown" {
            return StoreError::Throttled {
                code: code.into(),
                message: "injected".into(),
            };
        }
        StoreError::transient(code, "injected")
    }
}

#[async_trait]
impl ObjectStore for SimulatedClient {
    async fn copy(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let lost = |outcome| self.store_error(outcome);
        self.perform_call("copy", lost, |things| {
            let only_new = things.sabotage != Sabotage::UnconditionalCopy;
            things.buckets.copy(route, only_new)
        })
        .await
    }

    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        self.copy(route).await
    }

    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError> {
        let lost = |outcome| self.store_error(outcome);
        self.perform_call("compare", lost, |things| {
            Ok(things.buckets.compare_objects(route))
        })
        .await
    }

    /// The probe objects stand for a moment only: the world does not know them.
    async fn check_rights(&self, _: &PathRule, _: &[String]) -> Result<bool, StoreError> {
        let lost = |outcome| self.store_error(outcome);
        self.perform_call("check", lost, |_| Ok(true)).await
    }

    async fn silent_side(&self) -> Option<BucketSide> {
        None
    }
}
