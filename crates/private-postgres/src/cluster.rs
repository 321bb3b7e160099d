//! A private Postgres cluster in a temporary directory.

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::Command;
use tokio::sync::OnceCell;

use crate::install::{Owner, find_binaries, unprivileged_owner};
use crate::watchdog::Watchdog;

const USER: &str = "postgres";
const START_ATTEMPTS: u32 = 5;

const SETTINGS: &str = "listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 64MB
";

/// Stops the server whose data directory is `$1` and removes that directory. SIGQUIT is Postgres's
/// immediate shutdown; a server that ignores it for ten seconds is killed. Where there is no server, a
/// restart may be under way: after a moment it is looked for again.
const CLEAN_UP: &str = r#"
stop_server() {
    pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
    [ -n "$pid" ] || return 1
    kill -QUIT "$pid"
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        kill -0 "$pid" || return 0
        sleep 0.1
    done
    for _ in 1 2 3 4 5 6 7 8; do
        kill -0 "$pid" || return 0
        sleep 1
    done
    kill -KILL "$pid"
}
stop_server "$1" || { sleep 1; stop_server "$1"; }
rm -rf "$1""#;

/// A running Postgres on a free port of 127.0.0.1. It is stopped and its directory removed when this
/// is dropped and when this process ends in whatever way.
#[derive(Debug)]
pub struct Cluster {
    binaries: PathBuf,
    directory: PathBuf,
    owner: Option<Owner>,
    /// Of the server's messages, as gettext's LANGUAGE; empty for English.
    language: &'static str,
    port: u16,
    watchdog: Watchdog,
}

impl Cluster {
    /// One that does not wait for the disk.
    ///
    /// Fails when no Postgres server is installed, or when it does not start; the error has its log.
    pub async fn start() -> Result<Self> {
        Self::start_with("fsync = off\nfull_page_writes = off\n").await
    }

    /// One whose commits reach the disk before they are confirmed, as in production.
    pub async fn start_durable() -> Result<Self> {
        Self::start_with("").await
    }

    /// One whose messages are in another language, where its translations are installed.
    pub async fn start_in_language(language: &'static str) -> Result<Self> {
        // In the locale C, LANGUAGE is ignored.
        let settings = "fsync = off\nfull_page_writes = off\nlc_messages = 'C.UTF-8'\n";
        Self::start_as(language, settings).await
    }

    async fn start_with(settings: &str) -> Result<Self> {
        Self::start_as("", settings).await
    }

    async fn start_as(language: &'static str, settings: &str) -> Result<Self> {
        let mut cluster = Self::new(find_binaries().await?, unprivileged_owner().await?)?;
        cluster.language = language;
        cluster.initialise(settings).await?;
        cluster.start_on_free_port().await?;
        Ok(cluster)
    }

    fn new(binaries: PathBuf, owner: Option<Owner>) -> Result<Self> {
        let directory = private_directory(owner)?;
        let watchdog = Watchdog::arm(CLEAN_UP, &[&directory]).context("cannot start a shell")?;
        Ok(Self {
            binaries,
            directory,
            owner,
            language: "",
            port: 0,
            watchdog,
        })
    }

    /// Starts a replica that streams from this cluster.
    pub async fn replica(&self) -> Result<Self> {
        let mut replica = Self::new(self.binaries.clone(), self.owner)?;
        let mut copy = replica.command("pg_basebackup");
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync"])
            .args(["--host=127.0.0.1", "--username", USER])
            .arg(format!("--port={}", self.port))
            .arg("--pgdata")
            .arg(replica.data());
        run(&mut copy).await.context("pg_basebackup failed")?;
        replica.start_on_free_port().await?;
        Ok(replica)
    }

    /// The cluster shared by all tests of this process, started by the first of them.
    #[expect(
        clippy::expect_used,
        reason = "a test that has no Postgres can only fail, with this error"
    )]
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async { Self::start().await.expect("a private Postgres") })
            .await
    }

    /// Creates an empty database with a name of its own and returns its URL.
    pub async fn create_database(&self) -> Result<String> {
        static CREATED: AtomicU32 = AtomicU32::new(0);
        let name = format!("images_{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let mut connection = PgConnection::connect(&self.url(USER)).await?;
        sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await?;
        connection.close().await?;
        Ok(self.url(&name))
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of `database`, whether it exists or not.
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgres://{USER}:{USER}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// Where the cluster lives: a directory that goes when the cluster does.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Stops the server, ending every connection at once as a crashed machine does.
    pub async fn stop(&self) -> Result<()> {
        self.control(&["stop", "-m", "immediate"]).await
    }

    /// Starts the server again, on the same port and with the same data.
    pub async fn start_again(&self) -> Result<()> {
        self.control(&["start"]).await
    }

    /// Stops the server and starts it again.
    pub async fn restart(&self) -> Result<()> {
        self.control(&["restart", "-m", "immediate"]).await
    }

    async fn initialise(&self, settings: &str) -> Result<()> {
        let data = self.data();
        let mut initdb = self.command("initdb");
        // Trust: it listens on loopback alone, holds generated data and lives for one test run.
        initdb.args([
            "--auth=trust",
            "--no-sync",
            "--encoding=UTF8",
            "--locale=C",
            "--username",
            USER,
        ]);
        run(initdb.arg("--pgdata").arg(&data))
            .await
            .context("initdb failed")?;
        append(&data, &format!("{SETTINGS}{settings}"))
    }

    async fn start_on_free_port(&mut self) -> Result<()> {
        let mut attempt = 1;
        loop {
            self.port = free_port()?;
            append(&self.data(), &format!("port = {}\n", self.port))?;
            match self.start_again().await {
                // Another process may have taken the port in between.
                Err(_) if attempt < START_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    async fn control(&self, action: &[&str]) -> Result<()> {
        let log = self.directory.join("server.log");
        let mut pg_ctl = self.command("pg_ctl");
        pg_ctl
            .args(action)
            .args(["-w", "-t", "60", "-D"])
            .arg(self.data())
            .arg("-l")
            .arg(&log);
        run(&mut pg_ctl).await.with_context(|| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            format!(
                "pg_ctl {} failed; the server's log:\n{text}",
                action.join(" ")
            )
        })
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.binaries.join(name));
        // Who drops us in the middle of a restart must not find the server started afterwards.
        command.kill_on_drop(true);
        command.current_dir(&self.directory);
        command.env("LC_ALL", "C").env("LANGUAGE", self.language);
        if let Some(owner) = self.owner {
            command.uid(owner.uid).gid(owner.gid);
        }
        command
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.watchdog.bark();
    }
}

fn append(data: &Path, settings: &str) -> Result<()> {
    let path = data.join("postgresql.conf");
    let mut file = std::fs::OpenOptions::new().append(true).open(path)?;
    Ok(file.write_all(settings.as_bytes())?)
}

async fn run(command: &mut Command) -> Result<()> {
    // The output goes to a file, not to a pipe, which the server would inherit and hold open.
    let mut output = tempfile::tempfile()?;
    command.stdin(Stdio::null());
    command
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    let status = command.status().await?;
    if !status.success() {
        output.rewind()?;
        bail!("{status}: {}", std::io::read_to_string(output)?);
    }
    Ok(())
}

fn free_port() -> Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

fn private_directory(owner: Option<Owner>) -> Result<PathBuf> {
    let directory = tempfile::Builder::new()
        .prefix("bucket-brigade-")
        .tempdir()?
        .keep();
    if let Some(owner) = owner {
        std::os::unix::fs::chown(&directory, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(directory)
}
