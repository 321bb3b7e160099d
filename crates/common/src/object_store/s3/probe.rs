//! Copies to keys that no image has: can they be made, and does this store honour `If-None-Match` on one?
//! S3 does since October 2025; other stores with its protocol ignore the header on a copy and overwrite, some
//! of them not on an upload.

use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use tokio::time::Instant;

use super::copy::CopyCondition;
use super::{NO_ETAG, S3Bucket, S3Store, store_error};
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

    /// Copies one object of our own onto another, on condition that it is not there, by the method of the copies.
    ///
    /// # Errors
    /// What the store says when it refuses to write to the destination bucket at all.
    pub async fn honours_condition(&self, prefix: &str) -> Result<bool, StoreError> {
        let (from, onto) = (self.copy_probe(prefix), self.copy_probe(prefix));
        let honours = async {
            from.put(b"new").await?;
            onto.try_overwriting(onto.copy_if_absent(&self.destination, &from.key))
                .await
        };
        let honours = honours.await;
        from.remove_or_warn().await;
        onto.remove_or_warn().await;
        honours
    }

    /// The same of an upload in parts.
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
    pub async fn head(&self) -> Result<HeadObjectOutput, StoreError> {
        let head = self.store.destination.head(&self.key).await?;
        head.ok_or_else(|| StoreError::permanent("NoSuchKey", "the copy is not there"))
    }

    /// Removes whatever is here.
    pub async fn remove(&self) -> Result<(), StoreError> {
        let bucket = &self.store.destination;
        let request = bucket.client.delete_object().bucket(&bucket.name);
        let removed = request.key(&self.key).send().await;
        removed.map(drop).map_err(store_error)
    }

    async fn remove_or_warn(&self) {
        if let Err(error) = self.remove().await {
            let location = self.location();
            tracing::warn!(location, %error, "could not remove a probe object of a few bytes; remove it by hand, or set CONDITIONAL_COPY=on to do without the probe");
        }
    }

    /// True when the store refused and really left the object as it was: at least one stand-in answers 412
    /// and overwrites all the same.
    async fn try_overwriting(
        &self,
        write: impl Future<Output = Result<(), StoreError>>,
    ) -> Result<bool, StoreError> {
        self.put(UNTOUCHED_BODY).await?;
        let outcome = match write.await {
            Ok(()) => ConditionalCopyOutcome::Confirmed,
            Err(StoreError::DestinationExists) => ConditionalCopyOutcome::Refused,
            Err(error) if error.code() == "NotImplemented" => ConditionalCopyOutcome::Unsupported,
            Err(error) if error.code() == NO_ETAG => ConditionalCopyOutcome::Confirmed,
            Err(error) => return Err(error),
        };
        let size = self.head().await?.content_length;
        let is_untouched = size == i64::try_from(UNTOUCHED_BODY.len()).ok();
        match outcome {
            ConditionalCopyOutcome::Refused => Ok(is_untouched),
            // A store that knows the header only to refuse it is as good as one that ignores it.
            ConditionalCopyOutcome::Unsupported => Ok(false),
            ConditionalCopyOutcome::Confirmed if !is_untouched => Ok(false),
            // A 200 that copied nothing, an empty one for example, says nothing of the store. Taken for
            // one that overwrites, it would have this process do without the condition for good.
            ConditionalCopyOutcome::Confirmed => Err(StoreError::transient(
                "NothingCopied",
                "the store confirmed a copy that it did not make",
            )),
        }
    }

    async fn copy_if_absent(&self, source: &S3Bucket, key: &str) -> Result<(), StoreError> {
        self.write(source, key, CopyCondition::Absent).await
    }

    async fn upload_if_absent(&self) -> Result<(), StoreError> {
        let bucket = &self.store.destination;
        let create = bucket.client.create_multipart_upload();
        let create = create.bucket(&bucket.name).key(&self.key).send().await;
        let upload = create.map_err(store_error)?.upload_id.unwrap_or_default();
        let part = bucket.client.upload_part().bucket(&bucket.name);
        let part = part.key(&self.key).upload_id(&upload).part_number(1);
        let part = part.body(ByteStream::from_static(b"new")).send().await;
        let uploaded = async {
            let etag = part.map_err(store_error)?.e_tag;
            let part = CompletedPart::builder().set_e_tag(etag).part_number(1);
            let parts = CompletedMultipartUpload::builder().parts(part.build());
            let complete = bucket.client.complete_multipart_upload();
            let complete = complete.bucket(&bucket.name).key(&self.key);
            let complete = complete.upload_id(&upload).if_none_match("*");
            let complete = complete.multipart_upload(parts.build()).send().await;
            complete.map(drop).map_err(store_error)
        };
        let uploaded = uploaded.await;
        if uploaded.is_err() {
            let abort = bucket.client.abort_multipart_upload();
            let abort = abort.bucket(&bucket.name).key(&self.key);
            drop(abort.upload_id(&upload).send().await);
        }
        uploaded
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
        let bucket = &self.store.destination;
        let request = bucket.client.put_object().bucket(&bucket.name);
        let request = request.key(&self.key).body(ByteStream::from_static(body));
        request.send().await.map(drop).map_err(store_error)
    }
}
