//! Local S3 and SQS over HTTP, on loopback unless told otherwise.

mod answer;
mod backend;
mod condition;
mod endpoint;
mod fault;
mod front;
mod limit;
mod operation;
mod partial;
mod queue;
mod receives;
mod requests;
mod server;
mod stale;
mod watch;

pub use endpoint::Endpoint;
pub use fault::{Effect, Fault, FaultHandle};
pub use limit::{CopyLimit, Counting, LimitFigures};
pub use queue::{CreateQueue, QueueDepth, QueueUrls};
pub use requests::Requests;
pub use watch::{Passing, Watch};

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};

use backend::{Backend, REGION};
use front::Front;
use limit::Limiter;
use server::Server;

/// How the stand-ins behave.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether `CopyObject` and `DeleteObjects` honour conditions, as S3 does; some stores ignore them.
    pub conditional_copy: bool,
    /// The largest source that `CopyObject` copies, in bytes; S3's limit is 5 GiB.
    pub copy_limit_bytes: u64,
    /// Where to listen; port 0 for a free one.
    pub listen: SocketAddr,
    /// The URL that others reach the services by, where it is not the address itself.
    pub endpoint: Option<String>,
    /// Where the faults' dice start.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            conditional_copy: true,
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
    _server: Server,
    front: Arc<Front>,
    endpoint: Endpoint,
}

impl Cloud {
    /// Starts both services; fails when the port is taken.
    pub fn start(options: Options) -> Result<Self> {
        let listener = std::net::TcpListener::bind(options.listen)
            .with_context(|| format!("cannot listen on {}", options.listen))?;
        let own = format!("http://{}", listener.local_addr()?);
        let endpoint = Endpoint::new(options.endpoint.clone().unwrap_or(own));
        let front = Arc::new(Front::new(Backend::new(endpoint.url()), options));
        Ok(Self {
            _server: Server::start(listener, Arc::clone(&front))?,
            front,
            endpoint,
        })
    }

    /// `http://127.0.0.1:PORT`, unless another was given, for both services.
    pub fn endpoint(&self) -> String {
        self.endpoint.url().to_owned()
    }

    /// Where they answer, for clients.
    pub fn at(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The environment in which an AWS SDK finds these services, for the caller `test`.
    pub fn env(&self) -> Vec<(String, String)> {
        self.env_as("test")
    }

    /// As [`Cloud::env`], with `access_key_id`, by which the requests are counted.
    pub fn env_as(&self, access_key_id: &str) -> Vec<(String, String)> {
        let endpoint = self.endpoint();
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
    pub fn s3(&self) -> aws_sdk_s3::Client {
        self.s3_as("test")
    }

    /// A new S3 client of the caller `access_key_id`.
    pub fn s3_as(&self, access_key_id: &str) -> aws_sdk_s3::Client {
        self.endpoint.s3_as(access_key_id)
    }

    /// A new SQS client of the caller `test`.
    pub fn sqs(&self) -> aws_sdk_sqs::Client {
        self.sqs_as("test")
    }

    /// A new SQS client of the caller `access_key_id`.
    pub fn sqs_as(&self, access_key_id: &str) -> aws_sdk_sqs::Client {
        self.endpoint.sqs_as(access_key_id)
    }

    /// Creates an S3 bucket.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.s3().create_bucket().bucket(name).send().await?;
        Ok(())
    }

    /// The requests received so far.
    pub fn requests(&self) -> Requests {
        self.front.requests.lock().clone()
    }

    /// Has `watch` look at every request from now on; there can be only one.
    pub fn watch(&self, watch: Arc<dyn Watch>) -> Result<()> {
        let taken = self.front.watch.set(watch);
        taken.map_err(|_| anyhow::anyhow!("somebody watches already"))
    }

    /// Puts a fault in force until its handle is dropped.
    pub fn inject(&self, fault: Fault) -> FaultHandle {
        self.front.faults.arm(fault)
    }

    /// Limits the copies per second from now on, and counts anew.
    pub fn limit_copies(&self, limit: CopyLimit) {
        *self.front.limit.lock() = Some(Limiter::new(limit, Instant::now()));
    }

    /// What the limit has done since it was set; nothing without one.
    pub fn limit_figures(&self) -> LimitFigures {
        let limit = self.front.limit.lock();
        limit
            .as_ref()
            .map_or_else(LimitFigures::default, |limiter| limiter.figures)
    }

    /// The highest receive count of any message so far.
    pub fn highest_receive_count(&self) -> u64 {
        self.front.receives.highest()
    }

    /// How many objects are in a bucket, without a request.
    pub fn objects_in(&self, bucket: &str) -> usize {
        self.front.backend.objects_in(bucket)
    }

    /// The ETags of the objects in a bucket by key, without a request and as of one moment.
    pub fn etags_in(&self, bucket: &str) -> BTreeMap<String, String> {
        self.front.backend.etags_in(bucket)
    }
}
