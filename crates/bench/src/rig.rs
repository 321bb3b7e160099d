//! What everything runs on: a private Postgres that is durable, the stub, and the table of images.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bucket_brigade_common::ledger::{Ledger, RunSpec, TableSpec};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::sql::TableName;
use bucket_brigade_private_postgres::{Cluster, ClusterOptions};
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::bare::Call;
use crate::process::{Running, Usage, binary};
use crate::stub::{Control, Counts, Setup};

/// Where the images are.
pub const SOURCE: &str = "old-images";
/// Where they go.
pub const DESTINATION: &str = "new-images";

/// The path of a row at the start.
pub fn path(id: u64) -> String {
    format!("image/avatar-{id}.png")
}

/// The path of a row that was moved.
pub fn new_path(id: u64) -> String {
    format!("avatar/avatar-{id}.png")
}

/// The run that all measurements belong to.
///
/// # Errors
/// None in practice.
pub fn run_spec() -> Result<RunSpec> {
    Ok(RunSpec {
        table: TableSpec {
            table: TableName::parse("images")?,
            id_column: "id".into(),
            path_column: "path".into(),
        },
        rule: PathRule::new("image/", "avatar/", None, None)?,
        source_bucket: SOURCE.into(),
        destination_bucket: DESTINATION.into(),
    })
}

/// Everything that runs.
#[derive(Debug)]
pub struct Rig {
    /// The stub.
    pub stub: Control,
    /// Connections of the bench itself.
    pub pool: PgPool,
    database_url: String,
    cluster: Cluster,
    stub_process: Child,
    next_row: u64,
    logs: tempfile::TempDir,
}

/// Consumers at work on fresh rows.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// How many images.
    pub images: u64,
    /// How many consumers.
    pub consumers: usize,
    /// Copies in flight, of each.
    pub in_flight: usize,
    /// What a copy takes.
    pub latency_ms: u64,
}

/// What became of it.
#[derive(Debug)]
pub struct Done {
    /// Each process's account.
    pub usages: Vec<Usage>,
    /// The stub's account.
    pub counts: Counts,
}

impl Rig {
    /// Starts Postgres and the stub.
    ///
    /// # Errors
    /// One of them cannot be had.
    pub async fn start() -> Result<Self> {
        let cluster = Cluster::start_with(ClusterOptions { durable: true }).await?;
        let database_url = cluster.create_database().await?;
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect(&database_url)
            .await?;
        let (stub_process, port) = start_stub()?;
        let mut rig = Self {
            stub: Control::new(port),
            pool,
            database_url,
            cluster,
            stub_process,
            next_row: 1,
            logs: tempfile::tempdir()?,
        };
        rig.count_statements().await?;
        rig.execute("CREATE TABLE images (id bigint PRIMARY KEY, path text NOT NULL)")
            .await?;
        rig.execute("CREATE INDEX images_path ON images (path)")
            .await?;
        Ledger::open(rig.pool.clone(), &run_spec()?, "bench").await?;
        Ok(rig)
    }

    /// Has Postgres itself count the statements, where its extension for that is installed.
    async fn count_statements(&mut self) -> Result<()> {
        self.execute("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
            .await?;
        self.cluster.restart().await?;
        self.execute("CREATE EXTENSION pg_stat_statements")
            .await
            .context("pg_stat_statements, which belongs to the server's package")
    }

    /// The server's version.
    ///
    /// # Errors
    /// The database.
    pub async fn postgres_version(&self) -> Result<String> {
        let version = sqlx::query_scalar("SHOW server_version");
        Ok(version.fetch_one(&self.pool).await?)
    }

    /// Runs a statement of the bench's own.
    ///
    /// # Errors
    /// The database.
    pub async fn execute(&self, sql: &'static str) -> Result<()> {
        sqlx::query(sql).execute(&self.pool).await?;
        Ok(())
    }

    /// Adds rows in scope, and has their pages written before anything is measured.
    ///
    /// # Errors
    /// The database.
    pub async fn fresh_rows(&mut self, count: u64) -> Result<Range<u64>> {
        let rows = self.next_row..self.next_row + count;
        sqlx::query(
            "INSERT INTO images SELECT g, 'image/avatar-' || g || '.png'
               FROM generate_series($1::bigint, $2::bigint) g",
        )
        .bind(i64::try_from(rows.start)?)
        .bind(i64::try_from(rows.end)? - 1)
        .execute(&self.pool)
        .await?;
        self.execute("ANALYZE images").await?;
        self.execute("CHECKPOINT").await?;
        self.next_row = rows.end;
        Ok(rows)
    }

    /// An empty table and an empty ledger.
    ///
    /// # Errors
    /// The database.
    pub async fn start_over(&mut self) -> Result<()> {
        self.execute("TRUNCATE images, bucket_brigade.moves, bucket_brigade.counters")
            .await?;
        self.execute("UPDATE bucket_brigade.run SET cursor = NULL, sweep_fed = 0, fed = 0, in_scope = NULL, finished_at = NULL")
            .await?;
        self.next_row = 1;
        Ok(())
    }

    /// The environment of the programs.
    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("AWS_ENDPOINT_URL", self.stub.endpoint()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "bench".into()),
            ("AWS_SECRET_ACCESS_KEY", "bench".into()),
            ("S3_FORCE_PATH_STYLE", "true".into()),
            ("DATABASE_URL", self.database_url.clone()),
            ("IMAGES_TABLE", "images".into()),
            (
                "QUEUE_URL",
                format!("{}/000000000000/images", self.stub.endpoint()),
            ),
            ("SOURCE_BUCKET_NAME", SOURCE.into()),
            ("DESTINATION_BUCKET_NAME", DESTINATION.into()),
            ("OLD_PREFIX", "image/".into()),
            ("NEW_PREFIX", "avatar/".into()),
        ]
    }

    /// A command with the programs' environment and none of ours.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        command.env_clear().envs(self.environment());
        // Away from a developer's .env file.
        command.current_dir(self.logs.path());
        command
    }

    /// Where a file of this run may go.
    pub fn file(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    /// Starts a consumer.
    ///
    /// # Errors
    /// It is not built.
    pub fn consumer(&self, number: usize, in_flight: usize) -> Result<Running> {
        let mut command = self.command(binary("consumer")?);
        command.env("MAX_CONCURRENCY", in_flight.to_string());
        Running::start(command, Some(&self.file(&format!("consumer-{number}.log"))))
    }

    /// Starts a feeder, which the queue never holds up.
    ///
    /// # Errors
    /// It is not built.
    pub fn feeder(&self) -> Result<Running> {
        let mut command = self.command(binary("feeder")?);
        command.env("MAX_BACKLOG", "100000");
        Running::start(command, Some(&self.file("feeder.log")))
    }

    /// Starts a bare loop.
    ///
    /// # Errors
    /// It does not start.
    pub fn bare(&self, call: Call, rows: &Range<u64>, in_flight: usize) -> Result<Command> {
        use clap::ValueEnum;
        let mut command = self.command(std::env::current_exe()?);
        let name = call.to_possible_value().context("a hidden call")?;
        command.args(["bare", "--call", name.get_name()]);
        command.args(["--first", &rows.start.to_string()]);
        command.args(["--rows", &(rows.end - rows.start).to_string()]);
        command.args(["--in-flight", &in_flight.to_string()]);
        Ok(command)
    }

    /// Has consumers move fresh rows, and makes sure that they did.
    ///
    /// # Errors
    /// A consumer failed, or a row was not moved.
    pub async fn consume(&mut self, work: Work) -> Result<Done> {
        let rows = self.fresh_rows(work.images).await?;
        self.consume_rows(rows, work).await
    }

    /// Has consumers move these rows.
    ///
    /// # Errors
    /// A consumer failed, or a row was not moved.
    pub async fn consume_rows(&mut self, rows: Range<u64>, work: Work) -> Result<Done> {
        self.stub.set_up(&work.setup(&rows)).await?;
        let consumers: Vec<Running> = (0..work.consumers)
            .map(|number| self.consumer(number, work.in_flight))
            .collect::<Result<_>>()?;
        self.wait_for("deleted", work.images, &consumers).await?;
        let counts = self.stub.counts().await?;
        let (usages, _) = stop(consumers).await?;
        self.make_sure_moved(rows).await?;
        Ok(Done { usages, counts })
    }

    /// Waits until the stub has counted so many.
    ///
    /// # Errors
    /// A process ended meanwhile, or nothing came any more.
    pub async fn wait_for(&self, what: &str, count: u64, who: &[Running]) -> Result<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let now = self.stub.items(what).await?;
            if now >= count {
                return Ok(());
            }
            if now > last {
                (last, since) = (now, Instant::now());
            }
            ensure!(
                since.elapsed() < Duration::from_mins(1),
                "{what} stands at {now} of {count}"
            );
            who.iter().try_for_each(Running::is_alive)?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn make_sure_moved(&self, rows: Range<u64>) -> Result<()> {
        let moved: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM images i JOIN bucket_brigade.moves m ON m.row_id = i.id::text
              WHERE i.id >= $1 AND i.id < $2 AND i.path = m.new_path",
        )
        .bind(i64::try_from(rows.start)?)
        .bind(i64::try_from(rows.end)?)
        .fetch_one(&self.pool)
        .await?;
        let wanted = i64::try_from(rows.end - rows.start)?;
        ensure!(moved == wanted, "{moved} rows of {wanted} were moved");
        Ok(())
    }
}

/// Ends processes and takes their accounts.
///
/// # Errors
/// One failed.
pub async fn stop(processes: Vec<Running>) -> Result<(Vec<Usage>, Duration)> {
    let asked = Instant::now();
    processes.iter().try_for_each(Running::terminate)?;
    let mut usages = Vec::new();
    for process in processes {
        usages.push(process.finish().await?);
    }
    Ok((usages, asked.elapsed()))
}

impl Work {
    /// The stub for this work.
    pub fn setup(self, rows: &Range<u64>) -> Setup {
        Setup {
            s3_latency_ms: self.latency_ms,
            sqs_latency_ms: 0,
            rows: rows.clone(),
        }
    }
}

impl Done {
    /// User and system time of all processes, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        let cpu: Duration = self.usages.iter().map(|usage| usage.cpu).sum();
        cpu.as_secs_f64() * 1e6
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.stub_process.kill());
        drop(self.stub_process.wait());
    }
}

/// The stub as a process of its own, which ends when its standard input does.
fn start_stub() -> Result<(Child, u16)> {
    let mut process = Command::new(std::env::current_exe()?)
        .arg("stub")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = process.stdout.take().context("no output")?;
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    let port = line.trim().parse().context("the stub told no port")?;
    Ok((process, port))
}
