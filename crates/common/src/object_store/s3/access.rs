//! How this process reaches S3, and the buckets that it works with.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::SdkError;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{SharedHttpConnector, http_client_fn};

use super::copy::{BucketAddress, CopyClient, endpoint_params};
use super::store_error;
use crate::aws::signer::RequestSigner;
use crate::aws::{RequestError, error_chain, operation_name, s3_client};
use crate::connections::RenewedConnections;
use crate::object_store::StoreError;
use crate::permissions::s3_arn;
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
    /// The SDK's, for what is not asked for each image.
    pub(super) client: Client,
    pub(super) copies: CopyClient,
    pub(super) habits: Arc<StoreHabits>,
}

/// What its answers have shown of the bucket's store.
#[derive(Debug, Default)]
pub(super) struct StoreHabits {
    /// Whether any object's ETag has been the MD5 of its bytes.
    pub(super) has_md5_etags: AtomicBool,
    /// Whether it counts an object's tags in each answer, where there are any, or has none; AWS does.
    pub(super) counts_tags: AtomicBool,
    /// Whether it has refused an upload that came without the MD5 of its bytes, as under Object Lock.
    pub(super) wants_md5: AtomicBool,
}

/// What each request about a bucket says beside its own matter.
#[derive(Debug, Clone, Default)]
pub(super) struct BucketHeaders {
    pub(super) expected_owner: Option<String>,
    /// Whether we pay, where the requester is to.
    pub(super) pays: bool,
}

/// Which of two stores it is, for messages; nothing where one holds both buckets.
#[derive(Debug, Clone, Default)]
pub(super) struct StoreLabel(pub(super) Option<Arc<str>>);

impl S3Bucket {
    pub(super) fn setting(&self) -> &'static str {
        self.setting
    }

    /// Whether S3 itself has it.
    pub fn is_aws(&self) -> bool {
        self.copies.is_aws()
    }
}

impl StoreLabel {
    pub(super) fn append_to(&self, message: &mut String) {
        if let Some(store) = &self.0 {
            *message = format!("{message} (at the {store})");
        }
    }
}

impl BucketHeaders {
    pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
        let owner = self.expected_owner.clone();
        let owner = owner.map(|owner| ("x-amz-expected-bucket-owner", owner));
        let payer = self
            .pays
            .then(|| ("x-amz-request-payer", "requester".to_owned()));
        owner.into_iter().chain(payer).collect()
    }
}

impl Intercept for BucketHeaders {
    fn name(&self) -> &'static str {
        "BucketHeaders"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let headers = context.request_mut().headers_mut();
        for (name, value) in self.pairs() {
            headers.try_insert(name, value)?;
        }
        Ok(())
    }
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

    /// Whether it is there is not asked yet.
    ///
    /// # Errors
    /// [`PreflightError::InvalidSetting`] for a bucket of a kind that nothing can be copied to: what is
    /// copied must also be able to come back.
    pub async fn bucket(
        &self,
        setting: &'static str,
        name: &str,
        region: Option<&str>,
    ) -> Result<S3Bucket, PreflightError> {
        let copies = self.copies(name, region).await.map_err(|error| {
            let problem = format!("bucket '{name}' cannot be used: {}", error_chain(&*error));
            PreflightError::invalid(setting, problem)
        })?;
        let habits = StoreHabits {
            counts_tags: AtomicBool::new(copies.is_aws()),
            ..StoreHabits::default()
        };
        Ok(S3Bucket {
            setting,
            name: name.to_owned(),
            client: self.client(region),
            habits: Arc::new(habits),
            copies,
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
        Ok(CopyClient::new(
            address,
            signer,
            connector,
            self.timeout,
            name,
        ))
    }
}

impl S3Bucket {
    pub(super) fn with_label(mut self, label: StoreLabel) -> Self {
        self.copies.store = label;
        self
    }

    pub(super) fn with_headers(self, headers: BucketHeaders) -> Self {
        if headers.pairs().is_empty() {
            return self;
        }
        let config = self.client.config().to_builder();
        let config = config.interceptor(headers.clone());
        let client = Client::from_conf(config.build());
        let mut copies = self.copies;
        copies.headers = headers;
        Self {
            client,
            copies,
            ..self
        }
    }

    /// Checks that it is there, and that we may look into it.
    pub async fn check_access(&self) -> Result<(), PreflightError> {
        let (client, setting, name) = (&self.client, self.setting, &self.name);
        retry_transient(async || check_bucket(client, setting, name, BucketCheck::Access).await)
            .await
    }

    /// Checks that its name is not surely wrong: for a process that does not work with it.
    pub async fn check_name(&self) -> Result<(), PreflightError> {
        check_bucket(
            &self.client,
            self.setting,
            &self.name,
            BucketCheck::NameOnly,
        )
        .await
    }

    /// The SDK's error about an object, or about the bucket where the key is empty.
    pub fn refused<E>(&self, key: &str, error: SdkError<E, HttpResponse>) -> StoreError
    where
        RequestError: From<SdkError<E, HttpResponse>>,
    {
        let (error, target) = (RequestError::from(error), s3_arn(&self.name, key));
        store_error(error.explain_denial(operation_name::<E>(), &target, None))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The SDK's client, for requests about the bucket.
    pub fn client(&self) -> &Client {
        &self.client
    }
}
