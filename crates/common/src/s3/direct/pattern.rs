//! The pattern of a copy's request, and the copies that fill it in.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{ConfigBag, RuntimeComponents};
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningParams,
    SigningSettings, UriPathNormalizationMode, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::auth::AuthSchemeId;
use aws_smithy_runtime_api::client::connection::CaptureSmithyConnection;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::identity::{
    Identity, ResolveCachedIdentity, SharedIdentityCache, SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::GetIdentityResolver;
use tokio::time::timeout;

use super::answer::read;
use super::{Condition, Order};
use crate::aws::{ErrorOrigin, NOT_SENT_CODE, RequestError, error_chain};
use crate::s3::encoding::encode_key;

/// Headers that belong to one request, or that signing adds.
const OF_ONE_REQUEST: [&str; 10] = [
    "authorization",
    "x-amz-date",
    "x-amz-content-sha256",
    "x-amz-security-token",
    "x-amz-copy-source",
    "x-amz-storage-class",
    "if-match",
    "if-none-match",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
];

/// A clock that is off by less is left alone. S3 bears fifteen minutes.
/// Source: Amazon S3 API Reference, error code `RequestTimeTooSkewed`.
const SKEW_THAT_MATTERS: Duration = Duration::from_mins(1);

/// What the requests of all copies have in common.
#[derive(Debug)]
pub(in crate::s3) struct Pattern {
    /// The address up to the key, with the slash before it.
    base: String,
    /// What follows the key.
    query: String,
    headers: Vec<(String, String)>,
    scope: Scope,
    skew: Skew,
    timeout: Duration,
    http: SharedHttpConnector,
    credentials: Credentials,
}

/// What a signature is good for.
#[derive(Debug)]
struct Scope {
    region: String,
    service: String,
}

/// How far the store's clock is ahead of this machine's, or behind it.
#[derive(Debug, Clone, Copy)]
enum Skew {
    Ahead(Duration),
    Behind(Duration),
}

/// The SDK's own credentials, with its cache of them.
#[derive(Debug)]
struct Credentials {
    resolver: SharedIdentityResolver,
    cache: SharedIdentityCache,
    components: RuntimeComponents,
}

impl Pattern {
    /// The pattern of this copy to `key`; none when it is no plain one.
    pub(super) fn of(
        request: &HttpRequest,
        key: &str,
        components: &RuntimeComponents,
        settings: &ConfigBag,
    ) -> Option<Self> {
        let (base, query) = around_key(request.uri(), key)?;
        let headers = request.headers();
        let is_plain = request.method() == "PUT" && headers.get("x-amz-s3session-token").is_none();
        let scope = Scope::of(headers.get("authorization")?)?;
        let timeouts = settings.load::<TimeoutConfig>()?;
        is_plain.then_some(Self {
            base,
            query,
            headers: headers
                .iter()
                .filter(|(name, _)| !OF_ONE_REQUEST.contains(name))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            scope,
            skew: Skew::of(headers.get("x-amz-date")?)?,
            timeout: timeouts.operation_timeout()?,
            http: http(timeouts, components)?,
            credentials: Credentials::of(components)?,
        })
    }

    /// Copies, and tells the copy's `ETag` as S3 wrote it; none where it told none.
    ///
    /// # Errors
    /// What S3 answered, what became of the request, or why it was not sent.
    pub(in crate::s3) async fn copy(
        &self,
        order: &Order<'_>,
    ) -> Result<Option<String>, RequestError> {
        let exchange = async {
            let request = self.request(order).await;
            self.exchange(request.map_err(|error| not_sent(&*error))?)
                .await
        };
        match timeout(self.timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(lost("Timeout", format!("no answer in {:?}", self.timeout))),
        }
    }

    async fn request(&self, order: &Order<'_>) -> Result<HttpRequest, BoxError> {
        let mut request = HttpRequest::empty();
        request.set_method("PUT")?;
        request.set_uri(format!(
            "{}{}{}",
            self.base,
            encode_key(order.key),
            self.query
        ))?;
        let headers = request.headers_mut();
        for (name, value) in &self.headers {
            headers.try_insert(name.clone(), value.clone())?;
        }
        headers.try_insert("x-amz-copy-source", order.source.clone())?;
        match order.condition {
            Condition::Absent => drop(headers.try_insert("if-none-match", "*")?),
            Condition::Over(etag) => drop(headers.try_insert("if-match", etag.to_owned())?),
            Condition::None => {}
        }
        if let Some(class) = order.storage_class {
            headers.try_insert("x-amz-storage-class", class.to_owned())?;
        }
        let identity = self.credentials.identity().await?;
        self.sign(&mut request, &identity)?;
        Ok(request)
    }

    /// As S3 wants it: the path is encoded once and taken as it is, and a header tells the body's hash.
    /// Source: AWS Signature Version 4, "Create a signed AWS API request".
    fn sign(&self, request: &mut HttpRequest, identity: &Identity) -> Result<(), BoxError> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let params = v4::SigningParams::builder()
            .identity(identity)
            .region(&self.scope.region)
            .name(&self.scope.service)
            .time(self.skew.apply(SystemTime::now()))
            .settings(settings)
            .build()?;
        let (method, uri) = (request.method(), request.uri());
        let body = SignableBody::Bytes(&[]);
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

    async fn exchange(&self, mut request: HttpRequest) -> Result<Option<String>, RequestError> {
        let connection = CaptureSmithyConnection::new();
        request.add_extension(connection.clone());
        let response = self.http.call(request).await;
        let response = response.map_err(|error| lost("ConnectionFailed", error_chain(&error)))?;
        let status = response.status().as_u16();
        let body = ByteStream::new(response.into_body()).collect().await;
        let body = body.map_err(|error| lost("UnreadableAnswer", error_chain(&error)))?;
        if matches!(status, 500 | 502 | 504) {
            close(&connection);
        }
        read(status, &body.into_bytes())
    }
}

/// The server behind this connection may be the one that is broken, and the pool hands out first what was
/// used last. The SDK does the same.
fn close(connection: &CaptureSmithyConnection) {
    if let Some(connection) = connection.get() {
        connection.poison();
    }
}

impl Scope {
    /// Reads `AWS4-HMAC-SHA256 Credential=ID/DATE/REGION/SERVICE/aws4_request, …`.
    fn of(authorization: &str) -> Option<Self> {
        let rest = authorization.strip_prefix("AWS4-HMAC-SHA256 Credential=")?;
        let (credential, _) = rest.split_once(',')?;
        let mut parts = credential.rsplit('/');
        let ("aws4_request", service, region) = (parts.next()?, parts.next()?, parts.next()?)
        else {
            return None;
        };
        Some(Self {
            region: region.to_owned(),
            service: service.to_owned(),
        })
    }
}

impl Skew {
    /// The SDK learns the store's time from each answer, and signs by it.
    fn of(date: &str) -> Option<Self> {
        let signed = SystemTime::try_from(basic_time(date)?).ok()?;
        let now = SystemTime::now();
        let skew = match signed.duration_since(now) {
            Ok(ahead) => Self::Ahead(ahead),
            Err(behind) => Self::Behind(behind.duration()),
        };
        Some(skew.or_none())
    }

    fn or_none(self) -> Self {
        let (Self::Ahead(skew) | Self::Behind(skew)) = self;
        if skew < SKEW_THAT_MATTERS {
            Self::Ahead(Duration::ZERO)
        } else {
            self
        }
    }

    fn apply(self, now: SystemTime) -> SystemTime {
        match self {
            Self::Ahead(skew) => now.checked_add(skew),
            Self::Behind(skew) => now.checked_sub(skew),
        }
        .unwrap_or(now)
    }
}

impl Credentials {
    fn of(components: &RuntimeComponents) -> Option<Self> {
        Some(Self {
            resolver: components.identity_resolver(AuthSchemeId::from("sigv4"))?,
            cache: components.identity_cache(),
            components: components.clone(),
        })
    }

    async fn identity(&self) -> Result<Identity, BoxError> {
        let settings = ConfigBag::base();
        let resolver = self.resolver.clone();
        self.cache
            .resolve_cached_identity(resolver, &self.components, &settings)
            .await
    }
}

/// What stands before and after the key in the address of a request.
fn around_key(uri: &str, key: &str) -> Option<(String, String)> {
    let (path, query) = uri.split_once('?')?;
    let base = path.strip_suffix(&encode_key(key).to_string())?;
    base.ends_with('/')
        .then(|| (base.to_owned(), format!("?{query}")))
}

/// The SDK's HTTP client, with the connections it has.
fn http(timeouts: &TimeoutConfig, components: &RuntimeComponents) -> Option<SharedHttpConnector> {
    let mut settings = HttpConnectorSettings::builder();
    settings.set_connect_timeout(timeouts.connect_timeout());
    settings.set_read_timeout(timeouts.read_timeout());
    let client = components.http_client()?;
    Some(client.http_connector(&settings.build(), components))
}

/// A time such as `20260102T030405Z`.
fn basic_time(text: &str) -> Option<DateTime> {
    let (date, time) = text.split_once('T')?;
    let text = format!(
        "{}-{}-{}T{}:{}:{}",
        date.get(..4)?,
        date.get(4..6)?,
        date.get(6..)?,
        time.get(..2)?,
        time.get(2..4)?,
        time.get(4..)?,
    );
    DateTime::from_str(&text, DateTimeFormat::DateTime).ok()
}

/// What became of the request is not known.
fn lost(code: &str, message: String) -> RequestError {
    RequestError {
        origin: ErrorOrigin::Transport,
        code: code.to_owned(),
        message,
        status: 0,
    }
}

fn not_sent(error: &(dyn std::error::Error + 'static)) -> RequestError {
    RequestError {
        origin: ErrorOrigin::Local,
        code: NOT_SENT_CODE.to_owned(),
        message: error_chain(error),
        status: 0,
    }
}
