//! The two buckets, as commands that work in parallel use them.

use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::objects::{Doomed, Fate, Remove, Side};
use bucket_brigade_common::preflight::{Need, check_bucket, patiently};
use bucket_brigade_common::s3::{CopyLimits, S3Options, S3Store};
use tokio::time::sleep;

use super::context::Context;

/// Objects looked at at a time: far below what S3 grants to one prefix, and enough to hide its latency.
pub(super) const IN_FLIGHT: usize = 64;

/// Tries before the service counts as out of reach: about half a minute.
const TRIES: u32 = 10;

const AGAIN: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(5),
};

/// The two buckets, checked. Conditions are always set: a store that ignores them has the look before each
/// write to rely on.
///
/// # Errors
/// A bucket that is not there, or not ours to look into.
pub(super) async fn open(context: &Context) -> anyhow::Result<S3Store> {
    let (source, destination) = context.buckets().await?;
    let (of_source, of_destination) = ("SOURCE_BUCKET_NAME", "DESTINATION_BUCKET_NAME");
    for (setting, bucket) in [(of_source, &source), (of_destination, &destination)] {
        let (client, name) = (bucket.client(), bucket.name());
        patiently(async || check_bucket(client, setting, name, Need::Use).await).await?;
    }
    let options = S3Options {
        storage_class: None,
        conditional_copy: true,
        limits: CopyLimits::default(),
    };
    Ok(S3Store::new(source, destination, options))
}

/// Calls the store until it answers, or for about half a minute.
///
/// # Errors
/// The last try's.
pub(super) async fn insist<T>(
    call: impl AsyncFn() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match call().await {
            Err(StoreError::Throttled { .. } | StoreError::Transient { .. }) if tries < TRIES => {
                sleep(AGAIN.delay(tries, fastrand::f64())).await;
            }
            other => return other,
        }
    }
}

/// Removes objects, those again that S3 was too busy for: a batch that is answered may hold such entries.
///
/// # Errors
/// The request as a whole failed, each time.
pub(super) async fn remove(
    store: &dyn Remove,
    side: Side,
    objects: &[Doomed],
) -> Result<Vec<Fate>, StoreError> {
    let mut fates = insist(async || store.remove(side, objects).await).await?;
    for tries in 1..TRIES {
        let busy = fates.iter().enumerate().filter(|(_, fate)| is_busy(fate));
        let busy: Vec<usize> = busy.map(|(index, _)| index).collect();
        if busy.is_empty() {
            break;
        }
        sleep(AGAIN.delay(tries, fastrand::f64())).await;
        let again: Vec<Doomed> = busy.iter().map(|index| objects[*index].clone()).collect();
        let answers = insist(async || store.remove(side, &again).await).await?;
        for (index, fate) in busy.into_iter().zip(answers) {
            fates[index] = fate;
        }
    }
    Ok(fates)
}

fn is_busy(fate: &Fate) -> bool {
    matches!(
        fate,
        Fate::Refused(StoreError::Throttled { .. } | StoreError::Transient { .. })
    )
}

/// Whether an error is about one object alone; any other ends the command.
pub(super) fn is_about_one(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Permanent { .. } | StoreError::Denied { .. }
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use bucket_brigade_common::object_store::Copied;
    use bucket_brigade_common::objects::Versioning;
    use bucket_brigade_common::path_rule::Route;

    use super::*;

    /// Too busy for all but the first object of each request, and not there for the very first request.
    #[derive(Default)]
    struct Busy(Mutex<Vec<usize>>);

    #[async_trait]
    impl Remove for Busy {
        async fn versioning(&self, _: Side) -> Result<Versioning, StoreError> {
            Ok(Versioning::Off)
        }

        async fn remove(&self, _: Side, objects: &[Doomed]) -> Result<Vec<Fate>, StoreError> {
            let throttled = || StoreError::Throttled {
                code: "SlowDown".into(),
            };
            let mut asked = self.0.lock().unwrap();
            asked.push(objects.len());
            if asked.len() == 1 {
                return Err(throttled());
            }
            let fate = |(number, object): (usize, &Doomed)| match number {
                0 => Fate::Removed {
                    delete_marker: Some(object.key.clone()),
                },
                _ => Fate::Refused(throttled()),
            };
            Ok(objects.iter().enumerate().map(fate).collect())
        }

        async fn bring_back(&self, _: Side, _: &Route) -> Result<Copied, StoreError> {
            Err(StoreError::TooLarge)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_what_s3_was_too_busy_for_is_asked_again() {
        let doomed = |key: &str| Doomed {
            key: key.into(),
            etag: "e".into(),
        };
        let objects = ["a", "b", "c"].map(doomed);
        let store = Busy::default();
        let fates = remove(&store, Side::Source, &objects).await.unwrap();
        for (fate, object) in fates.iter().zip(&objects) {
            let is_its_own =
                matches!(fate, Fate::Removed { delete_marker: Some(key) } if *key == object.key);
            assert!(is_its_own, "{fate:?}");
        }
        assert_eq!(*store.0.lock().unwrap(), [3, 3, 2, 1]);
    }
}
