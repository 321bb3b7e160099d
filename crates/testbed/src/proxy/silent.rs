//! A TCP proxy that falls silent without a reset: as after the failover of a host that vanished, a NAT that
//! forgot, a security group that was closed.

use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How a connection is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SilenceMode {
    /// What is sent is acknowledged and lost.
    Acknowledging,
    /// Nothing is read any more, of either side: the sender's window closes, and the server learns of nothing.
    Dropping,
}

#[derive(Debug, Clone, Copy)]
struct Silence {
    /// Connections older than this are silent.
    before: u64,
    includes_new: bool,
    mode: SilenceMode,
}

/// A proxy on a free port of 127.0.0.1 until it is dropped.
pub struct SilentProxy {
    port: u16,
    silence: watch::Sender<Silence>,
    accepted: Arc<AtomicU64>,
    response_limit: watch::Sender<u64>,
    accept_task: JoinHandle<()>,
}

impl SilentProxy {
    /// Starts a proxy in front of the server on `port` of 127.0.0.1.
    pub async fn start(port: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let silence = watch::Sender::new(Silence {
            before: 0,
            includes_new: false,
            mode: SilenceMode::Acknowledging,
        });
        let (accepted, response_limit) =
            (Arc::<AtomicU64>::default(), watch::Sender::new(u64::MAX));
        let acceptor = Acceptor {
            server: SocketAddr::from(([127, 0, 0, 1], port)),
            silence: silence.clone(),
            accepted: Arc::clone(&accepted),
            response_limit: response_limit.clone(),
        };
        Ok(Self {
            port: listener.local_addr()?.port(),
            accept_task: tokio::spawn(acceptor.accept_connections(listener)),
            silence,
            accepted,
            response_limit,
        })
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Silences all connections of now, for good; and new ones until [`Self::end_silence`].
    pub fn silence(&self, mode: SilenceMode, includes_new: bool) {
        self.silence.send_replace(Silence {
            before: self.accepted.load(Ordering::SeqCst) + 1,
            includes_new,
            mode,
        });
    }

    /// New connections work again. Those that fell silent stay so.
    pub fn end_silence(&self) {
        self.silence.send_modify(|silence| {
            silence.before = self.accepted.load(Ordering::SeqCst) + 1;
            silence.includes_new = false;
        });
    }

    /// Each connection falls silent once so many bytes have come back on it: in the middle of an answer.
    pub fn silence_after_bytes(&self, bytes: u64) {
        self.response_limit.send_replace(bytes);
    }

    /// Connections that were made to it so far.
    pub fn accepted_connections(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for SilentProxy {
    fn drop(&mut self) {
        // The connections are tasks of this one and end with it.
        self.accept_task.abort();
    }
}

struct Acceptor {
    server: SocketAddr,
    silence: watch::Sender<Silence>,
    accepted: Arc<AtomicU64>,
    response_limit: watch::Sender<u64>,
}

impl Acceptor {
    async fn accept_connections(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            let number = self.accepted.fetch_add(1, Ordering::SeqCst) + 1;
            let (silence, limit) = (self.silence.subscribe(), *self.response_limit.borrow());
            let server = self.server;
            connections.spawn(async move {
                // Either side's leaving ends both.
                drop(serve_connection(client, server, number, silence, limit).await);
            });
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn serve_connection(
    mut client: TcpStream,
    server: SocketAddr,
    number: u64,
    mut silence: watch::Receiver<Silence>,
    response_limit: u64,
) -> Result<()> {
    let is_silent =
        |silence: &Silence| number < silence.before || (silence.includes_new && silence.before > 0);
    {
        let mut server = TcpStream::connect(server).await?;
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        let (mut client_reader, mut client_writer) = client.split();
        let (server_reader, mut server_writer) = server.split();
        let mut answer = server_reader.take(response_limit);
        let answers = async {
            tokio::io::copy(&mut answer, &mut client_writer).await?;
            if answer.limit() == 0 {
                std::future::pending::<()>().await;
            }
            Ok(())
        };
        tokio::select! {
            ended = tokio::io::copy(&mut client_reader, &mut server_writer) => return ended.map(drop),
            ended = answers => return ended,
            fell_silent = silence.wait_for(is_silent) => drop(fell_silent),
        }
        let mode = silence.borrow().mode;
        if mode == SilenceMode::Dropping {
            return std::future::pending().await;
        }
        server_writer.shutdown().await?;
    }
    let acknowledged = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
    acknowledged.map(drop)
}
