//! Postgres as RDS serves it to roles with `rds_iam`: over TLS, with a signed token for a password.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::{Arc, Mutex};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

const SECRET: &str = "AWS4test";

const ASK_PASSWORD: [u8; 9] = [b'R', 0, 0, 0, 8, 0, 0, 0, 3];

const REFUSAL: &[u8] = b"SFATAL\0VFATAL\0C28000\0MPAM authentication failed for user\0\0";

/// In front of a Postgres that trusts everyone, until it is dropped.
pub(super) struct IamServer {
    pub(super) port: u16,
    shared: Arc<SharedState>,
    accept_task: tokio::task::JoinHandle<()>,
}

struct SharedState {
    server: u16,
    acceptor: TlsAcceptor,
    /// When the newest token was signed, and the newest that has expired.
    signed: Mutex<[String; 2]>,
    cut: watch::Sender<()>,
}

impl IamServer {
    pub(super) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Arc::new(SharedState {
            server,
            acceptor: new_acceptor(),
            signed: Mutex::default(),
            cut: watch::Sender::new(()),
        });
        Self {
            port: listener.local_addr().unwrap().port(),
            accept_task: tokio::spawn(accept_connections(listener, Arc::clone(&shared))),
            shared,
        }
    }

    /// Those that were signed until now are refused, and the connections made with them cut.
    pub(super) fn expire_tokens(&self) {
        let mut signed = self.shared.signed.lock().unwrap();
        let [newest, expired] = &mut *signed;
        expired.clone_from(newest);
        self.shared.cut.send_replace(());
    }
}

impl Drop for IamServer {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

fn new_acceptor() -> TlsAcceptor {
    let own = generate_simple_self_signed(vec!["127.0.0.1".to_owned()]);
    let CertifiedKey { cert, signing_key } = own.unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

async fn accept_connections(listener: TcpListener, shared: Arc<SharedState>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        connections.spawn(async move { shared.serve(client).await });
    }
}

impl SharedState {
    async fn serve(&self, mut client: TcpStream) -> Result<()> {
        let mut cut = self.cut.subscribe();
        // The question after TLS.
        client.read_exact(&mut [0; 8]).await?;
        client.write_all(b"S").await?;
        let mut client = self.acceptor.accept(client).await?;
        let startup = read_message(&mut client).await?;
        client.write_all(&ASK_PASSWORD).await?;
        client.flush().await?;
        client.read_u8().await?;
        let message = read_message(&mut client).await?;
        let token = String::from_utf8_lossy(&message[4..message.len() - 1]).into_owned();
        if !self.accepts(&token) {
            let length = u32::try_from(REFUSAL.len() + 4).unwrap();
            let refusal = [b"E", &length.to_be_bytes()[..], REFUSAL].concat();
            client.write_all(&refusal).await?;
            return client.shutdown().await;
        }
        let mut server = TcpStream::connect(("127.0.0.1", self.server)).await?;
        server.write_all(&startup).await?;
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut server) => copied.map(drop),
            _ = cut.changed() => Ok(()),
        }
    }

    fn accepts(&self, token: &str) -> bool {
        let Some(date) = signing_date(token) else {
            return false;
        };
        let mut signed = self.signed.lock().unwrap();
        if date <= signed[1] {
            return false;
        }
        signed[0] = date.max(signed[0].clone());
        true
    }
}

/// A message with its length, which counts itself.
async fn read_message(client: &mut (impl tokio::io::AsyncRead + Unpin)) -> Result<Vec<u8>> {
    let length = client.read_u32().await?;
    let rest = usize::try_from(length).unwrap_or(0).checked_sub(4);
    let rest = rest.filter(|rest| *rest < 10_000);
    let rest = rest.ok_or_else(|| Error::from(ErrorKind::InvalidData))?;
    let mut message = vec![0; rest];
    client.read_exact(&mut message).await?;
    Ok([&length.to_be_bytes()[..], &message].concat())
}

/// When a token was signed; none where its signature is wrong. Written from its description and not with the
/// crate that signs. Source: AWS General Reference, "Create a signed AWS API request".
fn signing_date(token: &str) -> Option<String> {
    let (host, query) = token.split_once("/?")?;
    let mut parameters: BTreeMap<&str, &str> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .collect();
    let signature = parameters.remove("X-Amz-Signature")?;
    let is_wanted = parameters.get("Action") == Some(&"connect")
        && parameters.get("DBUser") == Some(&"postgres")
        && parameters.get("X-Amz-Expires") == Some(&"900");
    let credential = parameters.get("X-Amz-Credential")?.replace("%2F", "/");
    let (_, scope) = credential.split_once('/')?;
    let date = *parameters.get("X-Amz-Date")?;
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let body = hex(&Sha256::digest(""));
    let canonical = format!("GET\n/\n{}\nhost:{host}\n\nhost\n{body}", pairs.join("&"));
    let digest = hex(&Sha256::digest(canonical));
    let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{digest}");
    let is_scoped = scope.ends_with("/us-east-1/rds-db/aws4_request");
    let key = scope
        .split('/')
        .fold(SECRET.into(), |key: Vec<u8>, part| hmac(&key, part));
    (is_wanted && is_scoped && hex(&hmac(&key, &text)) == signature).then(|| date.to_owned())
}

/// RFC 2104, for keys of at most a block.
fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        Sha256::new().chain_update(block)
    };
    let inner = padded(0x36).chain_update(text).finalize();
    padded(0x5c).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}
