//! A pooler in transaction mode, as `PgBouncer` is one: each transaction gets the session that has been idle for
//! longest, whichever client it served before. Prepared statements follow their client, as from 1.21 on.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt, BufStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use super::wire::WireFrame;

/// The name of the settings that a client asks for with its connection.
const OPTIONS: &[u8] = b"\0options\0";

/// What a pooler does with settings that a client asks for with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartupOptions {
    /// As `PgBouncer`.
    Refused,
    /// As Neon's proxy, which has one code for all that goes wrong at a login.
    RefusedUnsorted,
    /// As Supavisor, and `PgBouncer` where it is told to ignore them.
    Dropped,
}

impl StartupOptions {
    fn refusal(self) -> Option<&'static [u8]> {
        match self {
            Self::Refused => {
                Some(b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0")
            }
            Self::RefusedUnsorted => Some(
                b"SFATAL\0VFATAL\0CXX000\0Munsupported startup parameter in options: lock_timeout\0\0",
            ),
            Self::Dropped => None,
        }
    }
}

/// A pooler on a free port of 127.0.0.1 until it is dropped.
pub struct TransactionPooler {
    port: u16,
    accept_task: JoinHandle<()>,
}

impl TransactionPooler {
    /// Starts a pooler in front of the server on `port` of 127.0.0.1.
    pub async fn start(port: u16, options: StartupOptions) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        Ok(Self {
            port: listener.local_addr()?.port(),
            accept_task: tokio::spawn(accept_clients(listener, port, options)),
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for TransactionPooler {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

#[derive(Default)]
struct IdleSessions {
    sessions: Mutex<VecDeque<ServerSession>>,
    returned: Notify,
}

impl IdleSessions {
    async fn take(&self) -> ServerSession {
        loop {
            let session = self.sessions.lock().pop_front();
            match session {
                Some(session) => return session,
                None => self.returned.notified().await,
            }
        }
    }

    fn put_back(&self, session: ServerSession) {
        self.sessions.lock().push_back(session);
        self.returned.notify_one();
    }
}

/// A session of the server's, and the statements that are prepared in it.
struct ServerSession {
    stream: BufStream<TcpStream>,
    prepared: HashSet<Vec<u8>>,
}

async fn accept_clients(listener: TcpListener, server: u16, options: StartupOptions) {
    let (idle, number) = (Arc::new(IdleSessions::default()), AtomicUsize::new(0));
    let mut clients = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let client = PooledClient {
            stream: BufStream::new(stream),
            number: number.fetch_add(1, Ordering::Relaxed),
            statements: HashMap::new(),
            idle: Arc::clone(&idle),
            options,
        };
        clients.spawn(client.serve(server));
        while clients.try_join_next().is_some() {}
    }
}

/// Takes the parameter that begins after `start` out of a startup message, whose first four bytes are its length.
fn drop_parameter(startup: &mut Vec<u8>, start: usize) {
    let value = start + OPTIONS.len();
    let end = startup[value..].iter().position(|byte| *byte == 0);
    startup.drain(start..value + end.unwrap_or(0));
    let length = u32::try_from(startup.len()).unwrap_or(0);
    startup[..4].copy_from_slice(&length.to_be_bytes());
}

struct PooledClient {
    stream: BufStream<TcpStream>,
    number: usize,
    /// The messages that prepare this client's statements, under the names that sessions know.
    statements: HashMap<Vec<u8>, WireFrame>,
    idle: Arc<IdleSessions>,
    options: StartupOptions,
}

impl PooledClient {
    /// Until it leaves. The session that its login made stays behind, for others too.
    async fn serve(mut self, server: u16) -> Result<()> {
        let mut first = WireFrame::read_first(&mut self.stream).await?;
        while first.is_tls_request() {
            self.stream.write_all(b"N").await?;
            self.stream.flush().await?;
            first = WireFrame::read_first(&mut self.stream).await?;
        }
        let mut texts = first.bytes.windows(OPTIONS.len());
        if let Some(start) = texts.position(|text| text == OPTIONS) {
            if let Some(refusal) = self.options.refusal() {
                let refusal = WireFrame::new(b'E', refusal);
                self.stream.write_all(&refusal.bytes).await?;
                return self.stream.flush().await;
            }
            drop_parameter(&mut first.bytes, start);
        }
        let session = self.log_in(&first, server).await?;
        self.idle.put_back(session);
        loop {
            self.serve_transaction().await?;
        }
    }

    async fn log_in(&mut self, startup: &WireFrame, server: u16) -> Result<ServerSession> {
        let stream = TcpStream::connect(("127.0.0.1", server)).await?;
        let mut stream = BufStream::new(stream);
        stream.write_all(&startup.bytes).await?;
        stream.flush().await?;
        loop {
            let answer = WireFrame::read(&mut stream).await?;
            self.stream.write_all(&answer.bytes).await?;
            self.stream.flush().await?;
            if answer.has_kind(b'Z') {
                return Ok(ServerSession {
                    stream,
                    prepared: HashSet::new(),
                });
            }
            // Anything but "ok" and "go on" of an authentication wants a response.
            let wants_response = answer.has_kind(b'R') && !matches!(answer.content()[3], 0 | 12);
            if wants_response {
                let response = WireFrame::read(&mut self.stream).await?;
                stream.write_all(&response.bytes).await?;
                stream.flush().await?;
            }
        }
    }

    /// Everything from the first message to the end of its transaction.
    async fn serve_transaction(&mut self) -> Result<()> {
        let mut request = self.read_request().await?;
        let mut session = self.idle.take().await;
        loop {
            let parses = self.send_request(request, &mut session).await?;
            if self.forward_answer(&mut session, parses).await? == b'I' {
                self.idle.put_back(session);
                return Ok(());
            }
            request = self.read_request().await?;
        }
    }

    /// Messages up to one that the server answers with "ready".
    async fn read_request(&mut self) -> Result<Vec<WireFrame>> {
        let mut frames = Vec::new();
        loop {
            let frame = WireFrame::read(&mut self.stream).await?;
            if frame.has_kind(b'X') {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            let is_last = frame.has_kind(b'S') || frame.has_kind(b'Q');
            frames.push(frame);
            if is_last {
                return Ok(frames);
            }
        }
    }

    /// Returns, for each statement that is prepared, its name, and whether the client asked for it.
    async fn send_request(
        &mut self,
        request: Vec<WireFrame>,
        session: &mut ServerSession,
    ) -> Result<VecDeque<(Vec<u8>, bool)>> {
        let mut parses = VecDeque::new();
        for frame in request {
            let (frame, name) = self.with_own_name(&frame);
            if frame.has_kind(b'P') {
                parses.push_back((name.clone(), true));
                self.statements.insert(name, frame.clone());
            } else if let Some(parse) = self.statements.get(&name)
                && !session.prepared.contains(&name)
                && !parses.iter().any(|(parsed, _)| *parsed == name)
            {
                session.stream.write_all(&parse.bytes).await?;
                parses.push_back((name, false));
            }
            session.stream.write_all(&frame.bytes).await?;
        }
        session.stream.flush().await?;
        Ok(parses)
    }

    /// Returns the state of the transaction after it.
    async fn forward_answer(
        &mut self,
        session: &mut ServerSession,
        mut parses: VecDeque<(Vec<u8>, bool)>,
    ) -> Result<u8> {
        loop {
            let answer = WireFrame::read(&mut session.stream).await?;
            let mut is_for_client = true;
            if answer.has_kind(b'1')
                && let Some((name, is_asked_for)) = parses.pop_front()
            {
                session.prepared.insert(name);
                is_for_client = is_asked_for;
            }
            if is_for_client {
                self.stream.write_all(&answer.bytes).await?;
            }
            if answer.has_kind(b'Z') {
                self.stream.flush().await?;
                return Ok(answer.content()[0]);
            }
        }
    }

    /// A message with the statement it names under a name of this client's own, and that name; empty where
    /// it names none.
    fn with_own_name(&self, frame: &WireFrame) -> (WireFrame, Vec<u8>) {
        let content = frame.content();
        let before = match frame.bytes[0] {
            b'P' => 0,
            b'B' => content.iter().position(|byte| *byte == 0).unwrap_or(0) + 1,
            b'D' | b'C' if content[0] == b'S' => 1,
            _ => return (frame.clone(), Vec::new()),
        };
        let rest = &content[before..];
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        let name = if end == 0 {
            Vec::new()
        } else {
            [format!("c{}_", self.number).as_bytes(), &rest[..end]].concat()
        };
        let renamed = [&content[..before], &name, &rest[end..]].concat();
        (WireFrame::new(frame.bytes[0], &renamed), name)
    }
}
