//! What everything runs on: a private Postgres that is durable, the stub, and the table of images.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bucket_brigade_common::ledger::{PostgresLedger, SecondRun, create_pool};
use bucket_brigade_private_postgres::Cluster;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::bare_loop::BareCall;
use crate::images::{DESTINATION_BUCKET, SOURCE_BUCKET, run_spec};
use crate::process::{ProcessUsage, RunningProcess, built_binary};
use crate::stub::{RequestCounts, StubClient, StubSetup};

/// What a feeder and a command are given besides the servers; a consumer finds it in the ledger.
const MIGRATION_SETTINGS: [(&str, &str); 5] = [
    ("IMAGES_TABLE", "images"),
    ("SOURCE_BUCKET_NAME", SOURCE_BUCKET),
    ("DESTINATION_BUCKET_NAME", DESTINATION_BUCKET),
    ("OLD_PREFIX", "image/"),
    ("NEW_PREFIX", "avatar/"),
];

#[derive(Debug)]
pub struct BenchRig {
    /// The stub.
    pub stub: StubClient,
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
pub struct WorkloadSpec {
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
pub struct WorkloadResult {
    /// Each process's account.
    pub usages: Vec<ProcessUsage>,
    /// The stub's account.
    pub counts: RequestCounts,
}

impl BenchRig {
    /// Starts Postgres and the stub.
    pub async fn start() -> Result<Self> {
        let cluster = Cluster::start_durable().await?;
        let database_url = cluster.create_database().await?;
        let pool = PgPoolOptions::new()
            .max_connections(4)
            .connect(&database_url)
            .await?;
        let (stub_process, port) = start_stub()?;
        let mut rig = Self {
            stub: StubClient::new(port),
            pool,
            database_url,
            cluster,
            stub_process,
            next_row: 1,
            logs: tempfile::tempdir()?,
        };
        rig.count_statements().await?;
        rig.execute_sql("CREATE TABLE images (id bigint PRIMARY KEY, path text NOT NULL)")
            .await?;
        rig.execute_sql("CREATE INDEX images_path ON images (path)")
            .await?;
        rig.open_ledger().await?;
        Ok(rig)
    }

    /// The ledger limits the statements of its connections; the bench's own fill tables.
    pub async fn open_ledger(&self) -> Result<PostgresLedger> {
        let pool = create_pool(self.database_url.parse()?, 1);
        Ok(PostgresLedger::open(pool, &run_spec()?, "bench", SecondRun::Refused).await?)
    }

    /// Has Postgres itself count the statements, where its extension for that is installed.
    async fn count_statements(&mut self) -> Result<()> {
        self.execute_sql("ALTER SYSTEM SET shared_preload_libraries = 'pg_stat_statements'")
            .await?;
        self.cluster.restart().await?;
        self.execute_sql("CREATE EXTENSION pg_stat_statements")
            .await
            .context("pg_stat_statements, which belongs to the server's package")
    }

    /// The server's version.
    pub async fn postgres_version(&self) -> Result<String> {
        let version = sqlx::query_scalar("SHOW server_version");
        Ok(version.fetch_one(&self.pool).await?)
    }

    /// Runs a statement of the bench's own.
    pub async fn execute_sql(&self, sql: &'static str) -> Result<()> {
        sqlx::query(sql).execute(&self.pool).await?;
        Ok(())
    }

    /// Adds rows in scope, and has their pages written before anything is measured.
    pub async fn insert_rows(&mut self, count: u64) -> Result<Range<u64>> {
        let rows = self.next_row..self.next_row + count;
        sqlx::query(
            "INSERT INTO images SELECT g, 'image/avatar-' || g || '.png'
               FROM generate_series($1::bigint, $2::bigint) g",
        )
        .bind(i64::try_from(rows.start)?)
        .bind(i64::try_from(rows.end)? - 1)
        .execute(&self.pool)
        .await?;
        self.execute_sql("ANALYZE images").await?;
        self.execute_sql("CHECKPOINT").await?;
        self.next_row = rows.end;
        Ok(rows)
    }

    /// An empty table and an empty ledger.
    pub async fn reset_tables(&mut self) -> Result<()> {
        self.execute_sql("TRUNCATE images, bucket_brigade.moves, bucket_brigade.counters, bucket_brigade.rollbacks, bucket_brigade.orphans, bucket_brigade.removals, bucket_brigade.verifications, bucket_brigade.mismatches, bucket_brigade.command_cursors")
            .await?;
        self.execute_sql("UPDATE bucket_brigade.run SET in_scope = NULL, finished_at = NULL")
            .await?;
        self.execute_sql("UPDATE bucket_brigade.feed_cursors SET cursor = NULL, sweep_fed = 0, fed = 0, scope_cursor = NULL, scope_counted = 0")
            .await?;
        self.next_row = 1;
        Ok(())
    }

    fn program_environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("AWS_ENDPOINT_URL", self.stub.endpoint()),
            ("AWS_REGION", "us-east-1".into()),
            ("AWS_ACCESS_KEY_ID", "bench".into()),
            ("AWS_SECRET_ACCESS_KEY", "bench".into()),
            ("S3_FORCE_PATH_STYLE", "true".into()),
            ("DATABASE_URL", self.database_url.clone()),
            (
                "QUEUE_URL",
                format!("{}/000000000000/images", self.stub.endpoint()),
            ),
        ]
    }

    /// A command with the programs' environment and none of ours.
    pub fn program_command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        command.env_clear().envs(self.program_environment());
        command.envs(MIGRATION_SETTINGS);
        // Away from a developer's .env file.
        command.current_dir(self.logs.path());
        command
    }

    /// Where a file of this run may go.
    pub fn file_path(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    pub fn start_consumer(&self, number: usize, in_flight: usize) -> Result<RunningProcess> {
        self.start_consumer_with(number, in_flight, &[])
    }

    fn start_consumer_with(
        &self,
        number: usize,
        in_flight: usize,
        settings: &[(&str, String)],
    ) -> Result<RunningProcess> {
        let mut command = self.program_command(built_binary("consumer")?);
        for (name, _) in MIGRATION_SETTINGS {
            command.env_remove(name);
        }
        command.env("MAX_CONCURRENCY", in_flight.to_string());
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        RunningProcess::start(
            command,
            Some(&self.file_path(&format!("consumer-{number}.log"))),
        )
    }

    /// Starts a feeder, which the queue never holds up.
    pub fn start_feeder(&self) -> Result<RunningProcess> {
        let mut command = self.program_command(built_binary("feeder")?);
        command.env("MAX_BACKLOG", "100000");
        RunningProcess::start(command, Some(&self.file_path("feeder.log")))
    }

    /// Starts a bare loop.
    pub fn bare_command(
        &self,
        call: BareCall,
        rows: &Range<u64>,
        in_flight: usize,
    ) -> Result<Command> {
        use clap::ValueEnum;
        let mut command = self.program_command(std::env::current_exe()?);
        let name = call.to_possible_value().context("a hidden call")?;
        command.args(["bare", "--call", name.get_name()]);
        command.args(["--first", &rows.start.to_string()]);
        command.args(["--rows", &(rows.end - rows.start).to_string()]);
        command.args(["--in-flight", &in_flight.to_string()]);
        Ok(command)
    }

    /// Has consumers move fresh rows, and makes sure that they did.
    pub async fn consume_new_rows(&mut self, work: WorkloadSpec) -> Result<WorkloadResult> {
        let rows = self.insert_rows(work.images).await?;
        self.consume_rows(rows, work).await
    }

    /// Has consumers move these rows.
    pub async fn consume_rows(
        &mut self,
        rows: Range<u64>,
        work: WorkloadSpec,
    ) -> Result<WorkloadResult> {
        self.consume_with(work, &work.stub_setup(&rows), &[]).await
    }

    /// Has consumers with these settings move the rows that a stub set up so has.
    pub async fn consume_with(
        &mut self,
        work: WorkloadSpec,
        setup: &StubSetup,
        settings: &[(&str, String)],
    ) -> Result<WorkloadResult> {
        self.stub.set_up(setup).await?;
        let consumers: Vec<RunningProcess> = (0..work.consumers)
            .map(|number| self.start_consumer_with(number, work.in_flight, settings))
            .collect::<Result<_>>()?;
        self.wait_for_count("deleted", work.images, &consumers)
            .await?;
        let counts = self.stub.read_counts().await?;
        let (usages, _) = stop_processes(consumers).await?;
        self.ensure_moved(setup.rows.clone()).await?;
        Ok(WorkloadResult { usages, counts })
    }

    /// Waits until the stub has counted so many.
    pub async fn wait_for_count(
        &self,
        what: &str,
        count: u64,
        who: &[RunningProcess],
    ) -> Result<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let now = self.stub.item_count(what).await?;
            if now >= count {
                return Ok(());
            }
            if now > last {
                (last, since) = (now, Instant::now());
            }
            ensure!(
                since.elapsed() < Duration::from_mins(1),
                "{what} stays at {now} of {count}"
            );
            who.iter().try_for_each(RunningProcess::ensure_alive)?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ensure_moved(&self, rows: Range<u64>) -> Result<()> {
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
pub async fn stop_processes(
    processes: Vec<RunningProcess>,
) -> Result<(Vec<ProcessUsage>, Duration)> {
    let asked = Instant::now();
    processes.iter().try_for_each(RunningProcess::terminate)?;
    let mut usages = Vec::new();
    for process in processes {
        usages.push(process.wait_for_exit().await?);
    }
    Ok((usages, asked.elapsed()))
}

impl WorkloadSpec {
    /// The stub for this work.
    pub fn stub_setup(self, rows: &Range<u64>) -> StubSetup {
        StubSetup {
            s3_latency_ms: self.latency_ms,
            rows: rows.clone(),
            ..StubSetup::default()
        }
    }
}

impl WorkloadResult {
    /// User and system time of all processes, in microseconds.
    pub fn cpu_us(&self) -> f64 {
        let cpu: Duration = self.usages.iter().map(|usage| usage.cpu).sum();
        cpu.as_secs_f64() * 1e6
    }
}

impl Drop for BenchRig {
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
    let port = line.trim().parse().context("the stub printed no port")?;
    Ok((process, port))
}
