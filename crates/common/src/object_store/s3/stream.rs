//! Copies whose bytes go through this process: between two stores, and where a store refuses to overwrite on an upload
//! alone. Read and written at once, so that memory does not grow with the objects.

use std::future::poll_fn;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::time::Duration;

use aws_sdk_s3::primitives::{AggregatedBytes, ByteStream, SdkBody};
use aws_sdk_s3::types::{CompletedPart, ObjectCannedAcl, ServerSideEncryption};
use aws_smithy_types::base64;
use http_body::Body;
use md5::{Digest, Md5};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::attributes::readable_class;
use super::copy::{CopyCondition, PutRequest, RequestHeaders};
use super::hashed_body::{HashedBody, SharedMd5, finish, hex};
use super::inspect::is_md5_of;
use super::multipart::{read_tags, source_error};
use super::opened_object::OpenedObject;
use super::{CopyAttributes, S3Bucket, S3Store, bare_etag, confirm_copy, store_error};
use crate::aws::error_chain;
use crate::object_store::{CopiedObject, StoreError};
use crate::path_rule::MoveRoute;

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
        let copied = match self.run_once(true).await {
            // The ETag was not the MD5 that it looks like.
            Err(error) if error.code() == BAD_DIGEST => self.run_once(false).await,
            other => other,
        };
        match (copied, self.condition) {
            // Ceph compares an upload's condition with an ETag that has no quotes.
            (Err(StoreError::DestinationExists), CopyCondition::Over(etag)) => {
                let condition = CopyCondition::Over(bare_etag(etag));
                Self { condition, ..*self }.run_once(true).await
            }
            (copied, _) => copied,
        }
    }

    async fn run_once(&self, trusts_etag: bool) -> Result<CopiedObject, StoreError> {
        let memory = reserve_memory(u64::MAX).await;
        let object = self.source.open(self.source_key, None, None).await?;
        let size = object.size;
        if size > self.single_upload_bytes() {
            return Err(StoreError::TooLarge);
        }
        let _memory = keep_for(memory, size);
        let headers = self.upload_headers(&object).await?;
        let md5 = object.md5().filter(|_| trusts_etag);
        let upload = Upload::of(object.body, size, md5, self.source.timeout).await?;
        let destination = &self.store.destination;
        let written = upload.write(destination, self.key, "", headers).await?;
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

    /// All that the copy is to have.
    async fn upload_headers(&self, object: &OpenedObject) -> Result<RequestHeaders, StoreError> {
        let mut headers = object.carried_headers()?;
        let mut attributes = self.attributes.clone();
        if attributes.keeps_acl && self.source.is_public(self.source_key).await? {
            attributes.acl = Some(ObjectCannedAcl::PublicRead);
        }
        if attributes.keeps_storage_class {
            let class = object.header("x-amz-storage-class");
            attributes.storage_class = readable_class(class.map(Into::into));
        }
        let mut add = |name: &'static str, value: &str| headers.push((name.into(), value.into()));
        attributes
            .headers()
            .for_each(|(name, value)| add(name, value));
        match self.condition {
            CopyCondition::Absent => add("if-none-match", "*"),
            CopyCondition::Over(etag) => add("if-match", etag),
            CopyCondition::None => {}
        }
        let has_tags = object.header("x-amz-tagging-count");
        if has_tags.is_some_and(|count| count != "0")
            && let Some(tags) = read_tags(self.source, self.source_key).await?
        {
            add("x-amz-tagging", &tags);
        }
        Ok(headers)
    }

    /// Are the bytes those that were read?
    async fn is_written(&self, written: &WrittenBytes, size: u64) -> Result<bool, StoreError> {
        let etag = format!("\"{}\"", written.copied.etag);
        let destination = &self.store.destination;
        let object = destination.open(self.key, Some(&etag), None).await?;
        let hash = SharedMd5::default();
        let (body, limit) = (object.body, destination.timeout);
        let mut body = HashedBody::new(body, object.size, Some(hash.clone()), limit);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            frame.map_err(|error| cut_short(&error))?;
        }
        Ok(object.size == size && finish(&hash) == written.md5)
    }

    /// The condition is the ETag's, where the store honours one.
    async fn remove_broken(&self, etag: &str) -> StoreError {
        let bucket = &self.store.destination;
        let request = bucket
            .client
            .delete_object()
            .bucket(&bucket.name)
            .key(self.key);
        if let Err(error) = request.if_match(format!("\"{etag}\"")).send().await {
            let error = store_error(error);
            tracing::error!(key = self.key, %error, "a broken copy could not be removed");
        }
        broken_copy()
    }
}

/// A part of an upload, and where its bytes are.
pub(super) struct StreamedPart<'a> {
    pub(super) upload: &'a str,
    pub(super) source_etag: Option<&'a str>,
    pub(super) number: i32,
    /// First and last byte.
    pub(super) range: (u64, u64),
}

impl StreamedPart<'_> {
    pub(super) async fn copy(
        &self,
        store: &S3Store,
        route: &MoveRoute,
    ) -> Result<CompletedPart, StoreError> {
        let (source, destination) = (&store.source, &store.destination);
        let (first, last) = self.range;
        let size = last - first + 1;
        let _memory = reserve_memory(size).await;
        let range = format!("bytes={first}-{last}");
        let object = source.open(&route.source_key, self.source_etag, Some(&range));
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
        let upload = Upload::of(object.body, size, None, source.timeout).await?;
        let id = utf8_percent_encode(self.upload, NON_ALPHANUMERIC);
        let query = format!("?partNumber={}&uploadId={id}", self.number);
        let key = &route.destination_key;
        let written = upload.write(destination, key, &query, Vec::new()).await?;
        // Where the ETag says nothing of the bytes, the connection's own checksums must do.
        if !written.is_proven && written.has_md5 {
            return Err(broken_copy());
        }
        let part = CompletedPart::builder().e_tag(written.copied.etag);
        Ok(part.part_number(self.number).build())
    }
}

/// Before the object is opened: a store does not wait for long with its bytes.
async fn reserve_memory(size: u64) -> Option<SemaphorePermit<'static>> {
    MEMORY.acquire_many(held_kib(size)).await.ok()
}

/// Gives back what an object of this size does not need.
fn keep_for(
    memory: Option<SemaphorePermit<'static>>,
    size: u64,
) -> Option<SemaphorePermit<'static>> {
    memory?.split(held_kib(size) as usize)
}

fn held_kib(size: u64) -> u32 {
    let (least, most) = HELD_KIB;
    u32::try_from(size >> 10).unwrap_or(most).clamp(least, most)
}

/// Bytes on their way.
struct Upload {
    size: u64,
    body: SdkBody,
    md5: UploadMd5,
}

enum UploadMd5 {
    /// The destination compares.
    Sent([u8; 16]),
    /// Of what was read, when all of it is.
    Passing(SharedMd5),
}

/// What the destination says that it got.
struct WrittenBytes {
    copied: CopiedObject,
    md5: [u8; 16],
    /// Whether the ETag is an MD5.
    has_md5: bool,
    is_proven: bool,
}

impl Upload {
    async fn of(
        content: SdkBody,
        size: u64,
        known_md5: Option<[u8; 16]>,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        let (body, md5) = match known_md5 {
            Some(md5) => {
                let body = HashedBody::new(content, size, None, limit);
                (SdkBody::from_body_1_x(body), UploadMd5::Sent(md5))
            }
            None if size <= WHOLE_BYTES => {
                let read = timeout(limit, ByteStream::new(content).collect()).await;
                let read = read.map_err(|_| cut_short(&Error::from(ErrorKind::TimedOut)))?;
                let bytes = read.map(AggregatedBytes::into_bytes);
                let bytes = bytes.map_err(|error| cut_short(&error))?;
                let md5 = UploadMd5::Sent(Md5::digest(&bytes).into());
                (SdkBody::from(bytes), md5)
            }
            None => {
                let hash = SharedMd5::default();
                let body = HashedBody::new(content, size, Some(hash.clone()), limit);
                (SdkBody::from_body_1_x(body), UploadMd5::Passing(hash))
            }
        };
        Ok(Self { size, body, md5 })
    }

    async fn write(
        self,
        bucket: &S3Bucket,
        key: &str,
        query: &str,
        mut headers: RequestHeaders,
    ) -> Result<WrittenBytes, StoreError> {
        headers.extend(bucket.request_headers());
        if let UploadMd5::Sent(md5) = &self.md5 {
            headers.push(("content-md5".into(), base64::encode(md5)));
        }
        // A large object takes its time.
        let pieces = u32::try_from(self.size / SINGLE_UPLOAD_BYTES).unwrap_or(u32::MAX);
        let put = PutRequest {
            key,
            query,
            headers,
            body: self.body,
            size: self.size,
            limit: bucket.timeout.saturating_mul(pieces.saturating_add(1)),
        };
        let response = bucket.copies.put_object(put).await.map_err(store_error)?;
        let header = |name| response.headers().get(name);
        let copied = confirm_copy(header("etag"))?;
        let encryption = header("x-amz-server-side-encryption").map(ServerSideEncryption::from);
        let has_md5 = is_md5_of(&copied.etag, encryption.as_ref());
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

fn broken_copy() -> StoreError {
    StoreError::transient("BrokenCopy", "other bytes were written than read")
}

fn cut_short(error: &(dyn std::error::Error + 'static)) -> StoreError {
    StoreError::transient("BodyCutShort", error_chain(error))
}

#[cfg(test)]
mod tests;
