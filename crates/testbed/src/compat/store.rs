//! A store that runs, and a client of it.

use anyhow::Result;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::{BehaviorVersion, Builder, Credentials, Region};
use aws_smithy_http_client::Builder as HttpClient;

use crate::cloud::{Cloud, CloudOptions};

#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) name: String,
    pub(super) endpoint: String,
    pub(super) access_key: String,
    pub(super) secret: String,
}

impl Store {
    pub(super) fn client(&self) -> Client {
        let credentials = Credentials::new(&self.access_key, &self.secret, None, None, "compat");
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&self.endpoint)
            .force_path_style(true)
            .credentials_provider(credentials)
            .http_client(HttpClient::new().build_http());
        Client::from_conf(config.build())
    }

    /// What feeder and consumers need to reach it, beside an SQS of another endpoint.
    pub(super) fn variables(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ENDPOINT_URL_S3", self.endpoint.clone()),
            ("AWS_ACCESS_KEY_ID", self.access_key.clone()),
            ("AWS_SECRET_ACCESS_KEY", self.secret.clone()),
        ]
    }
}

pub(super) fn parse_store(text: &str) -> Result<Store, String> {
    let parse = || {
        let (name, address) = text.split_once('=')?;
        let mut parts = address.split(',').map(str::to_owned);
        Some(Store {
            name: name.to_owned(),
            endpoint: parts.next()?,
            access_key: parts.next()?,
            secret: parts.next()?,
        })
    };
    parse().ok_or_else(|| "is not NAME=ENDPOINT,ACCESS_KEY,SECRET".into())
}

/// The S3 of this process, which ends with what is returned.
pub(super) fn start_local() -> Result<(Cloud, Store)> {
    let cloud = Cloud::start(CloudOptions::default())?;
    let store = Store {
        name: "local".into(),
        endpoint: cloud.endpoint_url(),
        access_key: "test".into(),
        secret: "test".into(),
    };
    Ok((cloud, store))
}
