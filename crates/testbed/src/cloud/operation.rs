//! Which AWS operation a request is, on what, and by whom.

use axum::body::Bytes;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method};
use percent_encoding::percent_decode_str;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum CloudService {
    S3,
    Sqs,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct BucketKey {
    pub(super) bucket: String,
    pub(super) key: String,
}

/// What the headers and, for SQS, the body of a request say.
#[derive(Debug, Clone)]
pub(super) struct CloudOperation {
    pub(super) service: CloudService,
    /// The operation's name in the AWS API, such as `CopyObject`.
    pub(super) name: String,
    /// The access key id the request was signed with.
    pub(super) caller: String,
    pub(super) target: BucketKey,
    pub(super) source: Option<BucketKey>,
    pub(super) headers: HeaderMap,
    /// The body of an SQS request; empty for S3.
    pub(super) body: Bytes,
}

impl CloudOperation {
    pub(super) fn is_sqs(headers: &HeaderMap) -> bool {
        headers.contains_key("x-amz-target")
    }

    /// `body` is that of an SQS request; S3's are not looked into.
    pub(super) fn from_request(parts: &Parts, body: Bytes) -> Self {
        let target = header_value(&parts.headers, "x-amz-target");
        let source =
            header_value(&parts.headers, "x-amz-copy-source").map(BucketKey::from_copy_source);
        let object = BucketKey::from_path(parts.uri.path());
        let (service, name) = match target.and_then(|target| target.rsplit('.').next()) {
            Some(name) => (CloudService::Sqs, name),
            None => (
                CloudService::S3,
                s3_operation(parts, &object, source.is_some()),
            ),
        };
        let caller = access_key_id(&parts.headers);
        Self {
            service,
            name: name.to_owned(),
            caller,
            target: object,
            source,
            headers: parts.headers.clone(),
            body,
        }
    }

    /// The same operation on another SQS body.
    pub(super) fn with_body(&self, body: Bytes) -> Self {
        Self {
            body,
            ..self.clone()
        }
    }

    /// Whether it makes, replaces or removes the object at its place.
    pub(super) fn writes_object(&self) -> bool {
        matches!(
            self.name.as_str(),
            "PutObject" | "CopyObject" | "CompleteMultipartUpload" | "DeleteObject"
        )
    }

    /// Whether `text` occurs in the key, the copy source's key or the SQS body.
    pub(super) fn contains_text(&self, text: &str) -> bool {
        self.target.key.contains(text)
            || self
                .source
                .as_ref()
                .is_some_and(|source| source.key.contains(text))
            || String::from_utf8_lossy(&self.body).contains(text)
    }
}

impl BucketKey {
    /// `/bucket/key` as in a path-style request; the key may hold `//` and end in `/`.
    fn from_path(path: &str) -> Self {
        let decoded =
            percent_decode_str(path.strip_prefix('/').unwrap_or(path)).decode_utf8_lossy();
        let (bucket, key) = decoded.split_once('/').unwrap_or((&decoded, ""));
        Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        }
    }

    fn from_copy_source(source: &str) -> Self {
        Self::from_path(source.split('?').next().unwrap_or_default())
    }
}

fn header_value<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The first part of `Credential=` in the signature's header.
fn access_key_id(headers: &HeaderMap) -> String {
    header_value(headers, "authorization")
        .and_then(|value| value.split("Credential=").nth(1)?.split('/').next())
        .unwrap_or("anonymous")
        .to_owned()
}

fn s3_operation(parts: &Parts, target: &BucketKey, copies: bool) -> &'static str {
    let query = parts.uri.query().unwrap_or_default();
    let asks = |name: &str| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(name))
    };
    match (&parts.method, target.key.is_empty()) {
        (_, true) => bucket_operation(&parts.method, &asks),
        (&Method::PUT, _) => put_operation(copies, &asks),
        (&Method::GET, _) => get_operation(&asks),
        (&Method::HEAD, _) => "HeadObject",
        (&Method::POST, _) if asks("uploads") => "CreateMultipartUpload",
        (&Method::POST, _) if asks("uploadId") => "CompleteMultipartUpload",
        (&Method::DELETE, _) if asks("uploadId") => "AbortMultipartUpload",
        (&Method::DELETE, _) if asks("tagging") => "DeleteObjectTagging",
        (&Method::DELETE, _) => "DeleteObject",
        _ => "Other",
    }
}

fn put_operation(copies: bool, asks: &impl Fn(&str) -> bool) -> &'static str {
    match (asks("partNumber"), copies) {
        (true, true) => "UploadPartCopy",
        (true, false) => "UploadPart",
        (false, true) => "CopyObject",
        (false, false) if asks("tagging") => "PutObjectTagging",
        (false, false) if asks("acl") => "PutObjectAcl",
        (false, false) => "PutObject",
    }
}

fn get_operation(asks: &impl Fn(&str) -> bool) -> &'static str {
    match () {
        () if asks("tagging") => "GetObjectTagging",
        () if asks("acl") => "GetObjectAcl",
        () if asks("attributes") => "GetObjectAttributes",
        () if asks("uploadId") => "ListParts",
        () => "GetObject",
    }
}

fn bucket_operation(method: &Method, asks: &impl Fn(&str) -> bool) -> &'static str {
    match *method {
        Method::HEAD => "HeadBucket",
        Method::PUT if asks("versioning") => "PutBucketVersioning",
        Method::PUT => "CreateBucket",
        Method::DELETE => "DeleteBucket",
        Method::POST if asks("delete") => "DeleteObjects",
        Method::GET if asks("list-type") => "ListObjectsV2",
        Method::GET if asks("uploads") => "ListMultipartUploads",
        Method::GET if asks("versioning") => "GetBucketVersioning",
        Method::GET if asks("ownershipControls") => "GetBucketOwnershipControls",
        Method::GET if asks("location") => "GetBucketLocation",
        _ => "Other",
    }
}
