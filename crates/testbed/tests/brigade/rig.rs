//! What each test stands on: a database, local S3 and SQS, a queue, and the two programs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use bucket_brigade_common::ledger::{self, Ledger, RunSpec, TableSpec};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::s3::{S3Access, S3Options, S3Store};
use bucket_brigade_common::sql::TableName;
use bucket_brigade_testbed::application::{Application, Location, Properties, sha256_hex};
use bucket_brigade_testbed::cloud::{CreateQueue, QueueUrls};
use bucket_brigade_testbed::process::{Process, binary, settings_env};
use bucket_brigade_testbed::{Cloud, Cluster, Options};
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) struct Rig {
    pub(crate) cloud: Cloud,
    pub(crate) application: Application,
    pub(crate) queue: QueueUrls,
    pub(crate) pool: PgPool,
    logs: TempDir,
}

/// How a process ended.
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) log: String,
}

/// How a command ended, and what it told.
pub(crate) struct Told {
    pub(crate) code: i32,
    pub(crate) answer: String,
    pub(crate) log: String,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default(), CreateQueue::default()).await
    }

    /// An empty table `images`, two empty buckets and a queue.
    pub(crate) async fn with(options: Options, queue: CreateQueue) -> Self {
        let rig = Self::without_table(options, queue).await;
        rig.application.create_table(&rig.pool).await.unwrap();
        rig
    }

    pub(crate) async fn without_table(options: Options, queue: CreateQueue) -> Self {
        Self::on(Cluster::shared().await, options, queue).await
    }

    /// The same on a cluster of its own.
    pub(crate) async fn on(cluster: &Cluster, options: Options, queue: CreateQueue) -> Self {
        let cloud = Cloud::start(options).unwrap();
        let database_url = cluster.create_database().await.unwrap();
        let application = Application::new(&cloud, database_url);
        application.create_buckets().await.unwrap();
        let name = if queue.fifo { "images.fifo" } else { "images" };
        let queue = cloud.create_queue(name, queue).await.unwrap();
        let pool = application.pool(3).await.unwrap();
        let logs = TempDir::new().unwrap();
        Self {
            cloud,
            application,
            queue,
            pool,
            logs,
        }
    }

    /// The consumer's store, in this process.
    pub(crate) async fn store(&self, options: S3Options) -> S3Store {
        let credentials = Credentials::new("consumer", "test", None, None, "rig");
        let sdk = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(self.cloud.endpoint())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .retry_config(RetryConfig::disabled())
            .build();
        let access = S3Access::new(&sdk, true, Duration::from_mins(1));
        let source = access.bucket("source", "images-old", None).await.unwrap();
        let destination = access.bucket("destination", "images-new", None).await;
        S3Store::new(source, destination.unwrap(), options)
    }

    pub(crate) fn environment(
        &self,
        program: &str,
        more: &[(&str, &str)],
    ) -> Vec<(String, String)> {
        let mut environment =
            settings_env(&self.application, &self.cloud, &self.queue.url, program);
        environment.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        // A setting given as "-" is left out.
        let given = more.iter().filter(|(_, value)| *value != "-");
        environment.extend(given.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        environment
    }

    fn log(&self, program: &str) -> PathBuf {
        let number = self.logs.path().read_dir().unwrap().count();
        self.logs.path().join(format!("{program}-{number}.log"))
    }

    pub(crate) fn spawn(
        &self,
        program: &str,
        more: &[(&str, &str)],
        arguments: &[&str],
    ) -> Process {
        let environment = self.environment(program, more);
        Process::spawn(program, &environment, arguments, Some(&self.log(program))).unwrap()
    }

    pub(crate) fn consumer(&self, more: &[(&str, &str)]) -> Process {
        self.spawn("consumer", more, &[])
    }

    /// Runs a program to its end.
    pub(crate) async fn run(&self, program: &str, more: &[(&str, &str)]) -> Ended {
        end(&mut self.spawn(program, more, &[])).await
    }

    /// Runs the feeder with these arguments to its end, as an operator does, its answer apart from its log.
    pub(crate) async fn feeder(&self, arguments: &[&str]) -> Told {
        let mut command = tokio::process::Command::new(binary("feeder").unwrap());
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment("operator", &[]))
            .current_dir("/")
            .kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = output.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Told {
            code: output.status.code().unwrap_or(-1),
            answer: text(&output.stdout),
            log: text(&output.stderr),
        }
    }

    /// What a command answers as JSON.
    pub(crate) async fn told(&self, arguments: &[&str]) -> serde_json::Value {
        let told = self.feeder(arguments).await;
        serde_json::from_str(&told.answer).unwrap_or_else(|error| panic!("{error}: {}", told.log))
    }

    /// Puts an image into the source bucket, and its row into the table.
    pub(crate) async fn image(&self, path: &str) -> String {
        self.object("images-old", path, path.as_bytes()).await;
        self.row(path).await
    }

    pub(crate) async fn images(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(self.image(&format!("image/{number}.png")).await);
        }
        ids
    }

    pub(crate) async fn row(&self, path: &str) -> String {
        sqlx::query_scalar("INSERT INTO images (path) VALUES ($1) RETURNING id::text")
            .bind(path)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    pub(crate) async fn object(&self, bucket: &str, key: &str, bytes: &[u8]) -> String {
        let properties = properties();
        let at = location(bucket, key);
        self.application
            .put_object(&at, bytes.to_vec(), &properties)
            .await
            .unwrap()
    }

    /// The SHA-256 of an object at the destination; none when there is none.
    pub(crate) async fn destination(&self, key: &str) -> Option<String> {
        let object = self
            .application
            .get_tagged_object(&location("images-new", key))
            .await
            .unwrap();
        object.map(|object| object.sha256)
    }

    pub(crate) async fn path_of(&self, id: &str) -> Option<String> {
        self.application.path_of(&self.pool, id).await.unwrap()
    }

    pub(crate) async fn sql(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// A number out of the database.
    pub(crate) async fn number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.to_owned()));
        query
            .fetch_optional(&self.pool)
            .await
            .unwrap_or(None)
            .unwrap_or(-1)
    }

    pub(crate) async fn count(&self, ledger_table: &str) -> i64 {
        self.number(&format!(
            "SELECT count(*) FROM bucket_brigade.{ledger_table}"
        ))
        .await
    }

    /// A counter of the ledger, summed over processes.
    pub(crate) async fn counter(&self, name: &str) -> i64 {
        self.number(&format!(
            "SELECT coalesce(sum({name}), 0)::bigint FROM bucket_brigade.counters"
        ))
        .await
    }

    pub(crate) async fn failure_code(&self, id: &str) -> Option<String> {
        sqlx::query_scalar("SELECT code FROM bucket_brigade.failures WHERE row_id = $1")
            .bind(id)
            .fetch_optional(&self.pool)
            .await
            .unwrap_or(None)
    }

    pub(crate) async fn send(&self, body: &str) {
        let sqs = self.cloud.sqs();
        sqs.send_message()
            .queue_url(&self.queue.url)
            .message_body(body)
            .send()
            .await
            .unwrap();
    }

    /// Sends the message the feeder would send.
    pub(crate) async fn feed(&self, id: &str, path: &str) {
        let body = serde_json::json!({ "id": id, "path": path });
        self.send(&body.to_string()).await;
    }

    /// Messages in the queue, received ones included.
    pub(crate) async fn queued(&self) -> u64 {
        self.cloud
            .queue_depth(&self.queue.url)
            .await
            .unwrap()
            .total()
    }

    pub(crate) async fn visible(&self) -> u64 {
        self.cloud
            .queue_depth(&self.queue.url)
            .await
            .unwrap()
            .visible
    }

    pub(crate) async fn dead(&self) -> u64 {
        let url = self.queue.dead_letter_url.as_ref().unwrap();
        self.cloud.queue_depth(url).await.unwrap().total()
    }

    /// Opens the run in the ledger, as the feeder does before it feeds.
    pub(crate) async fn open_run(&self) -> Ledger {
        let options = self.application.database_url.parse().unwrap();
        Ledger::open(ledger::pool(options, 2), &self.run_spec(), "test")
            .await
            .unwrap()
    }

    pub(crate) fn run_spec(&self) -> RunSpec {
        RunSpec {
            table: TableSpec {
                table: TableName::parse(&self.application.table.name).unwrap(),
                id_column: "id".into(),
                path_column: "path".into(),
            },
            rule: PathRule::new("image/", "avatar/", None, None).unwrap(),
            source_bucket: "images-old".into(),
            destination_bucket: "images-new".into(),
        }
    }

    /// Waits until nothing is in the queue any more.
    pub(crate) async fn drained(&self) {
        eventually("the queue to drain", async || self.queued().await == 0).await;
    }
}

/// Waits for a condition, not for a time.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for the end of a process.
pub(crate) async fn end(process: &mut Process) -> Ended {
    let status = tokio::time::timeout(PATIENCE, process.wait()).await;
    let log = process.log_tail(400);
    let Ok(status) = status else {
        panic!("{} did not end; its log:\n{log}", process.name());
    };
    Ended {
        code: status.unwrap().code(),
        log,
    }
}

/// Asks a consumer to stop, and expects that it does so in good order.
pub(crate) async fn stop(mut process: Process) -> String {
    process.terminate().await.unwrap();
    let ended = end(&mut process).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    ended.log
}

pub(crate) fn location(bucket: &str, key: &str) -> Location {
    Location {
        bucket: bucket.into(),
        key: key.into(),
    }
}

pub(crate) fn properties() -> Properties {
    Properties {
        content_type: Some("image/png".into()),
        cache_control: Some("max-age=60".into()),
        metadata: [("owner".into(), "7".into())].into(),
        tags: [("kind".into(), "avatar".into())].into(),
        ..Properties::default()
    }
}

pub(crate) fn sha(bytes: &[u8]) -> String {
    sha256_hex(bytes)
}
