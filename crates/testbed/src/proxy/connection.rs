//! One connection through the proxy.

use std::io::Result;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncWriteExt, BufReader, BufWriter, ReadHalf, WriteHalf, split};
use tokio::net::TcpStream;

use super::wire::{LedgerStatements, WireFrame};
use super::{CutMoment, ProxyState};

type SocketReader = BufReader<ReadHalf<TcpStream>>;
type SocketWriter = BufWriter<WriteHalf<TcpStream>>;

/// Serves a connection until either side ends it or it is cut.
pub(super) async fn serve_connection(
    client: TcpStream,
    server: TcpStream,
    shared: Arc<ProxyState>,
) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    // Held open when the connection falls silent.
    let Ok(client_socket) = client.as_fd().try_clone_to_owned() else {
        return;
    };
    let mut silence = shared.silence.subscribe();
    let (client_reader, client_writer) = split_stream(client);
    let (server_reader, server_writer) = split_stream(server);
    let is_last = AtomicBool::new(false);
    let requests = ClientForwarder {
        client: client_reader,
        server: server_writer,
        shared: &shared,
        drops_response: &is_last,
    };
    let is_silent = tokio::select! {
        // Whichever ends first ends both: an error here is one side's leaving, or the cut.
        Ok(()) | Err(_) = forward_both(requests, server_reader, client_writer, &is_last) => false,
        silenced = silence.changed() => silenced.is_ok(),
    };
    if is_silent {
        std::future::pending::<()>().await;
    }
    drop(client_socket);
}

async fn forward_both(
    mut requests: ClientForwarder<'_>,
    server: SocketReader,
    mut client: SocketWriter,
    is_last: &AtomicBool,
) -> Result<()> {
    requests.forward_startup(&mut client).await?;
    tokio::select! {
        ended = requests.forward_frames() => ended,
        ended = forward_responses(server, client, is_last) => ended,
    }
}

fn split_stream(stream: TcpStream) -> (SocketReader, SocketWriter) {
    let (reader, writer) = split(stream);
    (BufReader::new(reader), BufWriter::new(writer))
}

/// The way from the client to the server.
struct ClientForwarder<'a> {
    client: SocketReader,
    server: SocketWriter,
    shared: &'a ProxyState,
    /// Set once the answer on its way must not reach the client.
    drops_response: &'a AtomicBool,
}

impl ClientForwarder<'_> {
    /// The client's first message; TLS is declined, as the server would.
    async fn forward_startup(&mut self, client: &mut SocketWriter) -> Result<()> {
        let mut first = WireFrame::read_first(&mut self.client).await?;
        while first.is_tls_request() {
            client.write_all(b"N").await?;
            client.flush().await?;
            first = WireFrame::read_first(&mut self.client).await?;
        }
        self.send_frame(&first).await
    }

    /// Forwards everything; ends when the connection is to be cut before a statement.
    async fn forward_frames(&mut self) -> Result<()> {
        let mut statements = LedgerStatements::default();
        loop {
            let frame = WireFrame::read(&mut self.client).await?;
            if statements.runs_ledger_write(&frame) {
                match self.shared.pick_cut() {
                    Some(CutMoment::Before) => {
                        self.shared.count_cut(CutMoment::Before);
                        return Ok(());
                    }
                    Some(CutMoment::After) => {
                        self.shared.count_cut(CutMoment::After);
                        self.drops_response.store(true, Ordering::SeqCst);
                    }
                    None => {}
                }
            }
            self.send_frame(&frame).await?;
        }
    }

    async fn send_frame(&mut self, frame: &WireFrame) -> Result<()> {
        self.server.write_all(&frame.bytes).await?;
        if self.client.buffer().is_empty() {
            self.server.flush().await?;
        }
        Ok(())
    }
}

/// The way back. When the answer must not reach the client, it is awaited all the same, so that the
/// statement's effect is there before the connection ends.
async fn forward_responses(
    mut server: SocketReader,
    mut client: SocketWriter,
    is_last: &AtomicBool,
) -> Result<()> {
    loop {
        let frame = WireFrame::read(&mut server).await?;
        if is_last.load(Ordering::SeqCst) {
            // Ready for the next query: the transaction of this one has ended.
            if frame.has_kind(b'Z') {
                return Ok(());
            }
            continue;
        }
        client.write_all(&frame.bytes).await?;
        if server.buffer().is_empty() {
            client.flush().await?;
        }
    }
}
