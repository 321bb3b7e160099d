//! Looking at an object by a HEAD.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ServerSideEncryption;

use super::copy::{HeadResponse, ObjectHeaders};
use super::{S3Bucket, S3Store, bare_etag, store_error};
use crate::aws::RequestError;
use crate::connections::has_marked_byte;
use crate::object_store::StoreError;
use crate::object_store::objects::{BucketSide, ObjectStat};

impl S3Store {
    /// None when there is no such object.
    pub async fn stat_object(
        &self,
        side: BucketSide,
        key: &str,
    ) -> Result<Option<ObjectStat>, StoreError> {
        let bucket = self.bucket_at(side);
        let response = bucket.copies.head(key, &bucket.headers).await;
        match response.map_err(store_error)? {
            HeadResponse::Found(headers) => Ok(Some(object_stat(&headers))),
            HeadResponse::Missing => Ok(None),
            HeadResponse::Unclear => {
                let head = Box::pin(bucket.head(key)).await?;
                Ok(head.as_ref().map(careful_stat))
            }
        }
    }
}

/// Our code for an object that is encrypted with a key that each request must bring along (SSE-C).
pub const CUSTOMER_KEY: &str = "CustomerKey";

impl S3Bucket {
    /// A HEAD without the key is answered with 400 and not a word, so the object's first byte is asked for.
    pub(super) async fn needs_customer_key(&self, key: &str) -> bool {
        let request = self.client.get_object().bucket(&self.name).key(key);
        let response = request.range("bytes=0-0").send().await;
        response.is_err_and(|error| {
            let RequestError { code, message, .. } = error.into();
            code == "InvalidRequest" && message.contains("Server Side Encryption")
        })
    }
}

fn headers_of(head: &HeadObjectOutput) -> ObjectHeaders {
    ObjectHeaders {
        etag: head.e_tag().unwrap_or_default().to_owned(),
        size_bytes: head.content_length.unwrap_or(0),
        modified_seconds: head.last_modified.map_or(0, |at| at.secs()),
        encryption: head.server_side_encryption.clone(),
        customer_algorithm: head.sse_customer_algorithm.clone(),
    }
}

fn careful_stat(head: &HeadObjectOutput) -> ObjectStat {
    ObjectStat {
        unreadable_header: unreadable_head(head),
        ..object_stat(&headers_of(head))
    }
}

fn object_stat(headers: &ObjectHeaders) -> ObjectStat {
    ObjectStat {
        unreadable_header: None,
        is_md5: is_md5(headers),
        etag: bare_etag(&headers.etag).to_owned(),
        size_bytes: headers.size_bytes,
        modified_seconds: headers.modified_seconds,
    }
}

/// An upload in parts has a dash in its ETag; KMS and customer keys make it say nothing of the bytes.
fn is_md5(headers: &ObjectHeaders) -> bool {
    let etag = bare_etag(&headers.etag);
    headers.customer_algorithm.is_none() && is_md5_of(etag, headers.encryption.as_ref())
}

pub(super) fn is_md5_of(etag: &str, encryption: Option<&ServerSideEncryption>) -> bool {
    let is_plain = encryption.is_none_or(|kind| *kind == ServerSideEncryption::Aes256);
    is_plain && etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What of an object's headers is no UTF-8, as the connections have marked it.
fn unreadable_head(head: &HeadObjectOutput) -> Option<&'static str> {
    let headers = [
        ("Content-Type", &head.content_type),
        ("Cache-Control", &head.cache_control),
        ("Content-Encoding", &head.content_encoding),
        ("Content-Disposition", &head.content_disposition),
        ("Content-Language", &head.content_language),
        ("Expires", &head.expires_string),
    ];
    let is_marked = |value: &String| has_marked_byte(value);
    let mut headers = headers.into_iter();
    let header = headers.find(|(_, value)| value.as_ref().is_some_and(is_marked));
    let in_metadata = head.metadata.as_ref();
    let in_metadata = in_metadata.is_some_and(|metadata| metadata.values().any(is_marked));
    header
        .map(|(name, _)| name)
        .or(in_metadata.then_some("x-amz-meta-…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_md5_tells_of_the_bytes() {
        let md5 = "d41d8cd98f00b204e9800998ecf8427e";
        let head = |etag: &str| {
            let head = HeadObjectOutput::builder().e_tag(format!("\"{etag}\""));
            head.content_length(3)
        };
        let stat = |head: HeadObjectOutput| careful_stat(&head);
        assert!(stat(head(md5).build()).is_md5);
        assert!(!stat(head(&format!("{md5}-2")).build()).is_md5);
        let kms = head(md5).server_side_encryption(ServerSideEncryption::AwsKms);
        assert!(!stat(kms.build()).is_md5);
        assert!(!stat(head(md5).sse_customer_algorithm("AES256").build()).is_md5);
    }
}
