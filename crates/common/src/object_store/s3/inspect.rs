//! What a store says of an object: to a HEAD, or to a GET before its bytes.

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat, SdkBody};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::access::StoreLabel;
use super::copy::{ObjectRequest, RequestHeaders};
use super::hashed_body::HashedBody;
use super::{S3Bucket, S3Store, bare_etag, store_error};
use crate::aws::exchange::UNREADABLE;
use crate::aws::{ErrorOrigin, RequestError};
use crate::connections::has_marked_byte;
use crate::object_store::objects::{BucketSide, ObjectStat};
use crate::object_store::{NO_ETAG, NO_LENGTH, StoreError};

/// When the head of an answer that needs no work of the store's is given up.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// Our code for an object that is encrypted with a key that each request must bring along (SSE-C).
pub const CUSTOMER_KEY: &str = "CustomerKey";

/// What a browser or CDN sees of an object, and what people call it; its metadata goes along, too.
pub(super) const CARRIED_HEADERS: [(&str, &str); 6] = [
    ("Content-Type", "content type"),
    ("Cache-Control", "cache control"),
    (CONTENT_ENCODING, "content encoding"),
    ("Content-Disposition", "content disposition"),
    // S3 keeps whatever text it gets, a date or not.
    ("Expires", "expiry"),
    ("Content-Language", "content language"),
];

const CONTENT_ENCODING: &str = "Content-Encoding";

const METADATA: &str = "x-amz-meta-";

#[derive(Debug)]
pub struct ObjectHead {
    response: HttpResponse,
    pub size_bytes: i64,
}

/// An object whose bytes are still to arrive.
pub(super) struct OpenedObject {
    pub(super) head: ObjectHead,
    pub(super) size: u64,
    pub(super) body: HashedBody,
}

impl OpenedObject {
    pub(super) fn of(mut response: HttpResponse, store: StoreLabel) -> Result<Self, StoreError> {
        let body = response.take_body();
        let head = ObjectHead::of(response, "GetObject")?;
        let size = u64::try_from(head.size_bytes).unwrap_or_default();
        let body = HashedBody::new(body, size, store);
        Ok(Self { head, size, body })
    }
}

impl ObjectHead {
    /// What lacks ETag or length is a proxy's, perhaps: two objects would look equal, or a copy replaced.
    fn of(response: HttpResponse, operation: &str) -> Result<Self, StoreError> {
        let length = response.headers().get("content-length");
        let size_bytes = length.and_then(|length| length.parse().ok());
        let head = Self {
            size_bytes: size_bytes.unwrap_or_default(),
            response,
        };
        let refuse = |code: &str, what| {
            let message = format!("{operation} was answered without {what}");
            let code = code.to_owned();
            Err(StoreError::Suspect { code, message })
        };
        match size_bytes {
            _ if head.etag().is_empty() => refuse(NO_ETAG, "an ETag"),
            Some(0..) => Ok(head),
            _ => refuse(NO_LENGTH, "the object's length"),
        }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let value = self.response.headers().get(name)?;
        if name == CONTENT_ENCODING {
            without_chunks(value)
        } else {
            Some(value)
        }
    }

    /// Without quotes.
    pub fn etag(&self) -> &str {
        bare_etag(self.header("etag").unwrap_or_default())
    }

    pub fn storage_class(&self) -> Option<&str> {
        self.header("x-amz-storage-class")
    }

    /// Whether an archived object is, or is about to be, readable.
    pub fn is_restored(&self) -> bool {
        self.header("x-amz-restore").is_some()
    }

    pub fn kms_key(&self) -> Option<&str> {
        self.header("x-amz-server-side-encryption-aws-kms-key-id")
    }

    pub(super) fn is_encrypted(&self) -> bool {
        self.header("x-amz-server-side-encryption").is_some()
    }

    /// None where the store does not say, as to those who may not read tags.
    pub fn tag_count(&self) -> Option<u32> {
        self.header("x-amz-tagging-count")?.parse().ok()
    }

    pub(super) fn last_modified(&self) -> Option<DateTime> {
        DateTime::from_str(self.header("last-modified")?, DateTimeFormat::HttpDate).ok()
    }

    /// The MD5 of its bytes, where the ETag is that.
    pub(super) fn md5(&self) -> Option<[u8; 16]> {
        let customer_algorithm = "x-amz-server-side-encryption-customer-algorithm";
        if self.header(customer_algorithm).is_some() {
            return None;
        }
        md5_of(self.etag(), self.header("x-amz-server-side-encryption"))
    }

    pub(super) fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.response.headers().iter();
        headers.filter(|(name, _)| name.starts_with(METADATA))
    }

    /// What could not be written as it is: it is not UTF-8, as the connections have marked it.
    fn unreadable_header(&self) -> Option<&'static str> {
        let is_marked = |name: &str| self.header(name).is_some_and(has_marked_byte);
        let mut headers = CARRIED_HEADERS.into_iter().map(|(name, _)| name);
        let in_metadata = || self.metadata().any(|(_, value)| has_marked_byte(value));
        let header = headers.find(|name| is_marked(name));
        header.or_else(|| in_metadata().then_some("x-amz-meta-…"))
    }

    /// Those by which an upload becomes the same object.
    ///
    /// # Errors
    /// One of them could not be written as it is.
    pub(super) fn carried_headers(&self) -> Result<RequestHeaders, StoreError> {
        // Metadata that no header can hold is left out, and counted.
        let missing = self.header("x-amz-missing-meta");
        let problem = match (self.unreadable_header(), missing) {
            (Some(name), _) => format!("its header {name} is not UTF-8"),
            (None, Some(count)) if count != "0" => {
                format!("{count} of its metadata fit into no header (x-amz-missing-meta)")
            }
            _ => String::new(),
        };
        if !problem.is_empty() {
            let message = format!("{problem}, and could not be written as it is");
            return Err(StoreError::permanent(UNREADABLE, message));
        }
        let names = CARRIED_HEADERS.into_iter().map(|(name, _)| name);
        let names = names.chain(["x-amz-website-redirect-location"]);
        let headers = names.filter_map(|name| Some((Cow::from(name), self.header(name)?.into())));
        let metadata = self.metadata();
        let metadata = metadata.map(|(name, value)| (name.to_owned().into(), value.to_owned()));
        Ok(headers.chain(metadata).collect())
    }
}

/// Some stores keep how an upload was sent: the object itself is not in such chunks.
fn without_chunks(encoding: &str) -> Option<&str> {
    const CHUNKS: &str = "aws-chunked";
    let rest = encoding.strip_prefix(CHUNKS);
    let rest = rest.or_else(|| encoding.strip_suffix(CHUNKS));
    let rest = rest.unwrap_or(encoding).trim_matches([',', ' ']);
    (!rest.is_empty()).then_some(rest)
}

/// An upload in parts has a dash in its ETag; KMS and customer keys make it say nothing of the bytes.
pub(super) fn md5_of(etag: &str, encryption: Option<&str>) -> Option<[u8; 16]> {
    let is_plain = encryption.is_none_or(|kind| kind == "AES256");
    let is_md5 = etag.len() == 32 && etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let md5 = u128::from_str_radix(etag, 16).ok();
    md5.filter(|_| is_plain && is_md5).map(u128::to_be_bytes)
}

impl S3Bucket {
    /// A HEAD of one object; none when there is no such object.
    pub async fn head(&self, key: &str) -> Result<Option<ObjectHead>, StoreError> {
        let request = ObjectRequest {
            operation: "HeadObject",
            method: "HEAD",
            key,
            ..ObjectRequest::default()
        };
        let limit = self.copies.timeout.min(HEAD_TIMEOUT);
        match self.copies.send(&request, SdkBody::empty(), limit).await {
            Ok(response) => {
                let head = ObjectHead::of(response, "HeadObject")?;
                self.learn_tags(&head);
                Ok(Some(head))
            }
            Err(error) if error.origin == ErrorOrigin::Service && error.status == 404 => Ok(None),
            Err(error) if error.code == "BadRequest" => Err(self.explain(key, error).await),
            Err(error) => Err(store_error(error)),
        }
    }

    /// A HEAD of an object that need not be there.
    pub(super) async fn is_responding(&self) -> bool {
        match self.head("bucket-brigade").await {
            Err(error) => error.is_response(),
            Ok(_) => true,
        }
    }

    /// A HEAD is refused with a status and not a word, so the object's first byte is asked for.
    async fn explain(&self, key: &str, refusal: RequestError) -> StoreError {
        match self.open(key, None, Some("bytes=0-0")).await {
            Err(error) if error.code() == CUSTOMER_KEY => error,
            Err(error @ StoreError::Systemic { .. }) => error,
            _ => store_error(refusal),
        }
    }
}

impl S3Store {
    /// None when there is no such object.
    pub async fn stat_object(
        &self,
        side: BucketSide,
        key: &str,
    ) -> Result<Option<ObjectStat>, StoreError> {
        let head = self.bucket_at(side).head(key).await?;
        if head.is_some() {
            self.reads[side as usize]
                .is_any_found
                .store(true, Ordering::Relaxed);
        }
        Ok(head.as_ref().map(ObjectStat::from))
    }

    /// What an error that looks like the object's own is about: where many were asked for and none has been found it
    /// is the bucket's.
    pub fn attribute_error(&self, side: BucketSide, error: StoreError) -> StoreError {
        let history = &self.reads[side as usize];
        let failed = history.failed.fetch_add(1, Ordering::Relaxed) + 1;
        if failed < MANY_OBJECTS || history.is_any_found.load(Ordering::Relaxed) {
            return error;
        }
        let bucket = &self.bucket_at(side).name;
        StoreError::Systemic {
            code: error.code().to_owned(),
            message: format!(
                "no object of the bucket {bucket} can be read; {failed} were asked for, the last one: {error}"
            ),
        }
    }
}

/// So many of which none can be read are not each to blame.
const MANY_OBJECTS: u32 = 1000;

/// Whether objects of a bucket can be read at all.
#[derive(Debug, Default)]
pub(super) struct ReadHistory {
    is_any_found: AtomicBool,
    failed: AtomicU32,
}

impl From<&ObjectHead> for ObjectStat {
    fn from(head: &ObjectHead) -> Self {
        Self {
            etag: head.etag().to_owned(),
            size_bytes: head.size_bytes,
            modified_seconds: head.last_modified().map(|at| at.secs()),
            is_md5: head.md5().is_some(),
            unreadable_header: head.unreadable_header(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::object_store::s3::{S3Access, S3Options, fixture};

    /// What a HEAD comes to at a store that answers with this head.
    async fn head_answered(head: String) -> Result<Option<ObjectHead>, StoreError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = [0; 4 << 10];
            assert!(connection.read(&mut request).await.unwrap() > 0);
            let answer = format!("HTTP/1.1 {head}content-length: 0\r\n\r\n");
            connection.write_all(answer.as_bytes()).await.unwrap();
        });
        let sdk = fixture::sdk().endpoint_url(url).build();
        let access = S3Access::new(&sdk, true, Duration::from_secs(5));
        let source = access.bucket("SOURCE_BUCKET_NAME", "from", None);
        source.await.unwrap().head("a").await
    }

    /// More metadata than the HTTP library reads headers, which no further try changes.
    #[tokio::test]
    async fn too_many_headers_are_the_objects_own_trouble() {
        let metadata = "x-amz-meta-a: v\r\n".repeat(101);
        let error = head_answered(format!("200 OK\r\n{metadata}"))
            .await
            .unwrap_err();
        assert!(matches!(&error, StoreError::Suspect { .. }), "{error:?}");
        assert_eq!(error.code(), UNREADABLE);
    }

    #[tokio::test]
    async fn of_many_objects_of_which_none_can_be_read_it_is_the_buckets_trouble() {
        let access = S3Access::new(&fixture::sdk().build(), true, HEAD_TIMEOUT);
        let bucket = access.bucket("SOURCE_BUCKET_NAME", "from", None).await;
        let bucket = bucket.unwrap();
        let store = S3Store::new(bucket.clone(), bucket, S3Options::default());
        let denied = || StoreError::Denied {
            code: "AccessDenied".into(),
            message: String::new(),
        };
        let side = BucketSide::Source;
        for _ in 1..MANY_OBJECTS {
            let error = store.attribute_error(side, denied());
            assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        }
        let error = store.attribute_error(side, denied());
        assert!(matches!(error, StoreError::Systemic { .. }), "{error:?}");
        let other = store.attribute_error(BucketSide::Destination, denied());
        assert!(matches!(other, StoreError::Denied { .. }), "{other:?}");
        let is_any_found = &store.reads[side as usize].is_any_found;
        is_any_found.store(true, Ordering::Relaxed);
        let error = store.attribute_error(side, denied());
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn only_a_store_can_say_that_there_is_no_object() {
        for kind in ["text/html", "text/plain; charset=utf-8\r\ncf-ray: 7"] {
            let page = format!("404 Not Found\r\ncontent-type: {kind}\r\n");
            let error = head_answered(page).await.unwrap_err();
            assert!(matches!(&error, StoreError::Transient { .. }), "{error:?}");
            assert!(error.to_string().contains("a proxy's"), "{error}");
        }
        for head in [
            "content-type: application/xml\r\n",
            "",
            "content-type: text/html\r\nx-amz-request-id: 7\r\n",
            "content-type: text/plain;charset=UTF-8\r\ncf-ray: 7\r\n",
        ] {
            let found = head_answered(format!("404 Not Found\r\n{head}")).await;
            assert!(found.unwrap().is_none(), "{head}");
        }
    }

    #[test]
    fn how_an_upload_was_sent_is_no_encoding_of_the_object() {
        for (kept, encoding) in [
            ("aws-chunked", None),
            ("aws-chunked,gzip", Some("gzip")),
            ("br, gzip, aws-chunked", Some("br, gzip")),
            ("gzip", Some("gzip")),
        ] {
            assert_eq!(without_chunks(kept), encoding);
        }
    }

    #[test]
    fn only_an_md5_tells_of_the_bytes() {
        let md5_of = |etag: &str, others: &[(&'static str, &'static str)]| {
            let mut response = HttpResponse::new(200.try_into().unwrap(), SdkBody::empty());
            let headers = response.headers_mut();
            headers.insert("etag", format!("\"{etag}\""));
            for (name, value) in others {
                headers.insert(*name, *value);
            }
            headers.insert("content-length", "3");
            ObjectHead::of(response, "HeadObject").unwrap().md5()
        };
        let md5 = "900150983cd24fb0d6963f7d28e17f72";
        assert_eq!(md5_of(md5, &[]).map(|md5| md5[0]), Some(0x90));
        let encryption = "x-amz-server-side-encryption";
        assert!(md5_of(md5, &[(encryption, "AES256")]).is_some());
        for etag in [&format!("{md5}-1"), "+00150983cd24fb0d6963f7d28e17f72"] {
            assert_eq!(md5_of(etag, &[]), None, "{etag}");
        }
        let customer = "x-amz-server-side-encryption-customer-algorithm";
        for other in [(encryption, "aws:kms"), (customer, "AES256")] {
            assert_eq!(md5_of(md5, &[other]), None, "{other:?}");
        }
    }
}
