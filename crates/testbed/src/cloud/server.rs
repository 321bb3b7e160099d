//! The listener and its threads.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use super::frontend::CloudFrontend;

/// The demo and the tests need the other cores.
const SERVER_THREADS: usize = 2;

/// A runtime that serves until this is dropped.
pub(super) struct CloudServer {
    runtime: Option<Runtime>,
}

impl CloudServer {
    pub(super) fn start(
        listener: std::net::TcpListener,
        front: Arc<CloudFrontend>,
    ) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(SERVER_THREADS)
            .thread_name("cloud")
            .enable_all()
            .build()?;
        let guard = runtime.enter();
        let listener = TcpListener::from_std(listener)?;
        drop(guard);
        runtime.spawn(accept_connections(listener, front));
        Ok(Self {
            runtime: Some(runtime),
        })
    }
}

impl Drop for CloudServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would panic inside a test's own runtime.
            runtime.shutdown_background();
        }
    }
}

async fn accept_connections(listener: TcpListener, front: Arc<CloudFrontend>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(serve_connection(
                stream,
                peer,
                Arc::clone(&front),
            ))),
            // Out of file descriptors, most likely: some may be free soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, front: Arc<CloudFrontend>) {
    // Small answers on a kept connection would wait for delayed acknowledgements otherwise.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| Arc::clone(&front).handle_request(peer, request));
    // An error here is the client's leaving or an injected one.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}
