//! Clients of S3 and SQS, wherever they answer.

use aws_sdk_s3::config::Credentials;
use aws_smithy_http_client::Builder as HttpClient;

use super::backend::REGION;

/// Where S3 and SQS answer: in this process or another.
#[derive(Debug, Clone)]
pub struct CloudEndpoint(String);

impl CloudEndpoint {
    /// The services at `url`, such as `http://127.0.0.1:4566`.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    pub fn url(&self) -> &str {
        &self.0
    }

    /// A new S3 client of the caller `access_key_id`. Its connections belong to the current runtime.
    pub fn s3_client_for(&self, access_key_id: &str) -> aws_sdk_s3::Client {
        use aws_sdk_s3::config::{BehaviorVersion, Builder, Region};
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.url())
            .force_path_style(true)
            .credentials_provider(static_credentials(access_key_id))
            .http_client(HttpClient::new().build_http());
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// A new SQS client of the caller `access_key_id`.
    pub fn sqs_client_for(&self, access_key_id: &str) -> aws_sdk_sqs::Client {
        use aws_sdk_sqs::config::{BehaviorVersion, Builder, Region};
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .endpoint_url(self.url())
            .credentials_provider(static_credentials(access_key_id))
            .http_client(HttpClient::new().build_http());
        aws_sdk_sqs::Client::from_conf(config.build())
    }
}

/// The server takes any secret: callers differ by the access key's id alone.
fn static_credentials(access_key_id: &str) -> Credentials {
    Credentials::new(access_key_id, "test", None, None, "testbed")
}
