//! One connection through the proxy.

use std::io::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncWriteExt, BufReader, BufWriter};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::wire::{Frame, Statements};
use super::{Moment, Shared};

type Reader = BufReader<OwnedReadHalf>;
type Writer = BufWriter<OwnedWriteHalf>;

/// Serves a connection until either side ends it or it is cut.
pub(super) async fn serve(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_reader, client_writer) = halves(client);
    let (server_reader, server_writer) = halves(server);
    let is_last = AtomicBool::new(false);
    let requests = Requests {
        client: client_reader,
        server: server_writer,
        shared: &shared,
        is_last: &is_last,
    };
    // Whichever ends first ends both: an error here is one side's leaving, or the cut.
    let (Ok(()) | Err(_)) = meet(requests, server_reader, client_writer, &is_last).await;
}

async fn meet(
    mut requests: Requests<'_>,
    server: Reader,
    mut client: Writer,
    is_last: &AtomicBool,
) -> Result<()> {
    requests.greet(&mut client).await?;
    tokio::select! {
        ended = requests.forward() => ended,
        ended = answer(server, client, is_last) => ended,
    }
}

fn halves(stream: TcpStream) -> (Reader, Writer) {
    let (reader, writer) = stream.into_split();
    (BufReader::new(reader), BufWriter::new(writer))
}

/// The way from the client to the server.
struct Requests<'a> {
    client: Reader,
    server: Writer,
    shared: &'a Shared,
    /// Set once the answer on its way must not reach the client.
    is_last: &'a AtomicBool,
}

impl Requests<'_> {
    /// The client's first message; TLS is declined, as the server would.
    async fn greet(&mut self, client: &mut Writer) -> Result<()> {
        let mut first = Frame::read_first(&mut self.client).await?;
        while first.asks_for_tls() {
            client.write_all(b"N").await?;
            client.flush().await?;
            first = Frame::read_first(&mut self.client).await?;
        }
        self.send(&first).await
    }

    /// Forwards everything; ends when the connection is to be cut before a statement.
    async fn forward(&mut self) -> Result<()> {
        let mut statements = Statements::default();
        loop {
            let frame = Frame::read(&mut self.client).await?;
            if statements.runs_a_commit(&frame) {
                match self.shared.roll() {
                    Some(Moment::Before) => {
                        self.shared.count(Moment::Before);
                        return Ok(());
                    }
                    Some(Moment::After) => {
                        self.shared.count(Moment::After);
                        self.is_last.store(true, Ordering::SeqCst);
                    }
                    None => {}
                }
            }
            self.send(&frame).await?;
        }
    }

    async fn send(&mut self, frame: &Frame) -> Result<()> {
        self.server.write_all(&frame.bytes).await?;
        if self.client.buffer().is_empty() {
            self.server.flush().await?;
        }
        Ok(())
    }
}

/// The way back. When the answer must not reach the client, it is awaited all the same, so that the
/// statement's effect is there before the connection ends.
async fn answer(mut server: Reader, mut client: Writer, is_last: &AtomicBool) -> Result<()> {
    loop {
        let frame = Frame::read(&mut server).await?;
        if is_last.load(Ordering::SeqCst) {
            // Ready for the next query: the transaction of this one has ended.
            if frame.is(b'Z') {
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
