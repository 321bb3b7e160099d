//! What everything runs on: a private Postgres that is durable, the stub, and the table of images.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bucket_brigade_common::ledger::{PostgresLedger, SecondRun, create_pool};
use bucket_brigade_private_postgres::Cluster;
use sqlx::postgres::{PgPool, PgPoolOptions};

use crate::bare_loop::BareCall;
use crate::images::{DESTINATION_BUCKET, FIRST_ROW, SOURCE_BUCKET, run_spec};
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
    pub stub: StubClient,
    /// Where the images are, if not in the stub.
    pub store: Option<StoreAddress>,
    pub pool: PgPool,
    database_url: String,
    cluster: Cluster,
    stub_process: Child,
    next_row: u64,
    logs: tempfile::TempDir,
}

/// A store that runs, by an address with the bucket in the path.
#[derive(Debug, Clone)]
pub struct StoreAddress {
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
}

impl FromStr for StoreAddress {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',').map(str::to_owned);
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(endpoint), Some(access_key), Some(secret_key), None) => Ok(Self {
                endpoint,
                access_key,
                secret_key,
            }),
            _ => Err("wanted: ENDPOINT,KEY,SECRET"),
        }
    }
}

/// Consumers at work.
#[derive(Debug, Clone, Copy)]
pub struct WorkloadSpec {
    pub images: u64,
    pub consumers: usize,
    /// Copies in flight, of each.
    pub in_flight: usize,
    /// What a copy takes.
    pub latency_ms: u64,
}

/// What became of it.
#[derive(Debug)]
pub struct WorkloadResult {
    pub usages: Vec<ProcessUsage>,
    /// The stub's account.
    pub counts: RequestCounts,
}

impl BenchRig {
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
            store: None,
            pool,
            database_url,
            cluster,
            stub_process,
            next_row: FIRST_ROW,
            logs: tempfile::tempdir()?,
        };
        rig.count_statements().await?;
        rig.execute_sql(
            "CREATE TABLE images (id bigint PRIMARY KEY, path text NOT NULL);
             CREATE INDEX images_path ON images (path)",
        )
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

    pub async fn postgres_version(&self) -> Result<String> {
        let version = sqlx::query_scalar("SHOW server_version");
        Ok(version.fetch_one(&self.pool).await?)
    }

    pub async fn execute_sql(&self, sql: &'static str) -> Result<()> {
        sqlx::raw_sql(sql).execute(&self.pool).await?;
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

    pub async fn delete_rows(&self, rows: Range<u64>) -> Result<()> {
        sqlx::query("DELETE FROM images WHERE id >= $1 AND id < $2")
            .bind(i64::try_from(rows.start)?)
            .bind(i64::try_from(rows.end)?)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// As autovacuum and the checkpointer would in time.
    pub async fn vacuum(&self) -> Result<()> {
        // Each by itself: VACUUM is no part of a transaction, as several statements at once are.
        for sql in [
            "VACUUM ANALYZE images",
            "VACUUM ANALYZE bucket_brigade.moves",
            "CHECKPOINT",
        ] {
            self.execute_sql(sql).await?;
        }
        Ok(())
    }

    /// An empty table and an empty ledger.
    pub async fn reset_tables(&mut self) -> Result<()> {
        self.execute_sql("TRUNCATE images, bucket_brigade.moves, bucket_brigade.counters, bucket_brigade.rollbacks,
                bucket_brigade.orphans, bucket_brigade.removals, bucket_brigade.verifications,
                bucket_brigade.mismatches, bucket_brigade.command_cursors;
            UPDATE bucket_brigade.run SET in_scope = NULL, finished_at = NULL, fence = 0;
            UPDATE bucket_brigade.feed_cursors SET cursor = NULL, sweep_fed = 0, fed = 0, scope_cursor = NULL,
                scope_counted = 0")
            .await?;
        self.next_row = FIRST_ROW;
        Ok(())
    }

    pub fn s3_endpoint(&self) -> String {
        let store = self.store.as_ref().map(|store| store.endpoint.clone());
        store.unwrap_or_else(|| self.stub.endpoint())
    }

    /// A command with the programs' environment and none of ours.
    pub fn program_command(&self, program: impl Into<PathBuf>) -> Command {
        let mut command = Command::new(program.into());
        let endpoint = self.stub.endpoint();
        let keys = self.store.as_ref().map_or(("bench", "bench"), |store| {
            (&store.access_key, &store.secret_key)
        });
        command.env_clear().envs(MIGRATION_SETTINGS).envs([
            ("PATH", &*std::env::var("PATH").unwrap_or_default()),
            ("AWS_ENDPOINT_URL", &endpoint),
            ("AWS_ENDPOINT_URL_S3", &self.s3_endpoint()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", keys.0),
            ("AWS_SECRET_ACCESS_KEY", keys.1),
            ("S3_FORCE_PATH_STYLE", "true"),
            ("DATABASE_URL", &self.database_url),
            ("QUEUE_URL", &format!("{endpoint}/000000000000/images")),
        ]);
        // Away from a developer's .env file.
        command.current_dir(self.logs.path());
        command
    }

    pub fn file_path(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    /// Starts a command whose log has this name.
    pub fn start_process(&self, command: Command, name: &str) -> Result<RunningProcess> {
        RunningProcess::start(command, self.file_path(&format!("{name}.log")))
    }

    pub fn start_consumer(
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
        self.start_process(command, &format!("consumer-{number}"))
    }

    /// Starts a feeder, which the queue never holds up.
    pub fn start_feeder(&self) -> Result<RunningProcess> {
        let mut command = self.program_command(built_binary("feeder")?);
        command.env("MAX_BACKLOG", "100000");
        self.start_process(command, "feeder")
    }

    /// Has a feeder send so many rows.
    pub async fn feed_rows(&self, rows: u64) -> Result<ProcessUsage> {
        self.stub.set_up(&StubSetup::default()).await?;
        let feeder = self.start_feeder()?;
        self.wait_for_count("SendMessageBatch", rows, [&feeder])
            .await?;
        // No consumer moves the rows, so it would begin again.
        Ok(stop_processes(vec![feeder]).await?.0[0])
    }

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

    /// Runs a bare loop to its end.
    pub async fn run_bare(
        &self,
        call: BareCall,
        rows: &Range<u64>,
        in_flight: usize,
    ) -> Result<ProcessUsage> {
        let command = self.bare_command(call, rows, in_flight)?;
        self.start_process(command, "bare")?.wait_for_exit().await
    }

    /// Has consumers move fresh rows, and makes sure that they did.
    pub async fn consume_new_rows(&mut self, work: WorkloadSpec) -> Result<WorkloadResult> {
        let rows = self.insert_rows(work.images).await?;
        self.consume_rows(rows, work).await
    }

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
            .map(|number| self.start_consumer(number, work.in_flight, settings))
            .collect::<Result<_>>()?;
        self.wait_for_count("deleted", work.images, &consumers)
            .await?;
        let counts = self.stub.read_counts().await?;
        let (usages, _) = stop_processes(consumers).await?;
        self.ensure_moved(setup.rows.clone()).await?;
        Ok(WorkloadResult { usages, counts })
    }

    /// Waits until the stub has counted so many.
    pub async fn wait_for_count<'a>(
        &self,
        what: &str,
        count: u64,
        who: impl IntoIterator<Item = &'a RunningProcess> + Clone,
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
            for process in who.clone() {
                process.ensure_alive()?;
            }
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
    /// One consumer, which nothing slows.
    pub const fn of(images: u64) -> Self {
        Self {
            images,
            consumers: 1,
            in_flight: 64,
            latency_ms: 0,
        }
    }

    pub fn stub_setup(self, rows: &Range<u64>) -> StubSetup {
        StubSetup {
            s3_latency_ms: self.latency_ms,
            rows: rows.clone(),
            ..StubSetup::default()
        }
    }
}

impl WorkloadResult {
    /// Of all processes.
    pub fn cpu_us(&self) -> f64 {
        self.usages.iter().map(ProcessUsage::cpu_us).sum()
    }

    /// Copies a second after the first quarter.
    pub fn copy_rate(&self) -> f64 {
        let copies = self.counts.meter_for("CopyObject");
        copies.sustained_rate(copies.items / 4)
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
