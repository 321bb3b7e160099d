//! An HTTP server whose clients cannot hold on to more than a few of the process's connections: its file
//! descriptors are also those to the database, S3 and SQS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use crate::preflight::PreflightError;

const MAX_CONNECTIONS: usize = 64;

/// By then a request's headers are there, the first one's as well as those of later ones.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection takes no more requests after this time, and ends after [`HEADER_TIMEOUT`] more.
const CONNECTION_TIMEOUT: Duration = Duration::from_mins(1);

const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Listens where a setting says.
pub async fn bind(
    setting: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, PreflightError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|error| {
        PreflightError::invalid(setting, format!("cannot listen on {address}: {error}"))
    })
}

/// Serves until the process ends. Beyond [`MAX_CONNECTIONS`] clients wait to be accepted.
pub async fn serve(listener: TcpListener, router: Router) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Never closed.
    while let Ok(permit) = Arc::clone(&free).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    serve_connection(stream, router).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    // Errors are the client's: it went away, or sent no request.
    if timeout(CONNECTION_TIMEOUT, connection.as_mut())
        .await
        .is_err()
    {
        connection.as_mut().graceful_shutdown();
        drop(timeout(HEADER_TIMEOUT, connection).await);
    }
}
