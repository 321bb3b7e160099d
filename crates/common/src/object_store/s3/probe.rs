//! Does this store honour `If-None-Match` on a copy? S3 does since October 2025; older stores with
//! its protocol ignore the header and overwrite. Found out once, on objects of our own.

use aws_sdk_s3::primitives::ByteStream;

use super::copy::{CopyCondition, CopyRequest};
use super::{NO_ETAG, S3Store, copy_source, store_error};
use crate::object_store::StoreError;

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
        let bucket = &self.destination.name;
        let removed = self
            .destination
            .client
            .delete_object()
            .bucket(bucket)
            .key(key)
            .send()
            .await;
        if let Err(error) = removed {
            let error = store_error(error);
            tracing::warn!(%bucket, key, %error, "could not remove a probe object of a few bytes; remove it by hand, or set CONDITIONAL_COPY=on to do without the probe");
        }
    }
}
