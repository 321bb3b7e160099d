//! A load target: answers S3 and SQS quickly, after a latency of choice, and counts. It stores nothing,
//! so it is no emulator; what the answers mean is tested elsewhere.
//!
//! It runs as a process of its own, on one thread, so that the account of who is measured stays clean.

mod control;
mod meter;
mod partitions;
mod queue;
mod s3;
mod sqs;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};

pub use control::{StubClient, StubSetup};
pub use meter::{RequestCounts, now_us};
pub use partitions::PartitionLimits;

/// What is at hand, or zeros, of which all objects are made.
type StubResponse = Response<BoxBody<Bytes, Infallible>>;

#[derive(Debug, Default)]
struct StubState {
    s3_latency: Duration,
    counts: RequestCounts,
    queue: queue::StubQueue,
    store: s3::StubStore,
    partitions: partitions::Partitions,
}

#[derive(Debug, Clone, Default)]
struct StubServer(Arc<Mutex<StubState>>);

impl StubServer {
    fn lock(&self) -> MutexGuard<'_, StubState> {
        // Nothing that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves on a free port of 127.0.0.1, which it prints, until standard input ends: the process that
/// started it has ended then.
#[expect(clippy::print_stdout, reason = "the port is this process's answer")]
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        println!("{}", listener.local_addr()?.port());
        let ended = tokio::task::spawn_blocking(|| {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink())
        });
        tokio::select! {
            never = accept_connections(listener) => never,
            ended = ended => { ended??; Ok(()) }
        }
    })?;
    // The blocking read of standard input need not be waited for.
    runtime.shutdown_background();
    Ok(())
}

async fn accept_connections(listener: TcpListener) -> Result<()> {
    let stub = StubServer::default();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(serve_connection(stub.clone(), stream));
    }
}

async fn serve_connection(stub: StubServer, stream: TcpStream) {
    let service = service_fn(move |request| {
        let stub = stub.clone();
        async move { Ok::<_, Infallible>(handle_request(&stub, request).await) }
    });
    // A client that hangs up is no error of ours.
    drop(
        http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}

async fn handle_request(stub: &StubServer, request: Request<Incoming>) -> StubResponse {
    if request.uri().path().starts_with(control::CONTROL_PREFIX) {
        return control::handle_control_request(stub, request).await;
    }
    let target = request.headers().get("x-amz-target");
    let operation = target
        .and_then(|target| target.to_str().ok())
        .and_then(|target| target.strip_prefix("AmazonSQS."))
        .map(str::to_owned);
    match operation {
        Some(operation) => {
            sqs::handle_sqs_request(stub, &operation, read_body(request).await).await
        }
        None => s3::handle_s3_request(stub, request).await,
    }
}

async fn read_body(request: Request<Incoming>) -> Bytes {
    match request.into_body().collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => Bytes::new(),
    }
}

fn build_response(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> StubResponse {
    let mut response = Response::new(Full::new(body.into()).boxed());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static(kind));
    let id = HeaderValue::from_static("3F1D5C0B7A9E2468");
    headers.insert("x-amz-request-id", id);
    response
}

/// No timer for no latency: it would add a millisecond.
async fn simulate_latency(latency: Duration) {
    if !latency.is_zero() {
        tokio::time::sleep(latency).await;
    }
}
