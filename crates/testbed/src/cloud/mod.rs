//! Local S3 and SQS over HTTP, on loopback by default.

mod backend;
mod condition;
mod endpoint;
mod fault;
mod frontend;
mod limit;
mod observer;
mod operation;
mod partial;
mod queue;
mod quirks;
mod receives;
mod requests;
mod response;
mod server;
mod stale_handles;

pub use endpoint::CloudEndpoint;
pub use fault::{Fault, FaultEffect, FaultHandle};
pub use limit::{CopyLimit, CopyLimitCounts, LimitAlgorithm};
pub use observer::{CloudObserver, ObservedRequest};
pub use queue::{CreateQueueOptions, QueueDepth, QueueUrls};
pub use quirks::{RAW_DISPOSITION, StoreQuirks};
pub use requests::CloudRequestCounts;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use backend::{CloudBackend, REGION};
use frontend::CloudFrontend;
use limit::CopyLimiter;
use server::CloudServer;

#[derive(Debug, Clone)]
pub struct CloudOptions {
    /// Whether `CopyObject` and `DeleteObjects` honour conditions, as S3 does; some stores ignore them.
    pub conditional_copy: bool,
    /// What else sets the store apart from S3.
    pub quirks: StoreQuirks,
    /// The largest source that `CopyObject` copies, in bytes; S3's limit is 5 GiB.
    pub copy_limit_bytes: u64,
    /// Where to listen; port 0 for a free one.
    pub listen: SocketAddr,
    /// The URL that others reach the services by, where it is not the address itself.
    pub endpoint: Option<String>,
    /// Seed of the faults' random numbers.
    pub seed: u64,
}

impl CloudOptions {
    /// As Ceph 16.2 with RADOS Gateway answers.
    pub fn like_ceph() -> Self {
        Self {
            conditional_copy: false,
            quirks: StoreQuirks::like_ceph(),
            ..Self::default()
        }
    }
}

impl Default for CloudOptions {
    fn default() -> Self {
        Self {
            conditional_copy: true,
            quirks: StoreQuirks::default(),
            copy_limit_bytes: 5 << 30,
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            endpoint: None,
            seed: 0,
        }
    }
}

/// S3 and SQS on one port, on threads of their own: they outlive any one test's
/// runtime and end when this is dropped.
pub struct Cloud {
    // Serves until it is dropped.
    _server: CloudServer,
    frontend: Arc<CloudFrontend>,
    services: CloudEndpoint,
}

impl Cloud {
    /// Starts both services; fails when the port is taken.
    pub fn start(options: CloudOptions) -> Result<Self> {
        let listener = std::net::TcpListener::bind(options.listen)
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let own = format!("http://{}", listener.local_addr()?);
        let endpoint = CloudEndpoint::new(options.endpoint.clone().unwrap_or(own));
        let front = Arc::new(CloudFrontend::new(
            CloudBackend::new(endpoint.url()),
            options,
        ));
        Ok(Self {
            _server: CloudServer::start(listener, Arc::clone(&front))?,
            frontend: front,
            services: endpoint,
        })
    }

    /// `http://127.0.0.1:PORT`, unless another was given, for both services.
    pub fn endpoint_url(&self) -> String {
        self.services.url().to_owned()
    }

    /// Where they answer, for clients.
    pub fn services(&self) -> &CloudEndpoint {
        &self.services
    }

    /// The environment in which an AWS SDK finds these services, with `access_key_id`, by which the requests are
    /// counted.
    pub fn sdk_env_for(&self, access_key_id: &str) -> Vec<(String, String)> {
        let endpoint = self.endpoint_url();
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", access_key_id),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("S3_FORCE_PATH_STYLE", "true"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// A new S3 client of the caller `test`. Its connections belong to the current runtime.
    pub fn s3_client(&self) -> aws_sdk_s3::Client {
        self.s3_client_for("test")
    }

    /// A new S3 client of the caller `access_key_id`.
    pub fn s3_client_for(&self, access_key_id: &str) -> aws_sdk_s3::Client {
        self.services.s3_client_for(access_key_id)
    }

    /// A new SQS client of the caller `test`.
    pub fn sqs_client(&self) -> aws_sdk_sqs::Client {
        self.sqs_client_for("test")
    }

    /// A new SQS client of the caller `access_key_id`.
    pub fn sqs_client_for(&self, access_key_id: &str) -> aws_sdk_sqs::Client {
        self.services.sqs_client_for(access_key_id)
    }

    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.s3_client().create_bucket().bucket(name).send().await?;
        Ok(())
    }

    pub fn request_counts(&self) -> CloudRequestCounts {
        self.frontend.request_counts.lock().clone()
    }

    /// Has `watch` look at every request from now on; there can be only one.
    pub fn observe_requests(&self, watch: Arc<dyn CloudObserver>) -> Result<()> {
        let taken = self.frontend.observer.set(watch);
        taken.map_err(|_| anyhow::anyhow!("there is an observer already"))
    }

    /// Puts a fault in force until its handle is dropped.
    pub fn inject_fault(&self, fault: Fault) -> FaultHandle {
        self.frontend.faults.insert(fault)
    }

    /// Limits the copies per second from now on, and counts anew.
    pub fn limit_copies(&self, limit: CopyLimit) {
        *self.frontend.copy_limiter.lock() = Some(CopyLimiter::new(limit, Instant::now()));
    }

    /// What the limit has done since it was set; nothing without one.
    pub fn copy_limit_counts(&self) -> CopyLimitCounts {
        let limit = self.frontend.copy_limiter.lock();
        limit
            .as_ref()
            .map_or_else(CopyLimitCounts::default, |limiter| limiter.counts)
    }

    /// The highest receive count of any message so far.
    pub fn highest_receive_count(&self) -> u64 {
        self.frontend.receive_counts.highest_count()
    }

    /// How many objects are in a bucket, without a request.
    pub fn count_objects(&self, bucket: &str) -> usize {
        self.frontend.backend.count_objects(bucket)
    }

    /// The ETags of the objects in a bucket by key, without a request and as of one moment.
    pub fn list_etags(&self, bucket: &str) -> BTreeMap<String, String> {
        self.frontend.backend.list_etags(bucket)
    }
}
