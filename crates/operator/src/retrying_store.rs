//! The two buckets, as commands that work in parallel use them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{
    BucketSide, DeleteOutcome, DeleteTarget, ObjectStat, RemovalDeadline,
};
use bucket_brigade_common::object_store::s3::{S3Bucket, S3Options, S3Store};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::retry::{Backoff, retry};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::context::CommandContext;

/// Objects read at a time: far below what S3 grants to one prefix, and enough to hide its latency.
pub(super) const DEFAULT_REQUESTS_IN_FLIGHT: usize = 64;

/// Each has a connection of its own.
pub(super) const MAX_REQUESTS_IN_FLIGHT: usize = 1024;

/// Retries before the service counts as out of reach: about half a minute.
const MAX_RETRIES: usize = 9;

/// Where each attempt meets silence there are fewer.
const MAX_RETRY_TIME: Duration = Duration::from_secs(40);

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(100),
    max_delay: Duration::from_secs(5),
};

/// The two buckets, checked: to look at objects.
pub(super) async fn open(
    context: &CommandContext,
    ledger: &PostgresLedger,
) -> Result<S3Store, PreflightError> {
    let (source, destination) = open_buckets(context, ledger).await?;
    let options = S3Options::of_run(ledger.options());
    Ok(S3Store::new(source, destination, options))
}

/// The same to copy to the destination, by the way that the store allows.
pub(super) async fn open_for_copies(
    context: &CommandContext,
    ledger: &PostgresLedger,
) -> Result<S3Store, PreflightError> {
    let (source, destination) = open_buckets(context, ledger).await?;
    let request = context.method_request(ledger.options());
    request.open(source, destination).await
}

async fn open_buckets(
    context: &CommandContext,
    ledger: &PostgresLedger,
) -> Result<(S3Bucket, S3Bucket), PreflightError> {
    let (source, destination) = context.buckets(ledger.options()).await?;
    source.check_access().await?;
    destination.check_access().await?;
    Ok((source, destination))
}

/// How many objects a command looks at at a time, over all of its pages: those of an earlier one come first.
pub(super) struct RequestSlots(Semaphore);

impl RequestSlots {
    pub(super) fn new(requests: usize) -> Self {
        Self(Semaphore::new(requests))
    }

    /// Sends a request when there is a slot.
    pub(super) async fn run<T>(&self, request: impl Future<Output = T>) -> T {
        // It is never closed.
        let _slot = self.0.acquire().await;
        request.await
    }

    /// Looks at all of them, and returns the results in their order. What has no slot is not begun: a waiting look
    /// takes as much memory as one under way.
    pub(super) async fn run_all<T, E>(
        &self,
        checks: impl ExactSizeIterator<Item: Future<Output = Result<T, E>>>,
    ) -> Result<Vec<T>, E> {
        let count = checks.len().clamp(1, MAX_REQUESTS_IN_FLIGHT);
        // It is never closed.
        let begin = async |check| (self.0.acquire().await, check);
        stream::iter(checks)
            .then(begin)
            .map(|(slot, check)| async {
                let checked = check.await;
                drop(slot);
                checked
            })
            .buffered(count)
            .try_collect()
            .await
    }
}

/// Calls the store while it is too busy, for about half a minute.
pub(super) async fn retry_object_request<T>(
    call: impl AsyncFn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let began = Instant::now();
    let is_worth_it =
        |error: &StoreError| is_transient_error(error) && began.elapsed() < MAX_RETRY_TIME;
    let delays = RETRY_BACKOFF.delays().take(MAX_RETRIES);
    retry(delays, is_worth_it, call).await
}

/// Looks at one object. Where the store answers for a key beside it, what fails again and again is about the
/// object alone.
async fn stat_with_retries<T>(
    key: &str,
    stat: impl AsyncFn(&str) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let is_of_store = |error: &StoreError| {
        is_transient_error(error) || matches!(error, StoreError::Systemic { .. })
    };
    let error = match retry_object_request(async || stat(key).await).await {
        Err(error) if is_of_store(&error) => error,
        result => return result,
    };
    let folder = key.rfind('/').map_or("", |end| &key[..=end]);
    match stat(&format!("{folder}.bucket-brigade-probe")).await {
        Err(other) if is_of_store(&other) => Err(error),
        _ if is_transient_error(&error) => Err(blame_object(&error)),
        // It was asked once, and a token may have been renewed since.
        _ => match stat(key).await {
            Err(again) if is_of_store(&again) => Err(blame_object(&again)),
            result => result,
        },
    }
}

fn blame_object(error: &StoreError) -> StoreError {
    StoreError::Suspect {
        code: error.code().to_owned(),
        message: "the store fails for this object, though it answers for another key".into(),
    }
}

/// The same of a request that reads or writes objects. Where the store answers HEADs of both, it is about them.
pub(super) async fn retry_about_object<T>(
    store: &S3Store,
    route: &MoveRoute,
    call: impl AsyncFn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let error = match retry_object_request(call).await {
        Err(error @ StoreError::Transient { .. }) => error,
        result => return result,
    };
    for (side, key) in [
        (BucketSide::Source, &route.source_key),
        (BucketSide::Destination, &route.destination_key),
    ] {
        if store.stat_object(side, key).await.is_err() {
            return Err(error);
        }
    }
    Err(blame_object(&error))
}

/// None when there is no such object.
pub(super) async fn stat_object(
    store: &S3Store,
    side: BucketSide,
    key: &str,
) -> Result<Option<ObjectStat>, StoreError> {
    let stat = stat_with_retries(key, async |key| store.stat_object(side, key).await).await;
    match stat {
        Err(error @ (StoreError::Denied { .. } | StoreError::Suspect { .. })) => {
            Err(store.attribute_error(side, error))
        }
        stat => stat,
    }
}

/// What became of an object, and whether a request for it had no response: that one may be carried out later still.
#[derive(Debug)]
pub(super) struct ObjectDeletion {
    pub(super) outcome: DeleteOutcome,
    pub(super) is_request_alive: bool,
    /// Whether some try may have been carried out.
    pub(super) is_uncertain: bool,
}

/// Why no object of a request is known to be gone.
#[derive(Debug)]
pub(super) enum DeleteFailure {
    /// No try can have been carried out.
    Untouched(StoreError),
    /// What became of the objects is not known.
    Uncertain(StoreError),
}

/// Removes objects, those again that S3 was too busy for: a batch that is answered may hold such entries.
pub(super) async fn remove_with_retries(
    store: &S3Store,
    side: BucketSide,
    objects: &[DeleteTarget],
    deadline: RemovalDeadline,
) -> Result<Vec<ObjectDeletion>, DeleteFailure> {
    retry_busy(objects, async |objects: &[DeleteTarget]| {
        // Boxed: the SDK's futures are large.
        Box::pin(store.delete_objects(side, objects, deadline)).await
    })
    .await
}

async fn retry_busy(
    objects: &[DeleteTarget],
    delete: impl AsyncFn(&[DeleteTarget]) -> Result<Vec<DeleteOutcome>, StoreError>,
) -> Result<Vec<ObjectDeletion>, DeleteFailure> {
    let mut outcomes = delete_at_once(objects, &delete).await?;
    for delay in RETRY_BACKOFF.delays().take(MAX_RETRIES) {
        let busy = outcomes
            .iter()
            .enumerate()
            .filter(|(_, deleted)| is_refused_with(&deleted.outcome, is_transient_error));
        let busy: Vec<usize> = busy.map(|(index, _)| index).collect();
        if busy.is_empty() {
            break;
        }
        sleep(delay).await;
        let again: Vec<DeleteTarget> = busy.iter().map(|index| objects[*index].clone()).collect();
        match delete_at_once(&again, &delete).await {
            Ok(deleted) => {
                for (index, deleted) in busy.into_iter().zip(deleted) {
                    let before = &mut outcomes[index];
                    before.is_request_alive |= deleted.is_request_alive;
                    before.is_uncertain |= deleted.is_uncertain;
                    before.outcome = deleted.outcome;
                }
            }
            // Of the others it is known.
            Err(failure) => {
                let is_uncertain = matches!(failure, DeleteFailure::Uncertain(_));
                for index in busy {
                    outcomes[index].is_request_alive |= is_uncertain;
                    outcomes[index].is_uncertain |= is_uncertain;
                }
                break;
            }
        }
    }
    Ok(outcomes)
}

async fn delete_at_once(
    objects: &[DeleteTarget],
    delete: impl AsyncFn(&[DeleteTarget]) -> Result<Vec<DeleteOutcome>, StoreError>,
) -> Result<Vec<ObjectDeletion>, DeleteFailure> {
    let (is_alive, is_uncertain) = (AtomicBool::new(false), AtomicBool::new(false));
    let request = async || {
        let sent = delete(objects).await;
        if let Err(error) = &sent {
            is_alive.fetch_or(error.is_unanswered(), Ordering::Relaxed);
            is_uncertain.fetch_or(error.is_uncertain(), Ordering::Relaxed);
        }
        sent
    };
    let sent = retry_object_request(request).await;
    let (is_alive, is_uncertain) = (is_alive.into_inner(), is_uncertain.into_inner());
    let outcomes = match sent {
        Ok(outcomes) => outcomes,
        Err(error) if is_uncertain => return Err(DeleteFailure::Uncertain(error)),
        Err(error) => return Err(DeleteFailure::Untouched(error)),
    };
    let deleted = outcomes.into_iter().map(|outcome| ObjectDeletion {
        is_request_alive: is_alive || is_refused_with(&outcome, StoreError::is_unanswered),
        is_uncertain: is_uncertain || is_refused_with(&outcome, StoreError::is_uncertain),
        outcome,
    });
    Ok(deleted.collect())
}

fn is_refused_with(outcome: &DeleteOutcome, is_such: impl Fn(&StoreError) -> bool) -> bool {
    matches!(outcome, DeleteOutcome::Refused(error) if is_such(error))
}

fn is_transient_error(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Throttled { .. } | StoreError::Transient { .. }
    )
}

/// Whether an error is about one object alone; any other ends the command.
pub(super) fn is_object_error(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Permanent { .. } | StoreError::Denied { .. } | StoreError::Suspect { .. }
    )
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    /// Too busy for all but the first object of each request, and not there for the very first request.
    #[derive(Default)]
    struct Busy(Mutex<Vec<usize>>);

    impl Busy {
        fn delete(&self, objects: &[DeleteTarget]) -> Result<Vec<DeleteOutcome>, StoreError> {
            let throttled = || StoreError::Throttled {
                code: "SlowDown".into(),
                message: String::new(),
            };
            let mut asked = self.0.lock();
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
    }

    /// How a store that is silent for some keys ends a look at one of them.
    async fn stat_with_silence(is_silent: impl Fn(&str) -> bool) -> (StoreError, Duration) {
        let began = Instant::now();
        let silence = || StoreError::Transient {
            code: "Timeout".into(),
            message: "HeadObject has timed out".into(),
        };
        let stat = async |key: &str| {
            if is_silent(key) {
                sleep(Duration::from_secs(15)).await;
                return Err(silence());
            }
            Ok(())
        };
        let error = stat_with_retries("image/a.png", stat).await.unwrap_err();
        (error, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_the_store_alone_fails_for_is_no_outage() {
        let (error, took) = stat_with_silence(|key| key == "image/a.png").await;
        assert!(
            is_object_error(&error) && error.code() == "Timeout",
            "{error:?}"
        );
        assert!(took < Duration::from_mins(1), "{took:?}");
        let (error, _) = stat_with_silence(|_| true).await;
        assert!(is_transient_error(&error), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_s3_was_too_busy_for_is_asked_again() {
        let target = |key: &str| DeleteTarget {
            key: key.into(),
            etag: "e".into(),
        };
        let objects = ["a", "b", "c"].map(target);
        let store = Busy::default();
        let remove = async |seconds| {
            let deadline = RemovalDeadline::after(Duration::from_secs(seconds));
            retry_busy(&objects, async |objects: &[DeleteTarget]| {
                deadline.check()?;
                store.delete(objects)
            })
            .await
        };
        let outcomes = remove(60).await.unwrap();
        for (outcome, object) in outcomes.iter().zip(&objects) {
            let is_its_own = matches!(&outcome.outcome, DeleteOutcome::Deleted { delete_marker: Some(key) } if *key == object.key);
            assert!(is_its_own && !outcome.is_request_alive, "{outcome:?}");
        }
        assert_eq!(*store.0.lock(), [3, 3, 2, 1]);
        let expired = remove(0).await;
        assert!(
            matches!(&expired, Err(DeleteFailure::Untouched(error)) if error.code() == "RemovalExpired"),
            "{expired:?}"
        );
    }
}
