//! Copies to keys that no image has: can they be made, and does this store honour `If-None-Match` on one?
//! S3 does since October 2025; older stores with its protocol ignore the header and overwrite.

use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use tokio::time::Instant;

use super::copy::{CopyCondition, CopyRequest};
use super::{NO_ETAG, S3Store, copy_source, store_error};
use crate::object_store::StoreError;

/// What the object holds that is not to be overwritten. No copy over it has its size.
const UNTOUCHED_BODY: &[u8] = b"a probe of bucket-brigade, not to be overwritten";

/// What the store said to a copy onto an object, on condition that there is none.
enum ConditionalCopyOutcome {
    Refused,
    Confirmed,
    Unsupported,
}

/// A key of the destination that no image has, for copies that prove something.
#[derive(Debug)]
pub struct CopyProbe<'a> {
    store: &'a S3Store,
    pub(super) key: String,
}

impl S3Store {
    /// A new probe whose key starts with `prefix`.
    pub fn copy_probe(&self, prefix: &str) -> CopyProbe<'_> {
        let key = format!("{prefix}.bucket-brigade-probe-{:016x}", fastrand::u64(..));
        CopyProbe { store: self, key }
    }

    /// Copies one object of our own onto another, on condition that it is not there.
    ///
    /// # Errors
    /// What the store says when it refuses to write to the destination bucket at all.
    pub async fn honours_conditional_copy(&self, prefix: &str) -> Result<bool, StoreError> {
        let (from, onto) = (self.copy_probe(prefix), self.copy_probe(prefix));
        let honours = async {
            from.put(b"new").await?;
            let source = copy_source(&self.destination.name, &from.key);
            onto.try_overwriting(source).await
        };
        let honours = honours.await;
        for probe in [from, onto] {
            if let Err(error) = probe.remove().await {
                let location = probe.location();
                tracing::warn!(location, %error, "could not remove a probe object of a few bytes; remove it by hand, or set CONDITIONAL_COPY=on to do without the probe");
            }
        }
        honours
    }
}

impl CopyProbe<'_> {
    /// Where it is, for people to find.
    pub fn location(&self) -> String {
        format!("s3://{}/{}", self.store.destination.name, self.key)
    }

    /// Copies a real object, and returns how long that took.
    pub async fn copy(&self, source_key: &str) -> Result<Duration, StoreError> {
        let began = Instant::now();
        let request = CopyRequest {
            condition: CopyCondition::None,
            ..self.request(copy_source(&self.store.source.name, source_key))
        };
        self.store.send_copy(&request).await?;
        Ok(began.elapsed())
    }

    /// What a HEAD says of it.
    pub async fn head(&self) -> Result<HeadObjectOutput, StoreError> {
        let head = self.store.destination.head(&self.key).await?;
        head.ok_or_else(|| StoreError::Permanent {
            code: "NoSuchKey".into(),
            message: "the copy is not there".into(),
        })
    }

    /// Puts an object of our own here, and copies a real one onto it, on condition that there is none.
    pub async fn honours_condition(&self, source_key: &str) -> Result<bool, StoreError> {
        let source = copy_source(&self.store.source.name, source_key);
        self.try_overwriting(source).await
    }

    /// Removes whatever is here.
    pub async fn remove(&self) -> Result<(), StoreError> {
        let bucket = &self.store.destination;
        let request = bucket.client.delete_object().bucket(&bucket.name);
        let removed = request.key(&self.key).send().await;
        removed.map(drop).map_err(store_error)
    }

    /// True when the store refused and really left the object as it was: at least one stand-in answers 412
    /// and overwrites all the same.
    async fn try_overwriting(&self, source: String) -> Result<bool, StoreError> {
        self.put(UNTOUCHED_BODY).await?;
        let outcome = self.copy_if_absent(source).await?;
        let size = self.head().await?.content_length;
        let is_untouched = size == i64::try_from(UNTOUCHED_BODY.len()).ok();
        match outcome {
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

    async fn copy_if_absent(&self, source: String) -> Result<ConditionalCopyOutcome, StoreError> {
        match self.store.send_copy(&self.request(source)).await {
            Ok(_) => Ok(ConditionalCopyOutcome::Confirmed),
            Err(StoreError::DestinationExists) => Ok(ConditionalCopyOutcome::Refused),
            Err(error) if error.code() == "NotImplemented" => {
                Ok(ConditionalCopyOutcome::Unsupported)
            }
            Err(error) if error.code() == NO_ETAG => Ok(ConditionalCopyOutcome::Confirmed),
            Err(error) => Err(error),
        }
    }

    /// With the attributes of the copies, which the store may not know.
    fn request(&self, source: String) -> CopyRequest<'_> {
        CopyRequest {
            key: &self.key,
            source,
            condition: CopyCondition::Absent,
            attributes: &self.store.options.attributes,
        }
    }

    pub(super) async fn put(&self, body: &'static [u8]) -> Result<(), StoreError> {
        let bucket = &self.store.destination;
        let request = bucket.client.put_object().bucket(&bucket.name);
        let request = request.key(&self.key).body(ByteStream::from_static(body));
        request.send().await.map(drop).map_err(store_error)
    }
}
