//! Direct copies held to the SDK's own, and to a server that checks signatures for itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_credential_types::provider::{ProvideCredentials, future};
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat, SdkBody};
use aws_sdk_s3::types::StorageClass;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use proptest::prelude::*;

use super::signature::{SECRET, is_signed};
use crate::object_store::{CopiedObject, ObjectStore, StoreError};
use crate::path_rule::MoveRoute;
use crate::s3::{CopyLimits, S3Options, S3Store};

const COPIED: &str = "<CopyObjectResult><ETag>&quot;9b2c&quot;</ETag></CopyObjectResult>";

/// A request as the server met it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub method: String,
    pub uri: String,
    pub headers: BTreeMap<String, String>,
}

impl Request {
    fn of(request: &HttpRequest) -> Self {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            method: request.method().to_owned(),
            uri: request.uri().to_owned(),
            headers: request.headers().iter().map(pair).collect(),
        }
    }

    /// The SDK numbers its requests.
    fn is_direct(&self) -> bool {
        !self.headers.contains_key("amz-sdk-invocation-id")
    }

    /// Without what differs from request to request by its nature.
    fn letter(mut self) -> Self {
        for name in [
            "amz-sdk-invocation-id",
            "amz-sdk-request",
            "authorization",
            "x-amz-date",
        ] {
            self.headers.remove(name);
        }
        self
    }
}

/// A server that writes down what it is sent.
#[derive(Debug, Clone)]
struct Server {
    met: Arc<Mutex<Vec<Request>>>,
    answer: Arc<Mutex<(u16, &'static str)>>,
    clock: DateTime,
}

impl Server {
    fn new(clock: SystemTime) -> Self {
        Self {
            met: Arc::default(),
            answer: Arc::new(Mutex::new((200, COPIED))),
            clock: clock.into(),
        }
    }

    fn answers(&self, status: u16, body: &'static str) {
        *self.answer.lock().unwrap() = (status, body);
    }

    fn last(&self) -> Request {
        self.met.lock().unwrap().last().unwrap().clone()
    }
}

impl HttpConnector for Server {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        self.met.lock().unwrap().push(Request::of(&request));
        let (status, body) = *self.answer.lock().unwrap();
        if status == 0 {
            return HttpConnectorFuture::new(std::future::pending());
        }
        let mut response = HttpResponse::new(status.try_into().unwrap(), SdkBody::from(body));
        let date = self.clock.fmt(DateTimeFormat::HttpDate).unwrap();
        response.headers_mut().insert("date", date);
        HttpConnectorFuture::ready(Ok(response))
    }
}

/// Credentials that are asked for anew each time, as if they were always about to expire.
#[derive(Debug, Default)]
struct Fleeting(Mutex<u32>);

impl ProvideCredentials for Fleeting {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let mut asked = self.0.lock().unwrap();
        *asked += 1;
        let token = format!("token {asked}");
        let expired = Some(SystemTime::now());
        future::ProvideCredentials::ready(Ok(Credentials::new(
            "AKID",
            SECRET,
            Some(token),
            expired,
            "test",
        )))
    }
}

fn config(server: &Server) -> Builder {
    let server = server.clone();
    Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .retry_config(RetryConfig::disabled())
        .credentials_provider(Credentials::new(
            "AKID",
            SECRET,
            Some("token".into()),
            None,
            "test",
        ))
        .timeout_config(
            TimeoutConfig::builder()
                .operation_timeout(Duration::from_millis(500))
                .build(),
        )
        .http_client(http_client_fn(move |_, _| {
            SharedHttpConnector::new(server.clone())
        }))
}

fn store(config: Builder, storage_class: Option<StorageClass>, conditional_copy: bool) -> S3Store {
    let client = Client::from_conf(config.build());
    let options = S3Options {
        source_bucket: "from".into(),
        destination_bucket: "to-bucket".into(),
        storage_class,
        conditional_copy,
        limits: CopyLimits::default(),
    };
    S3Store::new(client.clone(), client, options)
}

fn plain_store(server: &Server) -> S3Store {
    store(config(server), None, true)
}

fn route(key: &str) -> MoveRoute {
    MoveRoute {
        old_path: format!("image/{key}"),
        new_path: format!("avatar/{key}"),
        source_key: format!("image/{key}"),
        destination_key: format!("avatar/{key}"),
    }
}

/// Copies with a store that knows no pattern yet, then with one that does.
async fn both_ways(make: impl Fn(&Server) -> S3Store, route_: &MoveRoute) -> (Request, Request) {
    let server = Server::new(SystemTime::now());
    make(&server).copy(route_).await.unwrap();
    let by_sdk = server.last();
    let store = make(&server);
    store.copy(&route("another")).await.unwrap();
    let copied = store.copy(route_).await.unwrap();
    assert_eq!(
        copied,
        CopiedObject {
            etag: "9b2c".into(),
            size_bytes: None
        }
    );
    (by_sdk, server.last())
}

async fn hold_to_the_sdk(make: impl Fn(&Server) -> S3Store, route: &MoveRoute) {
    let (by_sdk, direct) = both_ways(make, route).await;
    assert!(!by_sdk.is_direct() && direct.is_direct());
    assert!(is_signed(&by_sdk), "the check itself: {by_sdk:?}");
    assert!(is_signed(&direct), "{direct:?}");
    assert_eq!(direct.letter(), by_sdk.letter());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_direct_copy_is_the_sdks_to_the_letter(
        key in "[\\PC\u{1}-\u{1f}/+%?#&=.~ ]{1,40}",
        cold in any::<bool>(),
        replaces in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let class = cold.then_some(StorageClass::StandardIa);
        let make = |server: &Server| {
            let mut store = store(config(server), class.clone(), true);
            store.replace_etag = replaces.then(|| "\"0a\"".to_owned());
            store
        };
        runtime.block_on(hold_to_the_sdk(make, &route(&key)));
    }
}

#[tokio::test]
async fn whatever_the_address() {
    let variants: [fn(Builder) -> Builder; 6] = [
        |config| config.force_path_style(true),
        |config| config.use_dual_stack(true),
        |config| config.use_fips(true),
        |config| config.accelerate(true),
        |config| {
            config
                .endpoint_url("http://127.0.0.1:9000/under/a/path")
                .force_path_style(true)
        },
        |config| config.endpoint_url("https://storage.internal:8443"),
    ];
    for variant in variants {
        let make = |server: &Server| store(variant(config(server)), None, true);
        hold_to_the_sdk(make, &route("a b/ü//.png")).await;
    }
}

#[tokio::test]
async fn a_request_that_is_not_signed_stays_with_the_sdk() {
    let server = Server::new(SystemTime::now());
    let anonymous = Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .timeout_config(
            TimeoutConfig::builder()
                .operation_timeout(Duration::from_secs(5))
                .build(),
        )
        .allow_no_auth()
        .http_client(config(&server).build().http_client().unwrap());
    let store = store(anonymous, None, true);
    for _ in 0..3 {
        store.copy(&route("a")).await.unwrap();
        assert!(!server.last().is_direct());
    }
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected_as_the_sdk_does() {
    let hour = Duration::from_hours(1);
    for clock in [SystemTime::now() + hour, SystemTime::now() - hour] {
        let server = Server::new(clock);
        let store = plain_store(&server);
        // The first answer tells the SDK the time; the second request is signed by it and shows it.
        store.copy(&route("a")).await.unwrap();
        store.shown.forget();
        store.copy(&route("b")).await.unwrap();
        store.copy(&route("c")).await.unwrap();
        let request = server.last();
        assert!(request.is_direct() && is_signed(&request));
        let minutes = |clock: SystemTime| {
            let text = DateTime::from(clock).fmt(DateTimeFormat::DateTime);
            text.unwrap().replace(['-', ':'], "")[..13].to_owned()
        };
        // The answers' clock stands still, ours does not.
        let (signed, told) = (&request.headers["x-amz-date"], minutes(clock));
        let soon = minutes(clock + Duration::from_mins(1));
        assert!(
            signed.starts_with(&told) || signed.starts_with(&soon),
            "{signed} {told}"
        );
    }
}

#[tokio::test]
async fn credentials_are_renewed() {
    let server = Server::new(SystemTime::now());
    let store = store(
        config(&server).credentials_provider(Fleeting::default()),
        None,
        true,
    );
    let mut tokens = Vec::new();
    for _ in 0..4 {
        store.copy(&route("a")).await.unwrap();
        assert!(is_signed(&server.last()));
        tokens.push(server.last().headers["x-amz-security-token"].clone());
    }
    assert!(server.last().is_direct());
    tokens.dedup();
    assert_eq!(tokens.len(), 4, "{tokens:?}");
}

#[tokio::test]
async fn after_a_refusal_of_what_all_share_the_sdk_shows_the_request_anew() {
    let server = Server::new(SystemTime::now());
    let store = plain_store(&server);
    store.copy(&route("a")).await.unwrap();
    server.answers(
        400,
        "<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>",
    );
    let refused = store.copy(&route("a")).await;
    assert!(server.last().is_direct());
    assert!(matches!(refused, Err(StoreError::Systemic { code, .. }) if code == "ExpiredToken"));
    server.answers(200, COPIED);
    for is_direct in [false, true] {
        store.copy(&route("a")).await.unwrap();
        assert_eq!(server.last().is_direct(), is_direct);
    }
}

#[tokio::test]
async fn every_answer_means_what_it_means_when_the_sdk_reads_it() {
    let answers = [
        (200, ""),
        (200, "<CopyObjectResult/>"),
        (200, "no XML at all"),
        (
            200,
            "<Error><Code>SlowDown</Code><Message>slow</Message></Error>",
        ),
        (200, "<Error><Code>InternalError</Code></Error>"),
        (204, ""),
        (301, "<Error><Code>PermanentRedirect</Code></Error>"),
        (400, ""),
        (
            400,
            "<Error><Code>InvalidRequest</Code><Message>The specified copy source is larger than the maximum allowable size for a copy source: 5368709120</Message></Error>",
        ),
        (
            403,
            "<Error><Code>AccessDenied</Code><Message>no\nsecond line</Message></Error>",
        ),
        (404, "<Error><Code>NoSuchKey</Code></Error>"),
        (
            409,
            "<Error><Code>ConditionalRequestConflict</Code></Error>",
        ),
        (412, "<Error><Code>PreconditionFailed</Code></Error>"),
        (412, ""),
        (500, COPIED),
        (501, "<Error><Code>NotImplemented</Code></Error>"),
        (502, "<html>Bad Gateway</html>"),
        (503, ""),
        (503, "<Error><Code>SlowDown</Code></Error>"),
        (0, "no answer"),
    ];
    for (status, body) in answers {
        let server = Server::new(SystemTime::now());
        let store = plain_store(&server);
        store.copy(&route("a")).await.unwrap();
        server.answers(status, body);
        let direct = store.copy(&route("b")).await;
        assert!(server.last().is_direct());
        let by_sdk = plain_store(&server).copy(&route("b")).await;
        assert!(!server.last().is_direct());
        assert_eq!(sense(&direct), sense(&by_sdk), "{status} {body}");
    }
}

/// What is decided on, and what people read.
fn sense(answer: &Result<CopiedObject, StoreError>) -> (String, String) {
    match answer {
        Ok(copied) => ("Ok".into(), copied.etag.clone()),
        Err(error) => (
            format!("{:?}", std::mem::discriminant(error)),
            error.code().to_owned(),
        ),
    }
}
