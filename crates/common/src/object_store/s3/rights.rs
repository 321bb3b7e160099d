//! Can objects be copied at all? Asked when copies fail, by a copy to a key that no image has: conditional like
//! theirs, so that it meets what they meet.

use std::time::Duration;

use tokio::time::timeout;

use super::probe::{CopyProbe, PROBE_BODY};
use super::{S3Bucket, S3Store};
use crate::object_store::StoreError;
use crate::object_store::objects::BucketSide;
use crate::path_rule::PathRule;

/// What takes no time worth mentioning, also beside all that is in flight.
const MAX_SAMPLE_BYTES: i64 = 1 << 20;

/// The answer to the question must not wait for a store that hangs.
const REMOVE_TIMEOUT: Duration = Duration::from_secs(5);

impl S3Store {
    pub(super) async fn copy_for_rights(
        &self,
        rule: &PathRule,
        source_keys: &[String],
    ) -> Result<bool, StoreError> {
        let mut refusal = None;
        for key in source_keys {
            match self.copy_sample(rule, key).await {
                Err(StoreError::Permanent { .. }) => {}
                Ok(()) => return Ok(true),
                Err(error) if !error.is_response() => return Err(error),
                Err(error) => refusal = Some(error),
            }
        }
        match refusal {
            Some(error) => Err(error),
            None => self.copy_own_object(rule).await.map(|()| false),
        }
    }

    /// Of a large object the first byte is read, which takes the same rights.
    async fn copy_sample(&self, rule: &PathRule, key: &str) -> Result<(), StoreError> {
        match self.stat_object(BucketSide::Source, key).await? {
            None => Err(StoreError::permanent("NoSuchKey", "it is gone")),
            Some(stat) if stat.size_bytes <= MAX_SAMPLE_BYTES => {
                self.copy_onto_probe(rule, &self.source, key).await
            }
            Some(_) => {
                self.source.open(key, None, Some("bytes=0-0")).await?;
                self.copy_own_object(rule).await
            }
        }
    }

    /// The right to read the source is shown by a key that is not there: without it the store answers
    /// 403, and not 404.
    async fn copy_own_object(&self, rule: &PathRule) -> Result<(), StoreError> {
        let missing = self.copy_probe(rule.source_key_prefix());
        self.stat_object(BucketSide::Source, &missing.key).await?;
        let own = self.copy_probe(rule.destination_key_prefix());
        own.put(PROBE_BODY).await?;
        let copied = self
            .copy_onto_probe(rule, &self.destination, &own.key)
            .await;
        remove_quietly(&own).await;
        copied
    }

    async fn copy_onto_probe(
        &self,
        rule: &PathRule,
        source: &S3Bucket,
        key: &str,
    ) -> Result<(), StoreError> {
        let probe = self.copy_probe(rule.destination_key_prefix());
        let written = probe.write(source, key, self.condition()).await;
        let checked = match self.check_refusal(written, &probe.key).await {
            // Nobody else writes there: sent again, it has met itself.
            Ok(()) | Err(StoreError::DestinationExists) => probe.head().await.map(drop),
            Err(error) => Err(error),
        };
        // The copy may have been made although the answer says otherwise.
        if let Ok(()) | Err(StoreError::Transient { .. }) = checked {
            remove_quietly(&probe).await;
        }
        checked
    }
}

/// While the store is down this fails again and again: no warning for each.
async fn remove_quietly(probe: &CopyProbe<'_>) {
    let removed = timeout(REMOVE_TIMEOUT, probe.remove()).await;
    if !matches!(removed, Ok(Ok(()))) {
        let location = probe.location();
        tracing::debug!(location, ?removed, "could not remove a probe object");
    }
}
