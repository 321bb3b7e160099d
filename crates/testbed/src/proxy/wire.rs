//! As much of Postgres's wire protocol (version 3) as it takes to find a statement that writes the
//! ledger, and the end of its answer.

use std::collections::HashSet;
use std::io::{Error, ErrorKind, Result};

use tokio::io::{AsyncRead, AsyncReadExt};

/// The request for TLS that precedes the first message; its code is in the place of the version.
const TLS_REQUEST: [u8; 4] = 80_877_103_u32.to_be_bytes();
/// The server's own limit for what is not a query.
const MAX_FRAME_BYTES: usize = 1 << 30;

/// A message with its type, its length and its content, as it came.
#[derive(Clone)]
pub(super) struct WireFrame {
    pub(super) bytes: Vec<u8>,
}

impl WireFrame {
    pub(super) fn new(kind: u8, content: &[u8]) -> Self {
        let length = u32::try_from(content.len() + 4).unwrap_or(u32::MAX);
        let bytes = [&[kind], &length.to_be_bytes()[..], content].concat();
        Self { bytes }
    }

    pub(super) fn content(&self) -> &[u8] {
        self.bytes.get(5..).unwrap_or_default()
    }

    pub(super) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<Self> {
        let mut bytes = vec![from.read_u8().await?];
        read_length_prefixed(from, &mut bytes).await?;
        Ok(Self { bytes })
    }

    /// The client's first message, which has no type.
    pub(super) async fn read_first(from: &mut (impl AsyncRead + Unpin)) -> Result<Self> {
        let mut bytes = Vec::new();
        read_length_prefixed(from, &mut bytes).await?;
        Ok(Self { bytes })
    }

    pub(super) fn is_tls_request(&self) -> bool {
        self.bytes.get(4..) == Some(&TLS_REQUEST)
    }

    pub(super) fn has_kind(&self, kind: u8) -> bool {
        self.bytes.first() == Some(&kind)
    }

    /// The text up to the next NUL, for each of the first `count` texts of the content.
    fn leading_texts(&self, count: usize) -> Vec<&[u8]> {
        self.content()
            .split(|byte| *byte == 0)
            .take(count)
            .collect()
    }
}

/// A length that counts itself, and what it counts.
async fn read_length_prefixed(
    from: &mut (impl AsyncRead + Unpin),
    bytes: &mut Vec<u8>,
) -> Result<()> {
    let length = from.read_u32().await?;
    let rest = usize::try_from(length).unwrap_or(0).checked_sub(4);
    let Some(rest) = rest.filter(|rest| *rest <= MAX_FRAME_BYTES) else {
        return Err(Error::new(
            ErrorKind::InvalidData,
            "not Postgres's protocol",
        ));
    };
    bytes.extend(length.to_be_bytes());
    let start = bytes.len();
    bytes.resize(start + rest, 0);
    from.read_exact(&mut bytes[start..]).await?;
    Ok(())
}

/// The prepared statements of a connection that write the ledger.
#[derive(Default)]
pub(super) struct LedgerStatements(HashSet<Vec<u8>>);

impl LedgerStatements {
    /// Whether this message has the server run such a statement.
    pub(super) fn runs_ledger_write(&mut self, frame: &WireFrame) -> bool {
        if frame.has_kind(b'P') {
            let texts = frame.leading_texts(2);
            if let [name, query] = texts[..] {
                let name = name.to_vec();
                let _ = if is_ledger_write(query) {
                    self.0.insert(name)
                } else {
                    self.0.remove(&name)
                };
            }
        }
        // Bind names the portal first, then the statement.
        frame.has_kind(b'B')
            && frame
                .leading_texts(2)
                .get(1)
                .is_some_and(|name| self.0.contains(*name))
    }
}

/// The commit of moves, and the statements that write the other endings: their answers may be lost
/// like the commit's.
fn is_ledger_write(query: &[u8]) -> bool {
    let text = String::from_utf8_lossy(query);
    text.contains("UPDATE") && text.contains("INSERT INTO bucket_brigade.counters")
}
