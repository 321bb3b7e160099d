//! The AWS clients, made once.

pub(crate) mod credentials;
mod errors;
pub(crate) mod exchange;
#[cfg(test)]
pub(crate) mod recording_server;
#[cfg(test)]
pub(crate) mod signature;
pub(crate) mod signer;

use std::time::Duration;

use aws_config::identity::IdentityCache;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::{BehaviorVersion, ConfigLoader, SdkConfig};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{Region, StalledStreamProtectionConfig};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};
use aws_types::service_config::ServiceConfigKey;

pub(crate) use errors::{
    BUCKET_REGION, describe_page, describe_status, is_proxy_page, operation_name,
};
pub use errors::{ErrorOrigin, NOT_SENT_CODE, RequestError, error_chain};

/// When credentials that do not come are given up: after the SDK's own tries, before any request is.
pub(crate) const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(7);

/// Reads credentials, region and endpoints the way every AWS tool does: environment, profile,
/// container or instance role. The SDK tries again where it asks for credentials; on the clients made of
/// this, our own policy is the only one.
pub async fn load_config() -> SdkConfig {
    without_empty_region(config_loader().load().await)
}

/// The same of one profile: its credentials and region, whatever the environment says.
pub(crate) async fn load_profile(name: &str) -> SdkConfig {
    let credentials = ProfileFileCredentialsProvider::builder().profile_name(name);
    let region = ProfileFileRegionProvider::builder().profile_name(name);
    let region = RegionProviderChain::first_try(region.build()).or_default_provider();
    let sdk = config_loader()
        .profile_name(name)
        .credentials_provider(credentials.build())
        .region(region)
        .load()
        .await;
    without_empty_region(sdk)
}

/// The SDK takes an empty `AWS_REGION` for a region, and says then only that an interceptor failed.
fn without_empty_region(sdk: SdkConfig) -> SdkConfig {
    match sdk.region() {
        Some(region) if region.as_ref().is_empty() => sdk.into_builder().region(None).build(),
        _ => sdk,
    }
}

fn config_loader() -> ConfigLoader {
    let identities = IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT);
    aws_config::defaults(BehaviorVersion::latest())
        .identity_cache(identities.build())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
}

/// An S3 client, for the region of the settings or another. It does not try again: the SDK's tries share one
/// token bucket per process, and are given up under throttling.
pub fn s3_client(
    sdk: &SdkConfig,
    force_path_style: bool,
    timeout: Duration,
    region: Option<&str>,
) -> aws_sdk_s3::Client {
    let mut config = aws_sdk_s3::config::Builder::from(sdk);
    if let Some(region) = region {
        config.set_region(Some(Region::new(region.to_owned())));
    }
    let config = config
        .retry_config(RetryConfig::disabled())
        .force_path_style(force_path_style)
        .timeout_config(TimeoutConfig::builder().operation_timeout(timeout).build())
        .build();
    aws_sdk_s3::Client::from_conf(config)
}

/// `AWS_ENDPOINT_URL_S3` or the profile's own for S3, before the one for all services.
///
/// # Errors
/// An id that no service can have.
pub(crate) fn service_endpoint(sdk: &SdkConfig, service: &str) -> Result<Option<String>, BoxError> {
    let key = ServiceConfigKey::builder()
        .service_id(service)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()?;
    let own = sdk.service_config().and_then(|all| all.load_config(key));
    Ok(own.or_else(|| sdk.endpoint_url().map(ToOwned::to_owned)))
}

pub(crate) fn sqs_client(
    sdk: &SdkConfig,
    connector: SharedHttpConnector,
    timeout: Duration,
) -> aws_sdk_sqs::Client {
    let config = aws_sdk_sqs::config::Builder::from(sdk)
        .http_client(http_client_fn(move |_, _| connector.clone()))
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::builder().operation_timeout(timeout).build())
        .build();
    aws_sdk_sqs::Client::from_conf(config)
}

#[cfg(test)]
mod tests {
    use aws_credential_types::Credentials;
    use aws_credential_types::provider::error::CredentialsError;
    use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};

    use super::*;
    use crate::connections::RenewedConnections;
    use crate::object_store::s3::fixture::sdk;

    const TIMEOUT: Duration = Duration::from_secs(15);

    /// How asking for credentials ends.
    #[derive(Debug, Clone, Copy)]
    enum Provider {
        Fails,
        Hangs,
        HasNone,
        IsWrong,
    }

    impl Provider {
        async fn give(self) -> Result<Credentials, CredentialsError> {
            Err(match self {
                Self::Fails => CredentialsError::provider_error("STS: 503"),
                Self::Hangs => std::future::pending().await,
                Self::HasNone => CredentialsError::not_loaded("no profile"),
                Self::IsWrong => CredentialsError::invalid_configuration("no role"),
            })
        }
    }

    impl ProvideCredentials for Provider {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(self.give())
        }
    }

    fn client(sdk: &SdkConfig) -> aws_sdk_sqs::Client {
        let connector = SharedHttpConnector::new(RenewedConnections::new());
        sqs_client(sdk, connector, TIMEOUT)
    }

    async fn asked_with(provider: Provider) -> RequestError {
        let identities = IdentityCache::lazy().load_timeout(CREDENTIALS_TIMEOUT);
        let sdk = sdk()
            .identity_cache(identities.build())
            .credentials_provider(SharedCredentialsProvider::new(provider));
        let client = client(&sdk.build());
        client.list_queues().send().await.unwrap_err().into()
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_may_come_are_no_setting_that_is_missing() {
        for (provider, origin) in [
            (Provider::Fails, ErrorOrigin::Credentials),
            (Provider::Hangs, ErrorOrigin::Credentials),
            (Provider::HasNone, ErrorOrigin::Local),
            (Provider::IsWrong, ErrorOrigin::Local),
        ] {
            let error = asked_with(provider).await;
            assert_eq!(error.origin, origin, "{provider:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn an_empty_region_is_reported_as_none() {
        let sdk = sdk().region(Region::new("")).build();
        let asked = client(&without_empty_region(sdk))
            .list_queues()
            .send()
            .await;
        let error = RequestError::from(asked.unwrap_err());
        assert_eq!(error.code, NOT_SENT_CODE);
        assert!(
            error.message.contains("Missing Region"),
            "{}",
            error.message
        );
    }

    #[tokio::test]
    async fn a_request_that_reaches_no_server_was_not_sent() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", free.local_addr().unwrap());
        drop(free);
        let sdk = sdk().endpoint_url(&endpoint).build();
        let asked = client(&sdk).list_queues().send().await;
        assert_eq!(
            RequestError::from(asked.unwrap_err()).code,
            exchange::NOT_CONNECTED
        );
        let connector = SharedHttpConnector::new(RenewedConnections::new());
        let request = aws_smithy_runtime_api::client::orchestrator::HttpRequest::get(&endpoint);
        let asked = exchange::call(&connector, request.unwrap()).await;
        assert_eq!(asked.unwrap_err().code, exchange::NOT_CONNECTED);
    }

    #[tokio::test]
    async fn only_the_credentials_are_asked_for_again_by_the_sdk() {
        let sdk = load_config().await;
        let tries = |config: Option<&RetryConfig>| config.unwrap().max_attempts();
        assert!(tries(sdk.retry_config()) > 1);
        let s3 = s3_client(&sdk, true, TIMEOUT, None);
        assert_eq!(tries(s3.config().retry_config()), 1);
        assert_eq!(tries(client(&sdk).config().retry_config()), 1);
    }
}
