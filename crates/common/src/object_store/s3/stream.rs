//! A copy whose bytes go through this process: for two stores, and for one that refuses to overwrite on an upload
//! alone. Read and written at once, so that memory does not grow with the objects.

use std::future::poll_fn;
use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Config, RequestChecksumCalculation};
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::put_object::PutObjectOutput;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{AggregatedBytes, ByteStream};
use aws_sdk_s3::types::{CompletedPart, ObjectCannedAcl};
use aws_smithy_types::base64;
use http_body::Body;
use md5::{Digest, Md5};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::attributes::readable_class;
use super::copy::CopyCondition;
use super::hashed_body::{HashedBody, finish, hex};
use super::inspect::{is_md5_of, unreadable_header};
use super::multipart::{read_tags, source_error};
use super::{CopyAttributes, S3Bucket, S3Store, bare_etag, confirm_copy, store_error};
use crate::aws::error_chain;
use crate::object_store::{CopiedObject, StoreError};
use crate::path_rule::MoveRoute;

/// Objects up to this size are read whole: their checksum is sent along, and a connection is not held open for
/// two stores at a time. Of a larger one the buffers hold no more.
const WHOLE_BYTES: u64 = 512 << 10;

/// What all copies of this process hold in memory: 48 MiB, with the connections 64.
static BUDGET: Semaphore = Semaphore::const_new(96);

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
        let _memory = BUDGET.acquire().await.ok();
        let mut object = self.source.get(self.source_key, None, None).await?;
        if let Some(header) = unreadable_header(&object) {
            return Err(StoreError::Permanent {
                code: "Unreadable".into(),
                message: format!(
                    "its header {header} is not UTF-8, and could not be written as it is"
                ),
            });
        }
        let size = body_bytes(&object)?;
        if size > self.single_upload_bytes() {
            return Err(StoreError::TooLarge);
        }
        let content = std::mem::take(&mut object.body);
        let known_md5 = md5_of_source(&object).filter(|_| trusts_etag);
        let mut upload = Upload::of(content, size, known_md5, self.source.timeout).await?;
        let output = self.put(&object, &mut upload).await?;
        let copied = confirm_copy(output.e_tag())?;
        if !upload.is_proven(&copied.etag) && !self.is_written(&copied.etag, &upload).await? {
            return Err(self.remove_broken(&copied.etag).await);
        }
        let size_bytes = object.content_length;
        Ok(CopiedObject {
            size_bytes,
            ..copied
        })
    }

    fn single_upload_bytes(&self) -> u64 {
        if self.store.options.conditional_complete {
            SINGLE_UPLOAD_BYTES.min(self.store.options.limits.single_bytes)
        } else {
            MAX_UPLOAD_BYTES
        }
    }

    async fn put(
        &self,
        object: &GetObjectOutput,
        upload: &mut Upload,
    ) -> Result<PutObjectOutput, StoreError> {
        let attributes = self.attributes;
        let mut acl = attributes.acl.clone();
        if attributes.keeps_acl && self.source.is_public(self.source_key).await? {
            acl = Some(ObjectCannedAcl::PublicRead);
        }
        let class = if attributes.keeps_storage_class {
            readable_class(object.storage_class.clone())
        } else {
            attributes.storage_class.clone()
        };
        let tags = match object.tag_count {
            Some(1..) => read_tags(self.source, self.source_key).await?,
            _ => None,
        };
        let (only_new, over) = match self.condition {
            CopyCondition::Absent => (Some("*".to_owned()), None),
            CopyCondition::Over(etag) => (None, Some(etag.to_owned())),
            CopyCondition::None => (None, None),
        };
        let bucket = &self.store.destination;
        let request = bucket
            .client
            .put_object()
            .bucket(&bucket.name)
            .key(self.key);
        let request = request
            .set_if_none_match(only_new)
            .set_if_match(over)
            .set_tagging(tags)
            .set_storage_class(class)
            .set_acl(acl)
            .set_server_side_encryption(attributes.encryption.clone())
            .set_ssekms_key_id(attributes.kms_key_id.clone())
            .set_content_md5(upload.checksum_to_send())
            .content_length(i64::try_from(upload.size).unwrap_or(i64::MAX))
            .body(upload.take_body());
        let config = upload_config(bucket.timeout, upload.size);
        // The SDK takes a date alone; S3 keeps whatever text it gets.
        let expires = object.expires_string.clone();
        let request = with_headers(request, object).customize();
        let request = request.mutate_request(move |request| {
            if let Some(expires) = &expires {
                request.headers_mut().insert("expires", expires.clone());
            }
        });
        let sent = request.config_override(config).send().await;
        sent.map_err(store_error)
    }

    /// Where neither a checksum was sent nor the ETag is one: are the bytes those that were read?
    async fn is_written(&self, etag: &str, upload: &Upload) -> Result<bool, StoreError> {
        let etag = format!("\"{etag}\"");
        let destination = &self.store.destination;
        let written = destination.get(self.key, Some(&etag), None).await?;
        let size = body_bytes(&written)?;
        let mut body = HashedBody::new(written.body, size, destination.timeout);
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            frame.map_err(|error| cut_short(&error))?;
        }
        Ok(size == upload.size && finish(&body.hash) == upload.md5())
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
        StoreError::Transient {
            code: "BrokenCopy".into(),
            message: "other bytes were written than read".into(),
        }
    }
}

/// A part of an upload, and where its bytes are.
pub(super) struct StreamedPart<'a> {
    pub(super) upload: &'a str,
    pub(super) source_etag: Option<&'a str>,
    pub(super) number: i32,
    pub(super) range: &'a str,
}

impl StreamedPart<'_> {
    pub(super) async fn copy(
        &self,
        store: &S3Store,
        route: &MoveRoute,
    ) -> Result<CompletedPart, StoreError> {
        let (source, destination) = (&store.source, &store.destination);
        let _memory = BUDGET.acquire().await.ok();
        let object = source.get(&route.source_key, self.source_etag, Some(self.range));
        let object = object.await.map_err(source_error)?;
        let size = body_bytes(&object)?;
        let mut upload = Upload::of(object.body, size, None, source.timeout).await?;
        let request = destination.client.upload_part().bucket(&destination.name);
        let request = request
            .key(&route.destination_key)
            .upload_id(self.upload)
            .part_number(self.number)
            .set_content_md5(upload.checksum_to_send())
            .content_length(i64::try_from(size).unwrap_or(i64::MAX))
            .body(upload.take_body());
        let config = upload_config(destination.timeout, size);
        let output = request.customize().config_override(config).send().await;
        let output = output.map_err(store_error)?;
        let copied = confirm_copy(output.e_tag())?;
        if !upload.is_proven(&copied.etag)
            && is_md5_of(&copied.etag, output.server_side_encryption())
        {
            return Err(StoreError::Transient {
                code: "BrokenCopy".into(),
                message: "other bytes were written than read".into(),
            });
        }
        let part = CompletedPart::builder().e_tag(copied.etag);
        Ok(part.part_number(self.number).build())
    }
}

impl S3Bucket {
    /// An object's headers at once, and its body as it arrives.
    async fn get(
        &self,
        key: &str,
        etag: Option<&str>,
        range: Option<&str>,
    ) -> Result<GetObjectOutput, StoreError> {
        let request = self.client.get_object().bucket(&self.name).key(key);
        let request = request
            .set_if_match(etag.map(ToOwned::to_owned))
            .set_range(range.map(ToOwned::to_owned));
        request.send().await.map_err(store_error)
    }
}

/// Bytes on their way.
struct Upload {
    size: u64,
    body: Option<ByteStream>,
    /// Of what was read, when all of it is.
    hash: Arc<Mutex<Md5>>,
    /// What the destination is to compare with.
    sent_md5: Option<[u8; 16]>,
}

impl Upload {
    async fn of(
        content: ByteStream,
        size: u64,
        known_md5: Option<[u8; 16]>,
        limit: Duration,
    ) -> Result<Self, StoreError> {
        if size > WHOLE_BYTES {
            let body = HashedBody::new(content, size, limit);
            return Ok(Self {
                size,
                hash: Arc::clone(&body.hash),
                body: Some(ByteStream::from_body_1_x(body)),
                sent_md5: known_md5,
            });
        }
        let read = timeout(limit, content.collect()).await;
        let read = read.map_err(|_| cut_short(&Error::from(ErrorKind::TimedOut)))?;
        let bytes = read.map(AggregatedBytes::into_bytes);
        let bytes = bytes.map_err(|error| cut_short(&error))?;
        let hash = Md5::new_with_prefix(&bytes);
        let md5: [u8; 16] = hash.clone().finalize().into();
        if known_md5.is_some_and(|known| known != md5) {
            return Err(StoreError::Transient {
                code: BAD_DIGEST.into(),
                message: "other bytes were read than the ETag says".into(),
            });
        }
        Ok(Self {
            size,
            sent_md5: Some(md5),
            hash: Arc::new(Mutex::new(hash)),
            body: Some(ByteStream::from(bytes)),
        })
    }

    fn take_body(&mut self) -> ByteStream {
        self.body.take().unwrap_or_default()
    }

    fn checksum_to_send(&self) -> Option<String> {
        self.sent_md5.map(base64::encode)
    }

    fn md5(&self) -> [u8; 16] {
        finish(&self.hash)
    }

    /// Whether the destination itself has compared, or says what it got.
    fn is_proven(&self, etag: &str) -> bool {
        self.sent_md5.is_some() || etag == hex(&self.md5())
    }
}

fn with_headers(
    request: PutObjectFluentBuilder,
    object: &GetObjectOutput,
) -> PutObjectFluentBuilder {
    request
        .set_content_type(object.content_type.clone())
        .set_cache_control(object.cache_control.clone())
        .set_content_encoding(object.content_encoding.clone())
        .set_content_disposition(object.content_disposition.clone())
        .set_content_language(object.content_language.clone())
        .set_website_redirect_location(object.website_redirect_location.clone())
        .set_metadata(object.metadata.clone())
}

/// Other stores may not know the checksums that the SDK adds; a large object takes its time.
fn upload_config(limit: Duration, size: u64) -> aws_sdk_s3::config::Builder {
    let pieces = u32::try_from(size / SINGLE_UPLOAD_BYTES).unwrap_or(u32::MAX);
    let limit = limit.saturating_mul(pieces.saturating_add(1));
    Config::builder()
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .timeout_config(TimeoutConfig::builder().operation_timeout(limit).build())
}

fn body_bytes(object: &GetObjectOutput) -> Result<u64, StoreError> {
    let size = object
        .content_length
        .and_then(|size| u64::try_from(size).ok());
    size.ok_or_else(|| StoreError::Transient {
        code: "UnreadableAnswer".into(),
        message: "the store does not say how long the object is".into(),
    })
}

fn md5_of_source(object: &GetObjectOutput) -> Option<[u8; 16]> {
    let etag = bare_etag(object.e_tag()?);
    let has_key = object.sse_customer_algorithm.is_some();
    if has_key || !is_md5_of(etag, object.server_side_encryption()) {
        return None;
    }
    let mut md5 = [0; 16];
    for (byte, digits) in md5.iter_mut().zip(etag.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(md5)
}

fn cut_short(error: &(dyn std::error::Error + 'static)) -> StoreError {
    StoreError::Transient {
        code: "BodyCutShort".into(),
        message: error_chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_etag_that_is_an_md5_is_sent_along() {
        let of = |etag: &str| GetObjectOutput::builder().e_tag(etag).build();
        let md5 = "\"900150983cd24fb0d6963f7d28e17f72\"";
        assert_eq!(md5_of_source(&of(md5)).map(|md5| md5[0]), Some(0x90));
        for etag in ["\"900150983cd24fb0d6963f7d28e17f72-1\"", "\"\""] {
            assert_eq!(md5_of_source(&of(etag)), None);
        }
    }
}
