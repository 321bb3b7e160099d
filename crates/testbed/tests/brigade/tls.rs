//! TLS to Postgres: verified when asked, and then nothing is ever sent in plain.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use bucket_brigade_testbed::Cluster;
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, process::ChildProcess};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{TestRig, stop_consumer, wait_for_exit};

/// A server with a certificate for the name `localhost`, and two authorities: its own and a stranger.
struct TlsServer {
    cluster: Cluster,
    port: u16,
    authority: PathBuf,
    foreign_authority: PathBuf,
}

fn new_authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
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

impl TlsServer {
    async fn start() -> Self {
        let cluster = Cluster::start().await.unwrap();
        let (own, stranger) = (new_authority("own"), new_authority("stranger"));
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &own).unwrap();
        let data = cluster.directory().join("data");
        write_for(&data, "server.crt", &certificate.pem());
        write_for(&data, "server.key", &key.serialize_pem());
        let authority = write_for(cluster.directory(), "authority.pem", &own.pem());
        let stranger = write_for(cluster.directory(), "stranger.pem", &stranger.pem());
        // No client without TLS comes in, whatever the client asks for.
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
            foreign_authority: stranger,
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
    async fn rig(&self) -> TestRig {
        let mut rig =
            TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
        rig.application.database_url = self.cluster.create_database().await.unwrap();
        rig.pool = rig.application.connect_pool(3).await.unwrap();
        rig.application.create_table(&rig.pool).await.unwrap();
        rig
    }
}

/// Both programs give up with this reason.
async fn assert_refused(rig: &TestRig, more: &[(&str, &str)], words: &[&str]) {
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, more).await;
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
async fn assert_moves(rig: &TestRig, more: &[(&str, &str)]) {
    let path = format!("image/{}.png", fastrand::u32(..));
    let id = rig.add_image(&path).await;
    let consumer: ChildProcess = rig.spawn_consumer(more);
    let ended = wait_for_exit(&mut rig.spawn("feeder", more, &[])).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(rig.path_of(&id).await.unwrap().starts_with("avatar/"));
    let plain = "SELECT count(*) FROM pg_stat_ssl s JOIN pg_stat_activity a USING (pid)
        WHERE a.application_name LIKE 'bucket-brigade %' AND NOT s.ssl";
    let encrypted = plain.replace("NOT s.ssl", "s.ssl");
    assert_eq!(rig.query_number(plain).await, 0);
    assert!(rig.query_number(&encrypted).await > 0);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_verified_server_is_used() {
    let tls = TlsServer::start().await;
    let rig = tls.rig().await;
    let own = tls.authority.to_str().unwrap();
    let query = format!("sslmode=verify-full&sslrootcert={own}");
    let url = tls.url("localhost", &rig.application.database_url, &query);
    assert_moves(&rig, &[("DATABASE_URL", &url)]).await;
    // The same, by libpq's variables.
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
    assert_moves(&rig, &variables).await;
    let url = tls.url(
        "127.0.0.1",
        &rig.application.database_url,
        "sslmode=require",
    );
    assert_moves(&rig, &[("DATABASE_URL", &url)]).await;
}

#[tokio::test]
async fn a_server_that_cannot_be_verified_is_refused() {
    let tls = TlsServer::start().await;
    let rig = tls.rig().await;
    let (own, stranger) = (
        tls.authority.to_str().unwrap(),
        tls.foreign_authority.to_str().unwrap(),
    );
    for (host, certificates, mode) in [
        ("localhost", stranger, "verify-full"),
        ("localhost", stranger, "verify-ca"),
        ("127.0.0.1", own, "verify-full"),
        ("localhost", "/nonexistent.pem", "verify-full"),
    ] {
        let query = format!("sslmode={mode}&sslrootcert={certificates}");
        let url = tls.url(host, &rig.application.database_url, &query);
        assert_refused(
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
    assert_refused(&rig, &[("DATABASE_URL", &url)], &["sslrootcert"]).await;
}

/// A server in the middle that says it knows no TLS, and keeps what it is result.
async fn serve_without_tls(listener: TcpListener) -> Vec<u8> {
    let (mut stream, _): (TcpStream, _) = listener.accept().await.unwrap();
    let mut result = vec![0; 8];
    stream.read_exact(&mut result).await.unwrap();
    stream.write_all(b"N").await.unwrap();
    stream.read_to_end(&mut result).await.unwrap();
    result
}

#[tokio::test]
async fn a_server_without_tls_receives_no_secret() {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let rig = TestRig::new().await;
    for mode in ["require", "verify-ca", "verify-full"] {
        for program in ["feeder", "consumer"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = tokio::spawn(serve_without_tls(listener));
            let url = format!("postgres://app:password@{address}/app?sslmode={mode}");
            let ended = rig.run_program(program, &[("DATABASE_URL", &url)]).await;
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
    let rig = TestRig::new().await;
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
            let ended = rig.run_program(program, &settings).await;
            assert_eq!(ended.code, Some(64), "{}", ended.log);
            assert!(
                ended.log.contains(name) && ended.log.contains("verify-full"),
                "{}",
                ended.log
            );
        }
    }
}
