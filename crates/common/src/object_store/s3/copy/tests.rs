//! Copies held to the SDK's own, and to a server that checks signatures for itself.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_smithy_runtime_api::client::http::SharedHttpConnector;
use aws_types::sdk_config::Builder;
use parking_lot::Mutex;
use proptest::prelude::*;

use super::{CopyCondition, MAX_BODY_BYTES};
use crate::aws::recording_server::{COPIED, SKEWED, Server};
use crate::aws::signature::is_signed;
use crate::object_store::s3::access::BucketHeaders;
use crate::object_store::s3::fixture::{SECRET, route, sdk};
use crate::object_store::s3::{
    CopyAttributes, S3Access, S3Options, S3Store, confirm_copy, copy_source, store_error,
};
use crate::object_store::{CopiedObject, ObjectStore, StoreError};
use crate::path_rule::MoveRoute;
use crate::preflight::PreflightError;

/// Credentials with a number that are, unless a lifetime is set, expired when they are given.
#[derive(Debug, Default)]
struct Fleeting {
    given: Mutex<u32>,
    lifetime: Duration,
}

impl ProvideCredentials for Fleeting {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        let mut given = self.given.lock();
        *given += 1;
        let token = format!("token {given}");
        let expired = Some(SystemTime::now() + self.lifetime);
        future::ProvideCredentials::ready(Ok(Credentials::new(
            "AKID",
            SECRET,
            Some(token),
            expired,
            "test",
        )))
    }
}

fn access(server: &Server, sdk: Builder, force_path_style: bool) -> S3Access {
    let connector = SharedHttpConnector::new(server.clone());
    let timeout = Duration::from_millis(500);
    S3Access::with_connector(&sdk.build(), force_path_style, timeout, connector)
}

async fn store(access: &S3Access, destination: &str) -> S3Store {
    let source = access.bucket("source", "from", None).await.unwrap();
    let destination = access.bucket("destination", destination, None).await;
    S3Store::new(source, destination.unwrap(), S3Options::default())
}

async fn plain_store(server: &Server) -> S3Store {
    store(&access(server, sdk(), false), "to-bucket").await
}

/// The same copy by the SDK.
async fn copy_by_sdk(store: &S3Store, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
    let (attributes, bucket) = (&store.options.attributes, &store.destination);
    let request = bucket.client.copy_object().bucket(&bucket.name);
    let request = request
        .copy_source(copy_source(&store.source.name, &route.source_key))
        .key(&route.destination_key)
        .set_storage_class(attributes.storage_class.as_deref().map(Into::into))
        .set_acl(attributes.acl.as_deref().map(Into::into))
        .set_server_side_encryption(attributes.encryption.as_deref().map(Into::into))
        .set_ssekms_key_id(attributes.kms_key_id.clone())
        .set_expected_source_bucket_owner(store.source.copies.headers.expected_owner.clone());
    let request = match store.condition() {
        CopyCondition::Absent => request.if_none_match("*"),
        CopyCondition::Over(etag) => request.if_match(etag),
        CopyCondition::None => request,
    };
    let output = request.send().await.map_err(store_error)?;
    let result = output.copy_object_result();
    confirm_copy(result.and_then(|result| result.e_tag()))
}

async fn hold_to_the_sdk(server: &Server, store: &S3Store, route: &MoveRoute) {
    let copied = store.copy(route).await.unwrap();
    let ours = server.last();
    assert_eq!(copied.etag, "9b2c");
    copy_by_sdk(store, route).await.unwrap();
    let sdks = server.last();
    assert!(ours.is_ours() && !sdks.is_ours());
    assert!(is_signed(&sdks), "the check itself: {sdks:?}");
    assert!(is_signed(&ours), "{ours:?}");
    assert_eq!(ours.comparable(), sdks.comparable());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_copy_is_the_sdks_to_the_letter(
        key in "[\\PC\u{1}-\u{1f}/+%?#&=.~ ]{1,40}",
        cold in any::<bool>(),
        public in any::<bool>(),
        secret in any::<bool>(),
        replace_etag in any::<bool>(),
        of_others in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let server = Server::new(SystemTime::now());
            let mut store = plain_store(&server).await;
            store.options.attributes = CopyAttributes {
                storage_class: cold.then(|| "STANDARD_IA".to_owned()),
                acl: public.then(|| "public-read".to_owned()),
                encryption: secret.then(|| "aws:kms".to_owned()),
                kms_key_id: secret.then(|| "arn:aws:kms:eu-central-1:1:key/a".to_owned()),
                ..CopyAttributes::default()
            };
            let headers = |owner: &str| BucketHeaders {
                expected_owner: of_others.then(|| owner.to_owned()),
                pays: of_others,
            };
            store.source = store.source.with_headers(headers("111122223333"));
            store.destination = store.destination.with_headers(headers("444455556666"));
            store.replace_etag = replace_etag.then(|| "\"0a\"".to_owned());
            hold_to_the_sdk(&server, &store, &route(&key)).await;
        });
    }
}

#[tokio::test]
async fn whatever_the_address() {
    type Variant = (bool, fn(Builder) -> Builder, &'static str);
    let access_point = "arn:aws:s3:eu-central-1:123456789012:accesspoint:images";
    let variants: [Variant; 8] = [
        (true, |sdk| sdk, "to-bucket"),
        (false, |sdk| sdk.use_dual_stack(true), "to-bucket"),
        (false, |sdk| sdk.use_fips(true), "to-bucket"),
        (
            true,
            |sdk| sdk.endpoint_url("http://127.0.0.1:9000/under/a/path/"),
            "to-bucket",
        ),
        (
            false,
            |sdk| sdk.endpoint_url("https://storage.internal:8443"),
            "to-bucket",
        ),
        (true, |sdk| sdk, "With.dots_and Capitals"),
        (false, |sdk| sdk, access_point),
        (
            false,
            |sdk| sdk,
            "images-m4q1abc5vdn7dseftygtyzwd1hxcfeuc1b-s3alias",
        ),
    ];
    for (path_style, variant, bucket) in variants {
        let server = Server::new(SystemTime::now());
        let access = access(&server, variant(sdk()), path_style);
        let store = store(&access, bucket).await;
        hold_to_the_sdk(&server, &store, &route("a b/ü//.png")).await;
    }
}

#[tokio::test]
async fn what_is_not_supported_is_refused_by_name() {
    let server = Server::new(SystemTime::now());
    let plain = access(&server, sdk(), false);
    let mut unsigned = sdk();
    unsigned.set_credentials_provider(None);
    let unsigned = access(&server, unsigned, false);
    let nowhere = access(&server, sdk().region(None), false);
    let refusals = [
        (&plain, "images--euc1-az1--x-s3", "directory buckets"),
        (
            &plain,
            "arn:aws:s3::123456789012:accesspoint:mfzwi23gnjvgw.mrap",
            "multi-region access points",
        ),
        (&plain, "arn:aws:s3:::no-access-point", "ARN"),
        (&unsigned, "to-bucket", "credentials"),
        (&nowhere, "to-bucket", "region"),
    ];
    for (access, bucket, reason) in refusals {
        let refused = access.bucket("DESTINATION_BUCKET_NAME", bucket, None).await;
        let Err(PreflightError::InvalidSetting { setting, problem }) = refused else {
            panic!("{bucket}: {refused:?}");
        };
        assert_eq!(setting, "DESTINATION_BUCKET_NAME");
        assert!(
            problem.contains(bucket) && problem.contains(reason),
            "{problem}"
        );
    }
    assert_eq!(server.requests(), 0);
}

#[tokio::test]
async fn a_response_without_an_end_fills_no_memory() {
    let server = Server::new(SystemTime::now());
    let long = format!("{}{COPIED}", " ".repeat(MAX_BODY_BYTES));
    server.respond_with(200, long.leak());
    let error = plain_store(&server).await.copy(&route("a")).await;
    assert!(
        matches!(&error, Err(StoreError::Transient { message, .. }) if message.contains("65536")),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_clock_that_is_off_is_corrected() {
    let hour = Duration::from_hours(1);
    for clock in [SystemTime::now() + hour, SystemTime::now() - hour] {
        let server = Server::new(clock);
        let store = plain_store(&server).await;
        store.copy(&route("a")).await.unwrap();
        assert_eq!(server.requests(), 2);
        store.copy(&route("b")).await.unwrap();
        assert_eq!(server.requests(), 3);
        assert!(is_signed(&server.last()));
    }
}

/// A HEAD is refused without a word.
#[tokio::test]
async fn a_head_is_signed_at_the_stores_time_too() {
    let hour = Duration::from_hours(1);
    for clock in [SystemTime::now() + hour, SystemTime::now() - hour] {
        let server = Server::new(clock);
        let source = plain_store(&server).await.source;
        for requests in [2, 3] {
            assert_eq!(source.head("a").await.unwrap().unwrap().etag(), "9b2c");
            assert_eq!(server.requests(), requests);
        }
        assert!(is_signed(&server.last()));
    }
    let server = Server::new(SystemTime::now());
    server.respond_with(403, "");
    let denied = plain_store(&server).await.source.head("a").await;
    let denied = denied.unwrap_err().to_string();
    assert!(
        denied.contains("s3:GetObject on arn:aws:s3:::from/a"),
        "{denied}"
    );
}

/// A proxy's page, for example.
#[tokio::test]
async fn what_is_still_there_was_not_removed() {
    let server = Server::new(SystemTime::now());
    let source = plain_store(&server).await.source;
    for (status, body, requests) in [(204, "", 1), (200, "<html>", 2)] {
        server.respond_with(status, body);
        let before = server.requests();
        let deleted = source.delete("a", Vec::new()).await;
        assert_eq!(deleted.is_ok(), status == 204, "{deleted:?}");
        assert_eq!(server.requests() - before, requests);
    }
}

#[tokio::test]
async fn a_redirect_says_where_the_bucket_is() {
    let server = Server::new(SystemTime::now());
    let store = plain_store(&server).await;
    let redirect = "<Error><Code>PermanentRedirect</Code><Message>Use the specified endpoint.</Message></Error>";
    for (status, body) in [(301, redirect), (301, ""), (307, "")] {
        server.respond_with(status, body);
        let copied = store.copy(&route("a")).await.unwrap_err();
        for error in [copied, store.source.head("a").await.unwrap_err()] {
            assert!(matches!(error, StoreError::Systemic { .. }), "{error:?}");
            assert!(error.to_string().contains("eu-north-1"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_clock_that_cannot_be_corrected_is_no_endless_matter() {
    let server = Server::new(SystemTime::now());
    server.respond_with(403, SKEWED);
    let refused = plain_store(&server).await.copy(&route("a")).await;
    assert!(
        matches!(refused, Err(StoreError::Systemic { code, .. }) if code == "RequestTimeTooSkewed")
    );
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn credentials_are_renewed() {
    let server = Server::new(SystemTime::now());
    let sdk = sdk().credentials_provider(SharedCredentialsProvider::new(Fleeting::default()));
    let store = store(&access(&server, sdk, false), "to-bucket").await;
    for number in 1..5 {
        store.copy(&route("a")).await.unwrap();
        assert!(is_signed(&server.last()));
        let token = &server.last().headers["x-amz-security-token"];
        assert_eq!(*token, format!("token {number}"));
    }
}

#[tokio::test]
async fn an_expired_token_is_not_used_again() {
    let server = Server::new(SystemTime::now());
    let provider = SharedCredentialsProvider::new(Fleeting {
        lifetime: Duration::from_hours(1),
        ..Fleeting::default()
    });
    let sdk = sdk().credentials_provider(provider);
    let store = store(&access(&server, sdk, false), "to-bucket").await;
    let token = || server.last().headers["x-amz-security-token"].clone();
    for _ in 0..2 {
        store.copy(&route("a")).await.unwrap();
        assert_eq!(token(), "token 1");
    }
    server.respond_with(
        400,
        "<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>",
    );
    let refused = store.copy(&route("a")).await;
    assert!(matches!(refused, Err(StoreError::Systemic { code, .. }) if code == "ExpiredToken"));
    server.respond_with(200, COPIED);
    for _ in 0..2 {
        store.copy(&route("a")).await.unwrap();
        assert_eq!(token(), "token 2");
    }
    // What a HEAD is not told, the object's first byte is.
    server.respond_with(400, "<Error><Code>ExpiredToken</Code></Error>");
    let refused = store.source.head("a").await.unwrap_err();
    assert_eq!(refused.code(), "ExpiredToken");
    server.respond_with(200, COPIED);
    store.source.head("a").await.unwrap();
    assert_eq!(token(), "token 3");
}

#[tokio::test]
async fn every_response_means_what_the_sdk_reads_in_it() {
    let answers = [
        (200, ""),
        (200, "<CopyObjectResult/>"),
        (200, "no XML at all"),
        (
            200,
            "<Error><Code>SlowDown</Code><Message>slow</Message></Error>",
        ),
        (200, "<Error><Code>InternalError</Code></Error>"),
        (200, "<Error><Message>no code</Message></Error>"),
        (204, ""),
        (301, "<Error><Code>PermanentRedirect</Code></Error>"),
        (301, ""),
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
        let store = plain_store(&server).await;
        server.respond_with(status, body);
        let ours = store.copy(&route("b")).await;
        assert!(server.last().is_ours());
        let sdks = copy_by_sdk(&store, &route("b")).await;
        assert!(!server.last().is_ours());
        assert_eq!(sense(&ours), sense(&sdks), "{status} {body}");
    }
}

fn sense(answer: &Result<CopiedObject, StoreError>) -> (String, String) {
    match answer {
        Ok(copied) => ("Ok".into(), copied.etag.clone()),
        Err(error) => (
            format!("{:?}", std::mem::discriminant(error)),
            error.code().to_owned(),
        ),
    }
}
