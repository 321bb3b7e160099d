//! How this process reaches S3, and the buckets that it works with.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};

use super::copy::{BucketAddress, CopyClient, RequestSigner, endpoint_params};
use crate::aws::{error_chain, s3_client};
use crate::connections::RenewedConnections;
use crate::preflight::{BucketCheck, PreflightError, check_bucket, retry_transient};

/// How this process reaches S3: one set of connections for all requests, and of credentials for all copies.
#[derive(Debug, Clone)]
pub struct S3Access {
    sdk: SdkConfig,
    force_path_style: bool,
    timeout: Duration,
    connector: SharedHttpConnector,
    signer: Option<Arc<RequestSigner>>,
}

/// One bucket, and how requests reach it.
#[derive(Debug, Clone)]
pub struct S3Bucket {
    /// The setting that names it.
    setting: &'static str,
    pub(super) name: String,
    pub(super) client: Client,
    pub(super) copies: CopyClient,
    /// When a request that does not answer is given up.
    pub(super) timeout: Duration,
}

impl S3Access {
    /// `timeout` is when a request that does not answer is given up.
    pub fn new(sdk: &SdkConfig, force_path_style: bool, timeout: Duration) -> Self {
        let connector = SharedHttpConnector::new(RenewedConnections::new());
        Self::with_connector(sdk, force_path_style, timeout, connector)
    }

    /// The same with HTTP connections of the caller's.
    pub(super) fn with_connector(
        sdk: &SdkConfig,
        force_path_style: bool,
        timeout: Duration,
        connector: SharedHttpConnector,
    ) -> Self {
        let provider = sdk.credentials_provider();
        Self {
            sdk: sdk.clone(),
            force_path_style,
            timeout,
            connector,
            signer: provider.map(|provider| Arc::new(RequestSigner::new(provider))),
        }
    }

    /// Source and destination. Whether they are there is not asked yet.
    ///
    /// # Errors
    /// [`PreflightError::InvalidSetting`] for a bucket of a kind that nothing can be copied to: what is
    /// copied must also be able to come back.
    pub async fn buckets(
        &self,
        source: &str,
        source_region: Option<&str>,
        destination: &str,
    ) -> Result<(S3Bucket, S3Bucket), PreflightError> {
        let source = self.bucket("SOURCE_BUCKET_NAME", source, source_region);
        let destination = self.bucket("DESTINATION_BUCKET_NAME", destination, None);
        Ok((source.await?, destination.await?))
    }

    pub(super) async fn bucket(
        &self,
        setting: &'static str,
        name: &str,
        region: Option<&str>,
    ) -> Result<S3Bucket, PreflightError> {
        let copies = self.copies(name, region).await;
        Ok(S3Bucket {
            setting,
            name: name.to_owned(),
            client: self.client(region),
            copies: copies.map_err(|error| PreflightError::InvalidSetting {
                setting,
                problem: format!("bucket '{name}' cannot be used: {}", error_chain(&*error)),
            })?,
            timeout: self.timeout,
        })
    }

    /// On the connections of the copies.
    fn client(&self, region: Option<&str>) -> Client {
        let client = s3_client(&self.sdk, self.force_path_style, self.timeout, region);
        let connector = self.connector.clone();
        let config = client.config().to_builder();
        let config = config.http_client(http_client_fn(move |_, _| connector.clone()));
        Client::from_conf(config.build())
    }

    async fn copies(&self, name: &str, region: Option<&str>) -> Result<CopyClient, BoxError> {
        let signer = self.signer.clone();
        let signer = signer.ok_or("there are no credentials to sign with")?;
        let params = endpoint_params(&self.sdk, self.force_path_style, region, name)?;
        let address = BucketAddress::resolve(params).await?;
        let connector = self.connector.clone();
        Ok(CopyClient::new(address, signer, connector, self.timeout))
    }
}

impl S3Bucket {
    /// Checks that it is there, and that we may look into it.
    pub async fn check_access(&self) -> Result<(), PreflightError> {
        let (client, setting, name) = (&self.client, self.setting, &self.name);
        retry_transient(async || check_bucket(client, setting, name, BucketCheck::Access).await)
            .await
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The SDK's client for everything but copies.
    pub fn client(&self) -> &Client {
        &self.client
    }
}
