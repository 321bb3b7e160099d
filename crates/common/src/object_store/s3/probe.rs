//! Questions to the store that are asked on objects of our own.
//!
//! Does this store honour `If-None-Match` on a copy? S3 does since October 2025; older stores with
//! its protocol ignore the header and overwrite. Found out once.
//!
//! Can objects be copied at all? Asked when copies fail.

use aws_sdk_s3::primitives::ByteStream;

use super::copy::{CopyCondition, CopyRequest};
use super::{NO_ETAG, S3Store, copy_source, store_error};
use crate::object_store::StoreError;
use crate::object_store::objects::BucketSide;
use crate::path_rule::MoveRoute;

/// What the second probe object holds; the first one's size is another.
const UNTOUCHED_BODY: &[u8] = b"untouched";

/// What the store said to a copy onto an object, on condition that there is none.
enum ConditionalCopyOutcome {
    Refused,
    Confirmed,
    Unsupported,
}

impl S3Store {
    /// Writes two probe objects under `prefix` in the destination bucket, copies one onto the other
    /// on condition that it is not there, and removes both. True when the store refused and really left
    /// the other as it was: at least one stand-in answers 412 and overwrites all the same.
    ///
    /// # Errors
    /// What the store says when it refuses to write to the destination bucket at all.
    pub async fn honours_conditional_copy(&self, prefix: &str) -> Result<bool, StoreError> {
        let name = format!("{prefix}.bucket-brigade-probe-{:016x}", fastrand::u64(..));
        let (from, to) = (format!("{name}-a"), format!("{name}-b"));
        let answer = self.try_overwriting(&from, &to).await;
        self.remove_probe(&from).await;
        self.remove_probe(&to).await;
        answer
    }

    /// Copies onto a probe object, and removes it. A refusal by condition would prove no right to write.
    pub(super) async fn copy_for_rights(
        &self,
        probe: &MoveRoute,
        copied: Option<&MoveRoute>,
    ) -> Result<(), StoreError> {
        let checked = match copied {
            Some(copied) => self.copy_known(copied, probe).await,
            None => Ok(false),
        };
        let checked = match checked {
            Ok(false) => self.copy_own(probe).await,
            other => other.map(drop),
        };
        self.remove_probe_quietly(&probe.destination_key).await;
        checked
    }

    /// False when the known object has gone since, or cannot be copied in one request.
    async fn copy_known(&self, copied: &MoveRoute, probe: &MoveRoute) -> Result<bool, StoreError> {
        let source = copy_source(&self.source.name, &copied.source_key);
        match self.copy_onto_probe(source, probe).await {
            Err(StoreError::Permanent { .. } | StoreError::TooLarge) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// The right to read the source is shown by a key that is not there: without it the store answers
    /// 403, and not 404.
    async fn copy_own(&self, probe: &MoveRoute) -> Result<(), StoreError> {
        self.stat_object(BucketSide::Source, &probe.source_key)
            .await?;
        let from = format!("{}-a", probe.destination_key);
        self.put_probe(&from, b"probe").await?;
        let source = copy_source(&self.destination.name, &from);
        let checked = self.copy_onto_probe(source, probe).await;
        self.remove_probe_quietly(&from).await;
        checked
    }

    async fn copy_onto_probe(&self, source: String, probe: &MoveRoute) -> Result<(), StoreError> {
        let key = &probe.destination_key;
        self.send_copy(&CopyRequest {
            key,
            source,
            condition: CopyCondition::None,
            storage_class: self.storage_class(),
        })
        .await?;
        self.stat_object(BucketSide::Destination, key)
            .await
            .map(drop)
    }

    async fn try_overwriting(&self, from: &str, to: &str) -> Result<bool, StoreError> {
        self.put_probe(from, b"new").await?;
        self.put_probe(to, UNTOUCHED_BODY).await?;
        let answer = self.copy_if_absent(from, to).await?;
        let is_untouched = self.is_untouched(to).await?;
        match answer {
            ConditionalCopyOutcome::Refused => Ok(is_untouched),
            // A store that knows the header only to refuse it is as good as one that ignores it.
            ConditionalCopyOutcome::Unsupported => Ok(false),
            ConditionalCopyOutcome::Confirmed if !is_untouched => Ok(false),
            // A 200 that copied nothing, an empty one for example, says nothing of the store. Taken for
            // one that overwrites, it would have this process do without the condition for good.
            ConditionalCopyOutcome::Confirmed => Err(StoreError::Transient {
                code: "NothingCopied".into(),
                message: "the store confirmed a copy that it did not make".into(),
            }),
        }
    }

    async fn put_probe(&self, key: &str, body: &'static [u8]) -> Result<(), StoreError> {
        self.destination
            .client
            .put_object()
            .bucket(&self.destination.name)
            .key(key)
            .body(ByteStream::from_static(body))
            .send()
            .await
            .map(drop)
            .map_err(store_error)
    }

    /// In the storage class of the copies, which the store may not know.
    async fn copy_if_absent(
        &self,
        from: &str,
        to: &str,
    ) -> Result<ConditionalCopyOutcome, StoreError> {
        let request = CopyRequest {
            key: to,
            source: copy_source(&self.destination.name, from),
            condition: CopyCondition::Absent,
            storage_class: self.storage_class(),
        };
        match self.send_copy(&request).await {
            Ok(_) => Ok(ConditionalCopyOutcome::Confirmed),
            Err(StoreError::DestinationExists) => Ok(ConditionalCopyOutcome::Refused),
            Err(error) if error.code() == "NotImplemented" => {
                Ok(ConditionalCopyOutcome::Unsupported)
            }
            Err(error) if error.code() == NO_ETAG => Ok(ConditionalCopyOutcome::Confirmed),
            Err(error) => Err(error),
        }
    }

    async fn is_untouched(&self, key: &str) -> Result<bool, StoreError> {
        let head = self
            .destination
            .client
            .head_object()
            .bucket(&self.destination.name)
            .key(key)
            .send()
            .await
            .map_err(store_error)?;
        Ok(head.content_length == i64::try_from(UNTOUCHED_BODY.len()).ok())
    }

    async fn remove_probe(&self, key: &str) {
        if let Err(error) = self.delete_probe(key).await {
            let bucket = &self.destination.name;
            tracing::warn!(%bucket, key, %error, "could not remove a probe object of a few bytes; remove it by hand, or set CONDITIONAL_COPY=on to do without the probe");
        }
    }

    /// The next check tries again, under the same key: no warning for each.
    async fn remove_probe_quietly(&self, key: &str) {
        if let Err(error) = self.delete_probe(key).await {
            tracing::debug!(key, %error, "could not remove a probe object");
        }
    }

    async fn delete_probe(&self, key: &str) -> Result<(), StoreError> {
        let deletion = self.destination.client.delete_object();
        let deletion = deletion.bucket(&self.destination.name).key(key);
        deletion.send().await.map(drop).map_err(store_error)
    }
}
