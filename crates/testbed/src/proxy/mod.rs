//! A TCP proxy in front of Postgres that cuts connections at the worst moment: when a statement that
//! writes the ledger has been committed and its answer is on its way, or just before it is sent.

mod connection;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::Result;
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// How often connections are cut, of the statements that write the ledger.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    /// The share that is cut after the server has carried the statement out.
    pub after: f64,
    /// The share that is cut before the server hears of the statement.
    pub before: f64,
    /// Where the dice start.
    pub seed: u64,
}

/// When a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Before,
    After,
}

/// What all connections share.
struct Shared {
    server: SocketAddr,
    cuts: Cuts,
    rests: AtomicBool,
    random: Mutex<Rng>,
    before: AtomicU64,
    after: AtomicU64,
}

/// A proxy on a free port of 127.0.0.1 until it is dropped.
pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts a proxy in front of the server on `port` of 127.0.0.1.
    pub async fn start(port: u16, cuts: Cuts) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let shared = Arc::new(Shared {
            server: SocketAddr::from(([127, 0, 0, 1], port)),
            cuts,
            rests: AtomicBool::new(false),
            random: Mutex::new(Rng::with_seed(cuts.seed)),
            before: AtomicU64::new(0),
            after: AtomicU64::new(0),
        });
        Ok(Self {
            port: listener.local_addr()?.port(),
            accepting: tokio::spawn(accept(listener, Arc::clone(&shared))),
            shared,
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts no more connections; those it serves go on.
    pub fn rest(&self) {
        self.shared.rests.store(true, Ordering::Relaxed);
    }

    /// How many connections were cut before a statement was forwarded, and how many after it was
    /// carried out.
    pub fn cuts(&self) -> (u64, u64) {
        let Shared { before, after, .. } = &*self.shared;
        (
            before.load(Ordering::Relaxed),
            after.load(Ordering::Relaxed),
        )
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The connections are tasks of this one and end with it.
        self.accepting.abort();
    }
}

impl Shared {
    /// Whether and when the connection is cut at the statement about to be sent.
    fn roll(&self) -> Option<Moment> {
        if self.rests.load(Ordering::Relaxed) {
            return None;
        }
        let rolled = self.random.lock().f64();
        if rolled < self.cuts.after {
            Some(Moment::After)
        } else if rolled < self.cuts.after + self.cuts.before {
            Some(Moment::Before)
        } else {
            None
        }
    }

    fn count(&self, moment: Moment) {
        let counter = match moment {
            Moment::Before => &self.before,
            Moment::After => &self.after,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        // A server that is down refuses the connection; so do we, by closing it.
        if let Ok(server) = TcpStream::connect(shared.server).await {
            connections.spawn(connection::serve(client, server, Arc::clone(&shared)));
        }
        while connections.try_join_next().is_some() {}
    }
}
