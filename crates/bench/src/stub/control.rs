//! How the bench sets the stub up and reads its account: three requests beside S3 and SQS.

use std::ops::Range;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::partitions::{PartitionLimits, Partitions};
use super::{RequestCounts, StubResponse, StubServer, build_response, queue, read_body, s3};

/// No bucket is called that.
pub(super) const CONTROL_PREFIX: &str = "/-/";

const JSON: &str = "application/json";

/// What the stub does until the next setup.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct StubSetup {
    /// What every answer of S3 takes.
    pub s3_latency_ms: u64,
    /// The rows whose messages the queue holds, and whose images a listing of the source has.
    pub rows: Range<u64>,
    /// Whether they have moved: a listing of the destination has them, too, and the queue is empty.
    pub is_copied: bool,
    /// Into so many stretches the rows are divided, of which the messages come in turn; 0 in the rows' order.
    pub stretches: u64,
    /// How large the images are, where it matters.
    pub object_bytes: Option<u64>,
    pub partitions: PartitionLimits,
}

pub(super) async fn handle_control_request(
    stub: &StubServer,
    request: Request<Incoming>,
) -> StubResponse {
    let path = request.uri().path().to_owned();
    match path.strip_prefix(CONTROL_PREFIX) {
        Some("setup") => match serde_json::from_slice(&read_body(request).await) {
            Ok(setup) => apply_setup(stub, &setup),
            Err(error) => build_response(StatusCode::BAD_REQUEST, JSON, error.to_string()),
        },
        Some("counts") => {
            let counts = serde_json::to_vec(&stub.lock().counts).unwrap_or_default();
            build_response(StatusCode::OK, JSON, counts)
        }
        Some(operation) => {
            let state = stub.lock();
            let items = match operation {
                "deleted" => state.queue.deleted(),
                operation => state.counts.0.get(operation).map_or(0, |meter| meter.items),
            };
            build_response(StatusCode::OK, JSON, items.to_string())
        }
        None => build_response(StatusCode::NOT_FOUND, JSON, ""),
    }
}

fn apply_setup(stub: &StubServer, setup: &StubSetup) -> StubResponse {
    let mut state = stub.lock();
    state.s3_latency = Duration::from_millis(setup.s3_latency_ms);
    state.counts = RequestCounts::default();
    let waiting = if setup.is_copied {
        0..0
    } else {
        setup.rows.clone()
    };
    state.queue = queue::StubQueue::from_rows(waiting, setup.stretches);
    state.store = s3::StubStore::new(setup);
    state.partitions = Partitions::new(setup.partitions.clone());
    build_response(StatusCode::OK, JSON, "")
}

/// The other end: speaks to a stub on this port.
#[derive(Debug, Clone, Copy)]
pub struct StubClient {
    port: u16,
}

impl StubClient {
    pub fn new(port: u16) -> Self {
        Self { port }
    }

    pub fn endpoint(self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Sets the stub up; all counts begin anew.
    pub async fn set_up(self, setup: &StubSetup) -> Result<()> {
        let body = serde_json::to_string(setup)?;
        self.send_command("setup", &body).await.map(drop)
    }

    /// Everything the stub has counted since it was set up.
    pub async fn read_counts(self) -> Result<RequestCounts> {
        let counts = self.send_command("counts", "").await?;
        Ok(serde_json::from_str(&counts)?)
    }

    /// The items of one kind of request so far; `deleted` for deleted messages.
    pub async fn item_count(self, operation: &str) -> Result<u64> {
        Ok(self.send_command(operation, "").await?.parse()?)
    }

    async fn send_command(self, what: &str, body: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!(
            "POST {CONTROL_PREFIX}{what} HTTP/1.1\r\nhost: stub\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut response = String::new();
        stream.read_to_string(&mut response).await?;
        let (head, body) = response.split_once("\r\n\r\n").context("no answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("the stub answered: {head} {body}");
        }
        Ok(body.to_owned())
    }
}
