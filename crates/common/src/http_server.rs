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
use tokio::sync::{Semaphore, watch};
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

/// Serves until the process ends. Where there are [`MAX_CONNECTIONS`], one more ends those that are idle.
pub async fn serve(listener: TcpListener, router: Router) {
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let crowded = watch::Sender::new(());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if free.available_permits() == 0 {
                    crowded.send_replace(());
                }
                // Never closed.
                let Ok(permit) = Arc::clone(&free).acquire_owned().await else {
                    return;
                };
                let (router, crowded) = (router.clone(), crowded.subscribe());
                tokio::spawn(async move {
                    serve_connection(stream, router, crowded).await;
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

async fn serve_connection(stream: TcpStream, router: Router, mut crowded: watch::Receiver<()>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    // Errors are the client's: it went away, or sent no request.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = sleep(CONNECTION_TIMEOUT) => {}
        _ = crowded.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    drop(timeout(HEADER_TIMEOUT, connection).await);
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(stream: &mut TcpStream) -> String {
        let request = "GET / HTTP/1.1\r\nHost: here\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// A load balancer's, or a browser's.
    #[tokio::test]
    async fn idle_connections_keep_no_other_client_waiting() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Router::new()));
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            assert_eq!(get(&mut stream).await, "HTTP/1.1 404");
            idle.push(stream);
        }
        let mut one_more = TcpStream::connect(address).await.unwrap();
        let answer = timeout(HEADER_TIMEOUT / 2, get(&mut one_more)).await;
        assert_eq!(answer.unwrap(), "HTTP/1.1 404");
        server.abort();
    }
}
