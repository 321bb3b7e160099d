//! Requests about one object, besides its copy and a HEAD.

use aws_sdk_s3::primitives::SdkBody;
use tokio::time::timeout;

use super::access::StoreLabel;
use super::copy::{CopyCondition, ObjectRequest, RequestHeaders};
use super::encoding::encode_query;
use super::hashed_body::HashedBody;
use super::inspect::{HEAD_TIMEOUT, OpenedObject};
use super::stream::Upload;
use super::{S3Bucket, store_error};
use crate::object_store::StoreError;

/// The status of each object that was removed, or was not there. Source: Amazon S3 API reference, `DeleteObject`.
const NO_CONTENT: u16 = 204;

impl S3Bucket {
    /// With an `etag`, only that version of it; with a `range`, so many of its bytes.
    pub(super) async fn open(
        &self,
        key: &str,
        etag: Option<&str>,
        range: Option<&str>,
    ) -> Result<OpenedObject, StoreError> {
        let etag = etag.map(|etag| ("if-match".into(), format!("\"{etag}\"")));
        let range = range.map(|range| ("range".into(), range.to_owned()));
        let request = ObjectRequest {
            operation: "GetObject",
            method: "GET",
            key,
            headers: etag.into_iter().chain(range).collect(),
            ..ObjectRequest::default()
        };
        // Of its head. The bytes have limits of their own.
        let limit = self.copies.timeout.min(HEAD_TIMEOUT);
        let sent = self.copies.send(&request, SdkBody::empty(), limit).await;
        let object = OpenedObject::of(sent.map_err(store_error)?, self.copies.store.clone())?;
        self.learn_tags(&object.head);
        Ok(object)
    }

    /// Whether its bytes come. A refusal is a response, too.
    pub(super) async fn check_first_byte(&self, key: &str) -> Result<(), StoreError> {
        let read = async {
            let mut body = self.open(key, None, Some("bytes=0-0")).await?.body;
            let first = timeout(HEAD_TIMEOUT, body.next()).await;
            let first = first.unwrap_or_else(|_| Some(Err(body.stalled(HEAD_TIMEOUT))));
            first.transpose().map(drop)
        };
        match read.await {
            Err(error) if !error.is_response() => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it can be read.
    pub async fn check_readable(&self, key: &str) -> Result<(), StoreError> {
        self.open(key, None, None).await.map(drop)
    }

    pub(super) async fn put(
        &self,
        key: &str,
        query: &str,
        headers: RequestHeaders,
        bytes: &'static [u8],
    ) -> Result<String, StoreError> {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let body = HashedBody::new(SdkBody::from(bytes), size, StoreLabel::default());
        let upload = Upload::of(body, None, self.copies.timeout);
        let written = upload.await?.write(self, key, query, headers).await?;
        Ok(written.copied.etag)
    }

    /// Returns the delete marker that hides it.
    pub(super) async fn delete(
        &self,
        key: &str,
        headers: RequestHeaders,
    ) -> Result<Option<String>, StoreError> {
        let request = ObjectRequest {
            operation: "DeleteObject",
            method: "DELETE",
            key,
            headers,
            ..ObjectRequest::default()
        };
        let limit = self.copies.timeout;
        let sent = self.copies.send(&request, SdkBody::empty(), limit).await;
        let response = sent.map_err(store_error)?;
        if response.status().as_u16() != NO_CONTENT && self.head(key).await?.is_some() {
            let status = response.status();
            let problem = format!("status {status} to a DELETE, and the object is still there");
            return Err(StoreError::transient("UnreadableAnswer", problem));
        }
        let marker = response.headers().get("x-amz-version-id");
        Ok(marker.map(ToOwned::to_owned))
    }

    /// Starts an upload in parts.
    pub(super) async fn create_upload(
        &self,
        key: &str,
        headers: RequestHeaders,
    ) -> Result<String, StoreError> {
        let request = ObjectRequest {
            operation: "CreateMultipartUpload",
            method: "POST",
            key,
            query: "?uploads",
            headers,
            ..ObjectRequest::default()
        };
        let response = self.copies.exchange(&request, "").await;
        response.map_err(store_error)?.upload_id.ok_or_else(|| {
            StoreError::transient(
                "NoUploadId",
                "S3 started a multipart upload without naming it",
            )
        })
    }

    /// Returns its ETag as the store wrote it.
    pub(super) async fn complete_upload(
        &self,
        key: &str,
        upload: &str,
        etags: &[String],
        condition: CopyCondition<'_>,
    ) -> Result<Option<String>, StoreError> {
        let part = |(number, etag): (usize, &String)| {
            let etag = etag.replace('&', "&amp;").replace('<', "&lt;");
            format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
        };
        let parts: String = (1..).zip(etags).map(part).collect();
        let body = format!(
            "<CompleteMultipartUpload xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{parts}</CompleteMultipartUpload>"
        );
        let request = ObjectRequest {
            operation: "CompleteMultipartUpload",
            method: "POST",
            key,
            query: &format!("?uploadId={}", encode_query(upload)),
            headers: condition.header().into_iter().collect(),
            ..ObjectRequest::default()
        };
        let response = self.copies.exchange(&request, &body).await;
        Ok(response.map_err(store_error)?.etag)
    }

    pub(super) async fn abort_upload(&self, key: &str, upload: &str) -> Result<(), StoreError> {
        let request = ObjectRequest {
            operation: "AbortMultipartUpload",
            method: "DELETE",
            key,
            query: &format!("?uploadId={}", encode_query(upload)),
            ..ObjectRequest::default()
        };
        let aborted = self.copies.exchange(&request, "").await;
        aborted.map(drop).map_err(store_error)
    }
}
