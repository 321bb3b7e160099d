//! The two buckets of a run, each in its store.

use std::time::Duration;

use aws_config::SdkConfig;
use aws_credential_types::provider::ProvideCredentials;
use aws_types::service_config::{LoadServiceConfig, ServiceConfigKey};

use super::access::{BucketHeaders, StoreLabel};
use super::{S3Access, S3Bucket};
use crate::aws::{error_chain, load_profile};
use crate::ledger::{RunOptions, RunSpec};
use crate::object_store::objects::BucketSide;
use crate::preflight::PreflightError;
use crate::settings::{BucketStore, StoreSettings};

const ENDPOINTS: &str = "SOURCE_ENDPOINT, DESTINATION_ENDPOINT";

const ONE_ENDPOINT: &str = "the run is from one store to another, as its feeder began it, and these settings name one for both buckets (feeder --new-run, where that was a slip)";

impl StoreSettings {
    /// Source and destination. Whether they are there is not asked yet; `timeout` is when a request that does
    /// not answer is given up.
    ///
    /// # Errors
    /// [`PreflightError::InvalidSetting`] for a bucket of a kind that nothing can be copied to, as what is copied
    /// must also be able to come back, and for a profile without credentials.
    pub async fn open_buckets(
        &self,
        sdk: &SdkConfig,
        run: &RunSpec,
        options: &RunOptions,
        timeout: Duration,
    ) -> Result<(S3Bucket, S3Bucket), PreflightError> {
        if options.two_stores == Some(true) && !self.has_two_endpoints() {
            return Err(PreflightError::invalid(ENDPOINTS, ONE_ENDPOINT));
        }
        let access = self.access(sdk, BucketSide::Destination, timeout).await?;
        let of_source = if self.is_one_store() {
            access.clone()
        } else {
            self.access(sdk, BucketSide::Source, timeout).await?
        };
        let region = self.source.region.as_deref();
        let source = of_source.bucket("SOURCE_BUCKET_NAME", &run.source_bucket, region);
        let name = &run.destination_bucket;
        let destination = access.bucket("DESTINATION_BUCKET_NAME", name, None);
        let headers = |owner: &Option<String>| BucketHeaders {
            expected_owner: owner.clone(),
            pays: options.request_payer.is_some(),
        };
        let source_headers = headers(&options.expected_source_owner);
        let destination_headers = headers(&options.expected_destination_owner);
        let (source, destination) = (source.await?, destination.await?);
        Ok((
            source
                .with_headers(source_headers)
                .with_label(self.label(BucketSide::Source)),
            destination
                .with_headers(destination_headers)
                .with_label(self.label(BucketSide::Destination)),
        ))
    }

    fn label(&self, side: BucketSide) -> StoreLabel {
        let name = match side {
            BucketSide::Source => "source store",
            BucketSide::Destination => "destination store",
        };
        let endpoint = self.at(side).endpoint.as_ref();
        let label = endpoint.map_or_else(|| name.into(), |url| format!("{name}, {url}").into());
        StoreLabel((!self.is_one_store()).then_some(label))
    }

    /// The destination as another sees it, by a profile that `setting` names.
    ///
    /// # Errors
    /// [`PreflightError::InvalidSetting`] for a profile without credentials.
    pub async fn open_destination_as(
        &self,
        setting: &'static str,
        profile: &str,
        run: &RunSpec,
        timeout: Duration,
    ) -> Result<S3Bucket, PreflightError> {
        let sdk = load_checked_profile(profile, setting).await?;
        let access = self.access_with(sdk, BucketSide::Destination, timeout);
        access.bucket(setting, &run.destination_bucket, None).await
    }

    /// Whether one store holds both buckets, and can copy from one to the other.
    pub fn is_one_store(&self) -> bool {
        let profile = |side: &BucketStore| side.profile.clone().map(|profile| profile.name);
        let store = |side: &BucketStore| (side.endpoint.clone(), profile(side));
        store(&self.source) == store(&self.destination)
    }

    pub fn has_two_endpoints(&self) -> bool {
        self.source.endpoint != self.destination.endpoint
    }

    async fn access(
        &self,
        sdk: &SdkConfig,
        side: BucketSide,
        timeout: Duration,
    ) -> Result<S3Access, PreflightError> {
        let sdk = match &self.at(side).profile {
            Some(profile) => load_checked_profile(&profile.name, profile.setting).await?,
            None => sdk.clone(),
        };
        Ok(self.access_with(sdk, side, timeout))
    }

    fn access_with(&self, mut sdk: SdkConfig, side: BucketSide, timeout: Duration) -> S3Access {
        if let Some(endpoint) = &self.at(side).endpoint {
            let builder = sdk.into_builder().endpoint_url(endpoint);
            sdk = builder.service_config(NoServiceConfig).build();
        }
        S3Access::new(&sdk, self.force_path_style, timeout)
    }
}

/// Or `AWS_ENDPOINT_URL_S3` would win over the bucket's own endpoint.
#[derive(Debug)]
struct NoServiceConfig;

impl LoadServiceConfig for NoServiceConfig {
    fn load_config(&self, _: ServiceConfigKey<'_>) -> Option<String> {
        None
    }
}

async fn load_checked_profile(
    profile: &str,
    setting: &'static str,
) -> Result<SdkConfig, PreflightError> {
    let sdk = load_profile(profile).await;
    if let Some(provider) = sdk.credentials_provider()
        && let Err(error) = provider.provide_credentials().await
    {
        let problem = format!(
            "there is no profile '{profile}', or it has no credentials: {}",
            error_chain(&error)
        );
        return Err(PreflightError::invalid(setting, problem));
    }
    Ok(sdk)
}
