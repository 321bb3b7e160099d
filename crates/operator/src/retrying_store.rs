//! The two buckets, as commands that work in parallel use them.

use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::objects::{BucketSide, DeleteOutcome, DeleteTarget, ObjectRemover};
use bucket_brigade_common::preflight::{BucketCheck, check_bucket, retry_transient};
use bucket_brigade_common::s3::{CopyLimits, S3Options, S3Store};
use tokio::time::sleep;

use crate::context::CommandContext;

/// Objects read at a time: far below what S3 grants to one prefix, and enough to hide its latency.
pub(super) const MAX_REQUESTS_IN_FLIGHT: usize = 64;

/// Tries before the service counts as out of reach: about half a minute.
const MAX_ATTEMPTS: u32 = 10;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

/// The two buckets, checked. Conditions are always set: where a store ignores them, the HEAD before each
/// write is what guards.
///
/// # Errors
/// A bucket that is not there, or not ours to look into.
pub(super) async fn open(context: &CommandContext) -> anyhow::Result<S3Store> {
    let (client, source_client) = context.s3_clients().await;
    let run = &context.migration.run;
    let (source, destination) = (run.source_bucket.clone(), run.destination_bucket.clone());
    let (of_source, of_destination) = ("SOURCE_BUCKET_NAME", "DESTINATION_BUCKET_NAME");
    retry_transient(async || {
        check_bucket(&source_client, of_source, &source, BucketCheck::Access).await
    })
    .await?;
    retry_transient(async || {
        check_bucket(&client, of_destination, &destination, BucketCheck::Access).await
    })
    .await?;
    let options = S3Options {
        source_bucket: source,
        destination_bucket: destination,
        storage_class: None,
        conditional_copy: true,
        limits: CopyLimits::default(),
    };
    Ok(S3Store::new(client, source_client, options))
}

/// Calls the store until it answers, or for about half a minute.
///
/// # Errors
/// The last try's.
pub(super) async fn retry_object_request<T>(
    call: impl AsyncFn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match call().await {
            Err(StoreError::Throttled { .. } | StoreError::Transient { .. })
                if tries < MAX_ATTEMPTS =>
            {
                sleep(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
            }
            other => return other,
        }
    }
}

/// Removes objects, those again that S3 was too busy for: a batch that is answered may hold such entries.
///
/// # Errors
/// The request as a whole failed, each time.
pub(super) async fn remove_with_retries(
    store: &dyn ObjectRemover,
    side: BucketSide,
    objects: &[DeleteTarget],
) -> Result<Vec<DeleteOutcome>, StoreError> {
    let mut outcomes =
        retry_object_request(async || store.delete_objects(side, objects).await).await?;
    for tries in 1..MAX_ATTEMPTS {
        let busy = outcomes
            .iter()
            .enumerate()
            .filter(|(_, outcome)| is_transient(outcome));
        let busy: Vec<usize> = busy.map(|(index, _)| index).collect();
        if busy.is_empty() {
            break;
        }
        sleep(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
        let again: Vec<DeleteTarget> = busy.iter().map(|index| objects[*index].clone()).collect();
        let results =
            retry_object_request(async || store.delete_objects(side, &again).await).await?;
        for (index, outcome) in busy.into_iter().zip(results) {
            outcomes[index] = outcome;
        }
    }
    Ok(outcomes)
}

fn is_transient(outcome: &DeleteOutcome) -> bool {
    matches!(
        outcome,
        DeleteOutcome::Refused(StoreError::Throttled { .. } | StoreError::Transient { .. })
    )
}

/// Whether an error is about one object alone; any other ends the command.
pub(super) fn is_object_error(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Permanent { .. } | StoreError::Denied { .. }
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bucket_brigade_common::object_store::CopiedObject;
    use bucket_brigade_common::objects::BucketVersioning;
    use bucket_brigade_common::path_rule::MoveRoute;

    use super::*;

    /// Too busy for all but the first object of each request, and not there for the very first request.
    #[derive(Default)]
    struct Busy(Mutex<Vec<usize>>);

    #[async_trait]
    impl ObjectRemover for Busy {
        async fn bucket_versioning(&self, _: BucketSide) -> Result<BucketVersioning, StoreError> {
            Ok(BucketVersioning::Off)
        }

        async fn delete_objects(
            &self,
            _: BucketSide,
            objects: &[DeleteTarget],
        ) -> Result<Vec<DeleteOutcome>, StoreError> {
            let throttled = || StoreError::Throttled {
                code: "SlowDown".into(),
            };
            let mut asked = self.0.lock().unwrap();
            asked.push(objects.len());
            if asked.len() == 1 {
                return Err(throttled());
            }
            let outcome = |(number, object): (usize, &DeleteTarget)| match number {
                0 => DeleteOutcome::Deleted {
                    delete_marker: Some(object.key.clone()),
                },
                _ => DeleteOutcome::Refused(throttled()),
            };
            Ok(objects.iter().enumerate().map(outcome).collect())
        }

        async fn restore_object(
            &self,
            _: BucketSide,
            _: &MoveRoute,
        ) -> Result<CopiedObject, StoreError> {
            Err(StoreError::TooLarge)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_s3_was_too_busy_for_is_asked_again() {
        let target = |key: &str| DeleteTarget {
            key: key.into(),
            etag: "e".into(),
        };
        let objects = ["a", "b", "c"].map(target);
        let store = Busy::default();
        let outcomes = remove_with_retries(&store, BucketSide::Source, &objects)
            .await
            .unwrap();
        for (outcome, object) in outcomes.iter().zip(&objects) {
            let is_its_own = matches!(outcome, DeleteOutcome::Deleted { delete_marker: Some(key) } if *key == object.key);
            assert!(is_its_own, "{outcome:?}");
        }
        assert_eq!(*store.0.lock().unwrap(), [3, 3, 2, 1]);
    }
}
