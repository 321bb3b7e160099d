//! An object as `GetObject` answers it: what it is at once, its bytes as they arrive.

use std::borrow::Cow;

use aws_sdk_s3::primitives::SdkBody;
use aws_sdk_s3::types::ServerSideEncryption;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::copy::RequestHeaders;
use super::inspect::is_md5_of;
use super::{S3Bucket, bare_etag, store_error};
use crate::connections::has_marked_byte;
use crate::object_store::StoreError;

/// What a browser or CDN sees of an object; its metadata goes along, too.
const CARRIED_HEADERS: [&str; 7] = [
    "content-type",
    "cache-control",
    "content-encoding",
    "content-disposition",
    "content-language",
    // S3 keeps whatever text it gets, a date or not.
    "expires",
    "x-amz-website-redirect-location",
];

pub(super) struct OpenedObject {
    head: HttpResponse,
    pub(super) size: u64,
    pub(super) body: SdkBody,
}

impl S3Bucket {
    /// With an `etag`, only that version of it; with a `range`, so many of its bytes.
    pub(super) async fn open(
        &self,
        key: &str,
        etag: Option<&str>,
        range: Option<&str>,
    ) -> Result<OpenedObject, StoreError> {
        let given = [("if-match", etag), ("range", range)];
        let given = given.into_iter().filter_map(|(name, value)| {
            let value = value?.to_owned();
            Some((Cow::Borrowed(name), value))
        });
        let headers = self.request_headers().chain(given).collect();
        let opened = self.copies.get_object(key, headers).await;
        let mut head = opened.map_err(store_error)?;
        let size = head.headers().get("content-length");
        let size = size.and_then(|size| size.parse().ok());
        Ok(OpenedObject {
            size: size.ok_or_else(|| {
                StoreError::transient(
                    "UnreadableAnswer",
                    "the store does not say how long the object is",
                )
            })?,
            body: head.take_body(),
            head,
        })
    }
}

impl OpenedObject {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.headers().get(name)
    }

    /// Those by which an upload becomes the same object.
    ///
    /// # Errors
    /// One of them could not be written as it is.
    pub(super) fn carried_headers(&self) -> Result<RequestHeaders, StoreError> {
        let all = self.head.headers().iter();
        let carried = all
            .filter(|(name, _)| CARRIED_HEADERS.contains(name) || name.starts_with("x-amz-meta-"));
        let copy = |(name, value): (&str, &str)| {
            if has_marked_byte(value) {
                let message =
                    format!("its header {name} is not UTF-8, and could not be written as it is");
                return Err(StoreError::permanent("Unreadable", message));
            }
            Ok((Cow::Owned(name.to_owned()), value.to_owned()))
        };
        carried.map(copy).collect()
    }

    /// The MD5 of its bytes, where the ETag is that.
    pub(super) fn md5(&self) -> Option<[u8; 16]> {
        let etag = bare_etag(self.header("etag")?);
        let encryption = self.header("x-amz-server-side-encryption");
        let encryption = encryption.map(ServerSideEncryption::from);
        let customer_algorithm = "x-amz-server-side-encryption-customer-algorithm";
        if self.header(customer_algorithm).is_some() || !is_md5_of(etag, encryption.as_ref()) {
            return None;
        }
        let md5 = u128::from_str_radix(etag, 16);
        md5.ok().map(u128::to_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_etag_that_is_an_md5_is_sent_along() {
        let md5_of = |etag: &str| {
            let mut head = HttpResponse::new(200.try_into().unwrap(), SdkBody::empty());
            head.headers_mut().insert("etag", etag.to_owned());
            let (size, body) = (0, SdkBody::empty());
            OpenedObject { head, size, body }.md5()
        };
        let md5 = md5_of("\"900150983cd24fb0d6963f7d28e17f72\"");
        assert_eq!(md5.map(|md5| md5[0]), Some(0x90));
        for etag in ["\"900150983cd24fb0d6963f7d28e17f72-1\"", "\"\""] {
            assert_eq!(md5_of(etag), None);
        }
    }
}
