//! Copies to keys that no image has: can they be made, and does this store honour `If-None-Match` on one?
//! S3 does since October 2025; other stores with its protocol ignore the header on a copy and overwrite, some
//! of them not on an upload.

use std::time::Duration;

use tokio::time::Instant;

use super::copy::{CopyCondition, RequestHeaders};
use super::encoding::encode_query;
use super::{ObjectHead, S3Bucket, S3Store};
use crate::object_store::{NO_ETAG, StoreError};
use crate::permissions::PROBE_NAME;

/// What a probe object holds.
pub(super) const PROBE_BODY: &[u8] = b"a probe of bucket-brigade";

/// What the object holds that is not to be overwritten. No copy over it has its size.
const UNTOUCHED_BODY: &[u8] = b"a probe of bucket-brigade, not to be overwritten";

/// Of stores that refuse the header.
const REFUSED_CONDITION_CODES: [&str; 3] = ["NotImplemented", "InvalidRequest", "InvalidArgument"];

/// A key of the destination that no image has, for copies that prove something.
#[derive(Debug)]
pub struct CopyProbe<'a> {
    store: &'a S3Store,
    pub(super) key: String,
}

impl S3Store {
    /// A new probe whose key starts with `prefix`.
    pub fn copy_probe(&self, prefix: &str) -> CopyProbe<'_> {
        let key = format!("{prefix}{PROBE_NAME}{:016x}", fastrand::u64(..));
        CopyProbe { store: self, key }
    }

    /// Copies one object of our own onto another, on condition that it is not there, by the method of the copies.
    ///
    /// # Errors
    /// What the store says when it refuses to write to the destination bucket at all.
    pub async fn honours_condition(&self, prefix: &str) -> Result<bool, StoreError> {
        let (from, onto) = (self.copy_probe(prefix), self.copy_probe(prefix));
        let honours = async {
            from.put(b"new").await?;
            from.check_encryption().await?;
            onto.try_overwriting(onto.write(&self.destination, &from.key, CopyCondition::Absent))
                .await
        };
        let honours = honours.await;
        from.remove_or_warn().await;
        onto.remove_or_warn().await;
        honours
    }

    /// The same copy without a condition.
    pub(super) async fn check_plain_copy(&self, prefix: &str) -> Result<(), StoreError> {
        let (from, onto) = (self.copy_probe(prefix), self.copy_probe(prefix));
        let copied = async {
            from.put(b"new").await?;
            onto.write(&self.destination, &from.key, CopyCondition::None)
                .await
        };
        let copied = copied.await;
        from.remove_or_warn().await;
        onto.remove_or_warn().await;
        copied
    }

    /// What [`honours_condition`](Self::honours_condition) finds out, of an upload in parts.
    pub(super) async fn honours_conditional_complete(
        &self,
        prefix: &str,
    ) -> Result<bool, StoreError> {
        let onto = self.copy_probe(prefix);
        let honours = Box::pin(onto.try_overwriting(onto.upload_if_absent())).await;
        onto.remove_or_warn().await;
        honours
    }
}

impl CopyProbe<'_> {
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Where it is, for people to find.
    pub fn location(&self) -> String {
        format!("s3://{}/{}", self.store.destination.name, self.key)
    }

    /// Copies a real object, and returns how long that took.
    pub async fn copy(&self, source_key: &str) -> Result<Duration, StoreError> {
        let began = Instant::now();
        self.write(&self.store.source, source_key, CopyCondition::None)
            .await?;
        Ok(began.elapsed())
    }

    /// What a HEAD says of it.
    pub async fn head(&self) -> Result<ObjectHead, StoreError> {
        let head = self.store.destination.head(&self.key).await?;
        head.ok_or_else(|| StoreError::permanent("NoSuchKey", "the copy is not there"))
    }

    /// Removes whatever is here.
    pub async fn remove(&self) -> Result<(), StoreError> {
        let removed = self.store.destination.delete(&self.key, Vec::new());
        removed.await.map(drop)
    }

    async fn remove_or_warn(&self) {
        if let Err(error) = self.remove().await {
            let location = self.location();
            let remedy = if self.store.destination.copies.is_aws() {
                ", or set CONDITIONAL_COPY=on to do without the probe"
            } else {
                ""
            };
            tracing::warn!(location, %error, "could not remove a probe object of a few bytes; remove it by hand{remedy}");
        }
    }

    /// True when the store refused and really left the object as it was: at least one stand-in answers 412
    /// and overwrites all the same.
    async fn try_overwriting(
        &self,
        write: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<bool, StoreError> {
        self.put(UNTOUCHED_BODY).await?;
        let is_untouched = async || {
            let size = self.head().await?.size_bytes;
            Ok(i64::try_from(UNTOUCHED_BODY.len()) == Ok(size))
        };
        match write.await {
            Err(StoreError::DestinationExists) => is_untouched().await,
            // A store that knows the header only to refuse it is as good as one that ignores it. What else it may mean
            // a copy without the header shows.
            Err(error) if REFUSED_CONDITION_CODES.contains(&error.code()) => Ok(false),
            Err(error) if error.code() != NO_ETAG => Err(error),
            _ if !is_untouched().await? => Ok(false),
            // A 200 that copied nothing, an empty one for example, says nothing of the store. Taken for
            // one that overwrites, it would have this process do without the condition for good.
            _ => Err(StoreError::transient(
                "NothingCopied",
                "the store confirmed a copy that it did not make",
            )),
        }
    }

    /// A store may take what it does not know without a word.
    async fn check_encryption(&self) -> Result<(), StoreError> {
        if self.store.options.attributes.encryption.is_some() && !self.head().await?.is_encrypted()
        {
            return Err(StoreError::Suspect {
                code: "NotEncrypted".into(),
                message:
                    "the store took an object to be encrypted (SSE), and does not show that it is"
                        .into(),
            });
        }
        Ok(())
    }

    async fn upload_if_absent(&self) -> Result<(), StoreError> {
        let bucket = &self.store.destination;
        let upload = bucket.create_upload(&self.key, self.headers()).await?;
        let uploaded = async {
            let query = format!("?partNumber=1&uploadId={}", encode_query(&upload));
            let part = bucket.put(&self.key, &query, Vec::new(), b"new").await?;
            let condition = CopyCondition::Absent;
            bucket
                .complete_upload(&self.key, &upload, &[part], condition)
                .await
        };
        let uploaded = uploaded.await;
        if uploaded.is_err() {
            drop(bucket.abort_upload(&self.key, &upload).await);
        }
        uploaded.map(drop)
    }

    /// With the attributes of the copies, which the store may not know.
    pub(super) async fn write(
        &self,
        source: &S3Bucket,
        source_key: &str,
        condition: CopyCondition<'_>,
    ) -> Result<(), StoreError> {
        let attributes = self.store.options.attributes.for_probe();
        self.store
            .write_copy(source, source_key, &self.key, condition, &attributes)
            .await
            .map(drop)
    }

    pub(super) async fn put(&self, body: &'static [u8]) -> Result<(), StoreError> {
        let put = self
            .store
            .destination
            .put(&self.key, "", self.headers(), body);
        put.await.map(drop)
    }

    /// As the copies have them: a bucket's policy may refuse what comes without.
    fn headers(&self) -> RequestHeaders {
        self.store
            .options
            .attributes
            .for_probe()
            .headers()
            .collect()
    }
}
