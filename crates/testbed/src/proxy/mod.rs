//! A TCP proxy in front of Postgres that cuts connections at the worst moment: when a statement that
//! writes the ledger has been committed and its answer is on its way, or just before it is sent. It can
//! also fall silent, as after the failover of a host that vanished.

mod connection;
mod pooler;
mod silent;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use fastrand::Rng;
use parking_lot::Mutex;
pub use silent::{SilenceMode, SilentProxy};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

pub use pooler::{StartupOptions, TransactionPooler};

/// How often connections are cut, of the statements that write the ledger.
#[derive(Debug, Clone, Copy)]
pub struct CutRates {
    /// The share that is cut after the server has carried the statement out.
    pub after: f64,
    /// The share that is cut before the server hears of the statement.
    pub before: f64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl CutRates {
    pub const NONE: Self = Self {
        after: 0.0,
        before: 0.0,
        seed: 0,
    };
}

/// When a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CutMoment {
    Before,
    After,
}

/// What all connections share.
struct ProxyState {
    server: SocketAddr,
    cuts: CutRates,
    cutting_stopped: AtomicBool,
    random: Mutex<Rng>,
    silence: watch::Sender<()>,
    cuts_before: AtomicU64,
    cuts_after: AtomicU64,
}

/// A proxy on a free port of 127.0.0.1 until it is dropped.
pub struct PostgresProxy {
    port: u16,
    shared: Arc<ProxyState>,
    accept_task: JoinHandle<()>,
}

impl PostgresProxy {
    /// Starts a proxy in front of the server on `port` of 127.0.0.1.
    pub async fn start(port: u16, cuts: CutRates) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let shared = Arc::new(ProxyState {
            server: SocketAddr::from(([127, 0, 0, 1], port)),
            cuts,
            cutting_stopped: AtomicBool::new(false),
            random: Mutex::new(Rng::with_seed(cuts.seed)),
            silence: watch::Sender::new(()),
            cuts_before: AtomicU64::new(0),
            cuts_after: AtomicU64::new(0),
        });
        Ok(Self {
            port: listener.local_addr()?.port(),
            accept_task: tokio::spawn(accept_connections(listener, Arc::clone(&shared))),
            shared,
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts no more connections; those it serves go on.
    pub fn stop_cutting(&self) {
        self.shared.cutting_stopped.store(true, Ordering::Relaxed);
    }

    /// Lets the clients of all connections of now wait for ever. The server's sessions end; new connections
    /// work.
    pub fn silence_connections(&self) {
        self.shared.silence.send_replace(());
    }

    /// How many connections were cut before a statement was forwarded, and how many after it was
    /// carried out.
    pub fn cut_counts(&self) -> (u64, u64) {
        let ProxyState {
            cuts_before: before,
            cuts_after: after,
            ..
        } = &*self.shared;
        (
            before.load(Ordering::Relaxed),
            after.load(Ordering::Relaxed),
        )
    }
}

impl Drop for PostgresProxy {
    fn drop(&mut self) {
        // The connections are tasks of this one and end with it.
        self.accept_task.abort();
    }
}

impl ProxyState {
    /// Whether and when the connection is cut at the statement about to be sent.
    fn pick_cut(&self) -> Option<CutMoment> {
        if self.cutting_stopped.load(Ordering::Relaxed) {
            return None;
        }
        let rolled = self.random.lock().f64();
        if rolled < self.cuts.after {
            Some(CutMoment::After)
        } else if rolled < self.cuts.after + self.cuts.before {
            Some(CutMoment::Before)
        } else {
            None
        }
    }

    fn count_cut(&self, moment: CutMoment) {
        let counter = match moment {
            CutMoment::Before => &self.cuts_before,
            CutMoment::After => &self.cuts_after,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accept_connections(listener: TcpListener, shared: Arc<ProxyState>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // A server that is down refuses the connection; so do we, by closing it.
        if let Ok(server) = TcpStream::connect(shared.server).await {
            connections.spawn(connection::serve_connection(
                client,
                server,
                Arc::clone(&shared),
            ));
        }
        while connections.try_join_next().is_some() {}
    }
}
