//! Copies whose bytes go through this process: between two stores, and where a store refuses to overwrite on an upload
//! alone. Read and written at once, so that memory does not grow with the objects.

use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_types::base64;
use md5::{Digest, Md5};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::copy::{CopyCondition, ObjectRequest, RequestHeaders};
use super::hashed_body::{BodyFailure, HashedBody, SharedMd5, finish, hex};
use super::inspect::{OpenedObject, md5_of};
use super::multipart::{PartCopy, source_error};
use super::{CopyAttributes, S3Bucket, S3Store, bare_etag, confirm_copy, store_error};
use crate::object_store::{CopiedObject, StoreError};
use crate::permissions::PROBE_NAME;

/// An object up to this size whose MD5 is not known is read whole, so that it can be sent along.
const WHOLE_BYTES: u64 = 512 << 10;

/// What all copies of this process hold in memory, in KiB: 48 MiB, with the connections 64.
static MEMORY: Semaphore = Semaphore::const_new(48 << 10);

/// What one copy holds: at least its requests, at most what is read whole, or the buffers of two connections.
const HELD_KIB: (u32, u32) = (16, 512);

/// Up to this size in one upload.
const SINGLE_UPLOAD_BYTES: u64 = 64 << 20;

/// The most that one upload takes. Source: Amazon S3 API reference, `PutObject`.
const MAX_UPLOAD_BYTES: u64 = 5 << 30;

/// S3's code for bytes whose checksum is not the one that came along.
const BAD_DIGEST: &str = "BadDigest";

/// The code, of stores that have one, for an upload that came without the MD5 of its bytes.
const MISSING_MD5: &str = "MissingContentMD5";

/// The object at `source_key`, to be written to `key`.
pub(super) struct StreamedCopy<'a> {
    pub(super) store: &'a S3Store,
    pub(super) source: &'a S3Bucket,
    pub(super) source_key: &'a str,
    pub(super) key: &'a str,
    pub(super) condition: CopyCondition<'a>,
    pub(super) attributes: &'a CopyAttributes,
}

impl StreamedCopy<'_> {
    pub(super) async fn run(&self) -> Result<CopiedObject, StoreError> {
        let copied = match self.run_once(None).await {
            Err(error) if error.code() == BAD_DIGEST => self.run_against_etag().await,
            Err(error) if self.store.destination.is_md5_missing(&error) => {
                self.run_with_md5().await
            }
            other => other,
        };
        match (copied, self.condition) {
            // Ceph compares an upload's condition with an ETag that has no quotes.
            (Err(StoreError::DestinationExists), CopyCondition::Over(etag)) => {
                let condition = CopyCondition::Over(bare_etag(etag));
                Self { condition, ..*self }.run_once(None).await
            }
            (copied, _) => copied,
        }
    }

    /// The ETag is not the MD5 that it looks like, or other bytes came than the object's. Where ETags have been MD5s
    /// it is the bytes; elsewhere two reads must agree.
    async fn run_against_etag(&self) -> Result<CopiedObject, StoreError> {
        if self.source.habits.has_md5_etags.load(Ordering::Relaxed) {
            return Err(other_bytes());
        }
        self.run_with_md5().await
    }

    /// Reads it twice: to hold it meanwhile would take memory.
    async fn run_with_md5(&self) -> Result<CopiedObject, StoreError> {
        let memory = reserve_memory(u64::MAX).await;
        let object = self.source.open(self.source_key, None, None).await?;
        let (size, etag) = (object.head.size_bytes, object.head.etag().to_owned());
        let md5 = read_md5(object).await?;
        drop(memory);
        let head = self.source.head(self.source_key).await?;
        if head.is_none_or(|head| (head.size_bytes, head.etag()) != (size, &*etag)) {
            return Err(other_bytes());
        }
        match self.run_once(Some(md5)).await {
            Err(error) if error.code() == BAD_DIGEST => Err(other_bytes()),
            copied => copied,
        }
    }

    /// With the MD5 of its bytes, unless its ETag is to be that.
    async fn run_once(&self, known_md5: Option<[u8; 16]>) -> Result<CopiedObject, StoreError> {
        // A probe of a few bytes does not wait for copies that may have stalled.
        let is_probe = self.key.contains(PROBE_NAME);
        let memory = if is_probe {
            None
        } else {
            reserve_memory(u64::MAX).await
        };
        let object = self.source.open(self.source_key, None, None).await?;
        let size = object.size;
        if size > self.single_upload_bytes() {
            return Err(StoreError::TooLarge);
        }
        let (destination, etag_md5) = (&self.store.destination, object.head.md5());
        let md5 = known_md5.or(etag_md5);
        if md5.is_none()
            && size > WHOLE_BYTES
            && destination.habits.wants_md5.load(Ordering::Relaxed)
        {
            return Err(missing_md5());
        }
        // What an object of this size does not need is given back.
        let _memory = memory.and_then(|mut memory| memory.split(held_kib(size) as usize));
        let (source, key) = (self.source, self.source_key);
        let reads_tags = source.may_have_tags(&object.head);
        let headers = self.attributes;
        let headers = headers.upload_headers(source, key, &object.head, reads_tags);
        let mut headers = headers.await?;
        headers.extend(self.condition.header());
        let upload = Upload::of(object.body, md5, source.copies.timeout).await?;
        let written = upload.write(destination, self.key, "", headers).await?;
        if written.is_proven && etag_md5 == Some(written.md5) {
            source.habits.has_md5_etags.store(true, Ordering::Relaxed);
        }
        if !written.is_proven && !self.is_written(&written, size).await? {
            return Err(self.remove_broken(&written.copied.etag).await);
        }
        Ok(CopiedObject {
            size_bytes: i64::try_from(size).ok(),
            ..written.copied
        })
    }

    fn single_upload_bytes(&self) -> u64 {
        if self.store.options.conditional_complete {
            SINGLE_UPLOAD_BYTES.min(self.store.options.limits.single_bytes)
        } else {
            MAX_UPLOAD_BYTES
        }
    }

    /// Are the bytes those that were read?
    async fn is_written(&self, written: &WrittenBytes, size: u64) -> Result<bool, StoreError> {
        let destination = &self.store.destination;
        let etag = Some(&*written.copied.etag);
        let object = destination.open(self.key, etag, None).await?;
        let has_size = object.size == size;
        let md5 = read_md5(object).await?;
        Ok(has_size && md5 == written.md5)
    }

    /// The condition is the ETag's, where the store honours one.
    async fn remove_broken(&self, etag: &str) -> StoreError {
        let bucket = &self.store.destination;
        let removed = async {
            if self.store.options.conditional_copy {
                let condition = CopyCondition::Over(&format!("\"{etag}\"")).header();
                let removed = bucket.delete(self.key, condition.into_iter().collect());
                return removed.await.map(drop);
            }
            // Such a store may refuse what has a condition.
            match bucket.head(self.key).await? {
                Some(head) if head.etag() == etag => {
                    bucket.delete(self.key, Vec::new()).await.map(drop)
                }
                _ => Ok(()),
            }
        };
        if let Err(error) = removed.await {
            tracing::error!(key = self.key, %error, "a broken copy could not be removed");
        }
        broken_copy()
    }
}

impl S3Bucket {
    /// S3 has no code of its own for it, MinIO and others have.
    fn is_md5_missing(&self, error: &StoreError) -> bool {
        let StoreError::Suspect { code, message } = error else {
            return false;
        };
        let is_missing =
            code == MISSING_MD5 || (code == "InvalidRequest" && message.contains("Content-MD5"));
        self.habits
            .wants_md5
            .fetch_or(is_missing, Ordering::Relaxed);
        is_missing
    }
}

/// One part of an upload: these bytes of the source, first and last. Returns its ETag.
pub(super) async fn copy_streamed_part(
    copy: &PartCopy<'_>,
    query: &str,
    range: (u64, u64),
) -> Result<String, StoreError> {
    let _memory = reserve_memory(range.1 - range.0 + 1).await;
    let destination = &copy.store.destination;
    if !destination.habits.wants_md5.load(Ordering::Relaxed) {
        match send_part(copy, query, range, None).await {
            Err(error) if destination.is_md5_missing(&error) => {}
            sent => return sent,
        }
    }
    let md5 = read_md5(open_part(copy, range).await?).await?;
    send_part(copy, query, range, Some(md5)).await
}

async fn open_part(
    copy: &PartCopy<'_>,
    (first, last): (u64, u64),
) -> Result<OpenedObject, StoreError> {
    let (source, route, size) = (&copy.store.source, copy.route, last - first + 1);
    let range = format!("bytes={first}-{last}");
    let object = source.open(&route.source_key, Some(copy.source_etag), Some(&range));
    let object = object.await.map_err(source_error)?;
    if object.size != size {
        return Err(StoreError::permanent(
            "InvalidRange",
            format!(
                "the store gives {} bytes where {size} are asked for",
                object.size
            ),
        ));
    }
    Ok(object)
}

async fn send_part(
    copy: &PartCopy<'_>,
    query: &str,
    range: (u64, u64),
    md5: Option<[u8; 16]>,
) -> Result<String, StoreError> {
    let object = open_part(copy, range).await?;
    let limit = copy.store.source.copies.timeout;
    let upload = Upload::of(object.body, md5, limit).await?;
    let (destination, key) = (&copy.store.destination, &copy.route.destination_key);
    let written = upload.write(destination, key, query, Vec::new()).await?;
    // Where the ETag says nothing of the bytes, the connection's own checksums must do.
    if !written.is_proven && written.has_md5 {
        return Err(broken_copy());
    }
    Ok(written.copied.etag)
}

/// Before the object is opened: a store does not wait for long with its bytes.
async fn reserve_memory(size: u64) -> Option<SemaphorePermit<'static>> {
    MEMORY.acquire_many(held_kib(size)).await.ok()
}

fn held_kib(size: u64) -> u32 {
    let (least, most) = HELD_KIB;
    u32::try_from(size >> 10).unwrap_or(most).clamp(least, most)
}

/// Bytes on their way.
pub(super) struct Upload {
    size: u64,
    body: SdkBody,
    md5: UploadMd5,
    /// Of the bytes to be sent.
    failure: BodyFailure,
}

enum UploadMd5 {
    /// The destination compares.
    Sent([u8; 16]),
    /// Of what was read, when all of it is.
    Passing(SharedMd5),
}

/// What the destination says that it got.
pub(super) struct WrittenBytes {
    pub(super) copied: CopiedObject,
    md5: [u8; 16],
    /// Whether the ETag is an MD5.
    has_md5: bool,
    is_proven: bool,
}

impl Upload {
    pub(super) async fn of(
        content: HashedBody,
        known_md5: Option<[u8; 16]>,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        let (size, failure) = (content.left(), content.failure());
        let (body, md5) = match known_md5 {
            Some(md5) => (SdkBody::from_body_1_x(content), UploadMd5::Sent(md5)),
            None if size <= WHOLE_BYTES => {
                let bytes = read_whole(content, limit).await?;
                let md5 = UploadMd5::Sent(Md5::digest(&bytes).into());
                (SdkBody::from(bytes), md5)
            }
            None => {
                let hash = SharedMd5::default();
                let body = content.hashed(hash.clone());
                (SdkBody::from_body_1_x(body), UploadMd5::Passing(hash))
            }
        };
        Ok(Self {
            size,
            body,
            md5,
            failure,
        })
    }

    pub(super) async fn write(
        self,
        bucket: &S3Bucket,
        key: &str,
        query: &str,
        mut headers: RequestHeaders,
    ) -> Result<WrittenBytes, StoreError> {
        if let UploadMd5::Sent(md5) = &self.md5 {
            headers.push(("content-md5".into(), base64::encode(md5)));
        }
        let request = ObjectRequest {
            operation: if query.is_empty() {
                "PutObject"
            } else {
                "UploadPart"
            },
            method: "PUT",
            key,
            query,
            source: None,
            headers,
        };
        // A large object takes its time.
        let pieces = u32::try_from(self.size / SINGLE_UPLOAD_BYTES).unwrap_or(u32::MAX);
        let limit = bucket
            .copies
            .timeout
            .saturating_mul(pieces.saturating_add(1));
        let sent = bucket.copies.send(&request, self.body, limit).await;
        // What does not come from the source ends the request to the destination.
        let failed = |error| {
            self.failure
                .get()
                .cloned()
                .unwrap_or_else(|| store_error(error))
        };
        let response = sent.map_err(failed)?;
        let header = |name| response.headers().get(name);
        let copied = confirm_copy(header("etag"))?;
        let encryption = header("x-amz-server-side-encryption");
        let has_md5 = md5_of(&copied.etag, encryption).is_some();
        let (md5, was_compared) = match &self.md5 {
            UploadMd5::Sent(md5) => (*md5, !has_md5),
            UploadMd5::Passing(hash) => (finish(hash), false),
        };
        Ok(WrittenBytes {
            is_proven: was_compared || copied.etag.eq_ignore_ascii_case(&hex(&md5)),
            has_md5,
            md5,
            copied,
        })
    }
}

async fn read_whole(mut body: HashedBody, limit: Duration) -> Result<Vec<u8>, StoreError> {
    let read = timeout(limit, async {
        let size = usize::try_from(body.left().min(WHOLE_BYTES)).unwrap_or_default();
        let mut bytes = Vec::with_capacity(size);
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk?);
        }
        Ok(bytes)
    });
    let read = read.await;
    read.unwrap_or_else(|_| Err(body.stalled(limit)))
}

async fn read_md5(object: OpenedObject) -> Result<[u8; 16], StoreError> {
    let hash = SharedMd5::default();
    let mut body = object.body.hashed(hash.clone());
    while let Some(chunk) = body.next().await {
        chunk?;
    }
    Ok(finish(&hash))
}

fn other_bytes() -> StoreError {
    StoreError::transient(
        "OtherBytes",
        "the source's bytes are not those of its ETag: does a proxy change them?",
    )
}

fn missing_md5() -> StoreError {
    StoreError::Suspect {
        code: MISSING_MD5.into(),
        message: "the destination takes no upload without its MD5".into(),
    }
}

fn broken_copy() -> StoreError {
    StoreError::transient("BrokenCopy", "other bytes were written than read")
}

#[cfg(test)]
mod tests;
