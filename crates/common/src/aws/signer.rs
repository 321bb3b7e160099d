//! Signature Version 4 with the credentials and the time that S3 takes.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::primitives::DateTime;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::Identity;
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;

use super::credentials::CredentialsCache;

/// Of an object whose MD5 goes with it.
const MAX_SIGNED_OBJECT_BYTES: usize = 1024;

/// Codes that say that other credentials are needed. The provider may have them already.
/// Source: Amazon S3 API reference, "Error responses"; Amazon SQS API reference, "Common errors".
pub(crate) const REFUSED_CREDENTIALS: [&str; 8] = [
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    // Of Ceph.
    "UserSuspended",
];

pub(crate) const TIME_SKEWED: &str = "RequestTimeTooSkewed";

/// Source: Amazon S3 API reference, "Error responses".
const MAX_SKEW: Duration = Duration::from_mins(15);

/// What signatures are good for, and whether a header holds the body's hash.
#[derive(Debug)]
pub(crate) struct SigningScope {
    pub(crate) region: String,
    pub(crate) service: String,
    pub(crate) payload: PayloadChecksumKind,
}

#[derive(Debug)]
pub(crate) struct RequestSigner {
    credentials: CredentialsCache,
    /// How far the store's clock is ahead of this machine's, in seconds.
    clock_skew: AtomicI64,
}

impl RequestSigner {
    pub(crate) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            credentials: CredentialsCache::new(provider),
            clock_skew: AtomicI64::default(),
        }
    }

    pub(crate) async fn identity(&self) -> Result<Identity, CredentialsError> {
        self.credentials.identity().await
    }

    /// As S3 wants it, too: the path is encoded once and taken as it is.
    /// Source: AWS Signature Version 4, "Create a signed AWS API request".
    pub(crate) fn sign(
        &self,
        request: &mut HttpRequest,
        identity: &Identity,
        scope: &SigningScope,
    ) -> Result<(), BoxError> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = scope.payload;
        let params = v4::SigningParams::builder()
            .identity(identity)
            .region(&scope.region)
            .name(&scope.service)
            .time(self.now())
            .settings(settings)
            .build()?;
        let (method, uri) = (request.method(), request.uri());
        // What proves an object's bytes is not the signature; a small body's costs nothing, and a policy may want it.
        let has_md5 = request.headers().contains_key("content-md5");
        let is_signed = |bytes: &&[u8]| !has_md5 || bytes.len() <= MAX_SIGNED_OBJECT_BYTES;
        let body = request.body().bytes().filter(is_signed);
        let body = body.map_or(SignableBody::UnsignedPayload, SignableBody::Bytes);
        let signable = SignableRequest::new(method, uri, request.headers().iter(), body)?;
        let signed = sign(signable, &SigningParams::V4(params))?;
        let (headers, _) = signed.into_parts().0.into_parts();
        for header in headers {
            request
                .headers_mut()
                .try_insert(header.name(), header.value().to_owned())?;
        }
        Ok(())
    }

    /// Takes from a refusal what the next request needs.
    pub(crate) fn learn(&self, code: &str, used: &Identity, date: Option<DateTime>) {
        if REFUSED_CREDENTIALS.contains(&code) {
            self.credentials.forget(used);
        }
        if let (TIME_SKEWED, Some(date)) = (code, date) {
            let skew = date.secs() - DateTime::from(SystemTime::now()).secs();
            self.clock_skew.store(skew, Ordering::Relaxed);
        }
    }

    /// Whether requests are signed at another time than the store's by more than it takes.
    pub(crate) fn is_off(&self, date: Option<DateTime>) -> bool {
        let now = DateTime::from(self.now()).secs();
        date.is_some_and(|date| date.secs().abs_diff(now) > MAX_SKEW.as_secs())
    }

    /// The time by the store's clock.
    fn now(&self) -> SystemTime {
        let (now, skew) = (SystemTime::now(), self.clock_skew.load(Ordering::Relaxed));
        let by = Duration::from_secs(skew.unsigned_abs());
        let shifted = if skew < 0 {
            now.checked_sub(by)
        } else {
            now.checked_add(by)
        };
        shifted.unwrap_or(now)
    }
}
