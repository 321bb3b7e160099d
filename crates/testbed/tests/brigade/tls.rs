//! TLS to Postgres: verified when asked, and then nothing is ever sent in plain.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use bucket_brigade_testbed::Cluster;
use bucket_brigade_testbed::cloud::CreateQueue;
use bucket_brigade_testbed::{Options, process::Process};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{Rig, end, stop};

/// A server with a certificate for the name `localhost`, and two authorities: its own and a stranger.
struct Tls {
    cluster: Cluster,
    port: u16,
    authority: PathBuf,
    stranger: PathBuf,
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Writes a file that the server's user alone may read, as Postgres demands of a key.
fn write_for(owner_of: &Path, name: &str, text: &str) -> PathBuf {
    let path = owner_of.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    let owner = owner_of.metadata().unwrap();
    chown(&path, Some(owner.uid()), Some(owner.gid())).unwrap();
    path
}

impl Tls {
    async fn start() -> Self {
        let cluster = Cluster::start().await.unwrap();
        let (own, stranger) = (authority("own"), authority("stranger"));
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &own).unwrap();
        let data = cluster.directory().join("data");
        write_for(&data, "server.crt", &certificate.pem());
        write_for(&data, "server.key", &key.serialize_pem());
        let authority = write_for(cluster.directory(), "authority.pem", &own.pem());
        let stranger = write_for(cluster.directory(), "stranger.pem", &stranger.pem());
        // Nobody without TLS comes in, whatever the client asks for.
        write_for(&data, "pg_hba.conf", "hostssl all all 127.0.0.1/32 trust\n");
        let settings = data.join("postgresql.conf");
        let text = std::fs::read_to_string(&settings).unwrap() + "\nssl = on\n";
        std::fs::write(&settings, text).unwrap();
        cluster.restart().await.unwrap();
        let url = cluster.url("postgres");
        let port = url
            .rsplit_once(':')
            .unwrap()
            .1
            .split('/')
            .next()
            .unwrap()
            .parse()
            .unwrap();
        Self {
            cluster,
            port,
            authority,
            stranger,
        }
    }

    fn url(&self, host: &str, database_url: &str, query: &str) -> String {
        let database = database_url.rsplit('/').next().unwrap();
        format!(
            "postgres://postgres:postgres@{host}:{}/{database}?{query}",
            self.port
        )
    }

    /// A rig whose application lives on this server.
    async fn rig(&self) -> Rig {
        let mut rig = Rig::without_table(Options::default(), CreateQueue::default()).await;
        rig.application.database_url = self.cluster.create_database().await.unwrap();
        rig.pool = rig.application.pool(3).await.unwrap();
        rig.application.create_table(&rig.pool).await.unwrap();
        rig
    }
}

/// Both programs give up with this reason.
async fn refused(rig: &Rig, more: &[(&str, &str)], words: &[&str]) {
    for program in ["feeder", "consumer"] {
        let ended = rig.run(program, more).await;
        assert_eq!(ended.code, Some(69), "{program}: {}", ended.log);
        for word in words {
            assert!(
                ended.log.contains(word),
                "{program}: no '{word}' in {}",
                ended.log
            );
        }
    }
}

/// A row moves, over connections that the server says are encrypted.
async fn moves(rig: &Rig, more: &[(&str, &str)]) {
    let path = format!("image/{}.png", fastrand::u32(..));
    let id = rig.image(&path).await;
    let consumer: Process = rig.consumer(more);
    let ended = end(&mut rig.spawn("feeder", more, &[])).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(rig.path_of(&id).await.unwrap().starts_with("avatar/"));
    let plain = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
        WHERE a.application_name = 'bucket-brigade' AND NOT s.ssl";
    let encrypted = plain.replace("NOT s.ssl", "s.ssl");
    assert_eq!(rig.number(plain).await, 0);
    assert!(rig.number(&encrypted).await > 0);
    stop(consumer).await;
}

#[tokio::test]
async fn a_verified_server_is_used() {
    let tls = Tls::start().await;
    let rig = tls.rig().await;
    let own = tls.authority.to_str().unwrap();
    let query = format!("sslmode=verify-full&sslrootcert={own}");
    let url = tls.url("localhost", &rig.application.database_url, &query);
    moves(&rig, &[("DATABASE_URL", &url)]).await;
    // The same, told by libpq's variables.
    let port = tls.port.to_string();
    let database = url
        .rsplit('/')
        .find_map(|part| part.split_once("?sslmode"))
        .unwrap()
        .0;
    let variables = [
        ("DATABASE_URL", "-"),
        ("PGHOST", "localhost"),
        ("PGPORT", &port),
        ("PGUSER", "postgres"),
        ("PGPASSWORD", "postgres"),
        ("PGDATABASE", database),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", own),
    ];
    moves(&rig, &variables).await;
    let url = tls.url(
        "127.0.0.1",
        &rig.application.database_url,
        "sslmode=require",
    );
    moves(&rig, &[("DATABASE_URL", &url)]).await;
}

#[tokio::test]
async fn a_server_that_cannot_be_verified_is_refused() {
    let tls = Tls::start().await;
    let rig = tls.rig().await;
    let (own, stranger) = (
        tls.authority.to_str().unwrap(),
        tls.stranger.to_str().unwrap(),
    );
    for (host, certificates, mode) in [
        ("localhost", stranger, "verify-full"),
        ("localhost", stranger, "verify-ca"),
        ("127.0.0.1", own, "verify-full"),
        ("localhost", "/nonexistent.pem", "verify-full"),
    ] {
        let query = format!("sslmode={mode}&sslrootcert={certificates}");
        let url = tls.url(host, &rig.application.database_url, &query);
        refused(
            &rig,
            &[("DATABASE_URL", &url)],
            &["sslrootcert", "certificate"],
        )
        .await;
    }
    // Without sslrootcert the system's own authorities count.
    let url = tls.url(
        "localhost",
        &rig.application.database_url,
        "sslmode=verify-full",
    );
    refused(&rig, &[("DATABASE_URL", &url)], &["sslrootcert"]).await;
}

/// A server in the middle that says it knows no TLS, and keeps what it is told.
async fn without_tls(listener: TcpListener) -> Vec<u8> {
    let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
    let mut told = vec![0; 8];
    stream.read_exact(&mut told).await.unwrap();
    stream.write_all(b"N").await.unwrap();
    stream.read_to_end(&mut told).await.unwrap();
    told
}

#[tokio::test]
async fn a_server_without_tls_is_told_nothing() {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let rig = Rig::new().await;
    for mode in ["require", "verify-ca", "verify-full"] {
        for program in ["feeder", "consumer"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(without_tls(listener));
            let url = format!("postgres://app:password@{address}/app?sslmode={mode}");
            let ended = rig.run(program, &[("DATABASE_URL", &url)]).await;
            assert_eq!(ended.code, Some(69), "{}", ended.log);
            assert!(
                ended.log.contains("server does not support TLS"),
                "{}",
                ended.log
            );
            assert!(ended.log.contains("sslmode"), "{}", ended.log);
            // Neither user nor password went over the wire: only the question after TLS.
            assert_eq!(server.await.unwrap(), SSL_REQUEST);
        }
    }
}

#[tokio::test]
async fn a_mode_that_does_not_exist_is_refused() {
    let rig = Rig::new().await;
    let url = format!("{}?sslmode=verify_full", rig.application.database_url);
    for (name, settings) in [
        (
            "DATABASE_URL",
            [("DATABASE_URL", url.as_str()), ("PGSSLMODE", "-")],
        ),
        (
            "PGSSLMODE",
            [("PGSSLMODE", "verify_full"), ("LOG_FORMAT", "text")],
        ),
    ] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run(program, &settings).await;
            assert_eq!(ended.code, Some(64), "{}", ended.log);
            assert!(
                ended.log.contains(name) && ended.log.contains("verify-full"),
                "{}",
                ended.log
            );
        }
    }
}
