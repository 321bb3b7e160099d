//! What each test stands on: a database, local S3 and SQS, a queue, and the two programs.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use aws_config::retry::RetryConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use bucket_brigade_common::ledger::{
    self, PostgresLedger, RunOptions, RunSpec, SecondRun, TableSpec,
};
use bucket_brigade_common::object_store::s3::{S3Access, S3Options, S3Store};
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_testbed::application::{
    Application, ObjectLocation, ObjectProperties, sha256_hex,
};
use bucket_brigade_testbed::cloud::{CreateQueueOptions, QueueUrls};
use bucket_brigade_testbed::process::{ChildProcess, binary_path, settings_env};
use bucket_brigade_testbed::{Cloud, CloudOptions, Cluster};
use sqlx::{AssertSqlSafe, PgPool};
use tempfile::TempDir;

/// Longer than anything here takes on a busy machine.
const WAIT_TIMEOUT: Duration = Duration::from_secs(90);

pub(crate) struct TestRig {
    pub(crate) cloud: Cloud,
    pub(crate) application: Application,
    pub(crate) queue: QueueUrls,
    pub(crate) pool: PgPool,
    logs: TempDir,
}

/// How a process ended.
pub(crate) struct ExitedProcess {
    pub(crate) code: Option<i32>,
    pub(crate) log: String,
}

/// How a command ended, and what it result.
pub(crate) struct FeederOutput {
    pub(crate) code: i32,
    pub(crate) output: String,
    pub(crate) log: String,
}

impl TestRig {
    pub(crate) async fn new() -> Self {
        Self::with_options(CloudOptions::default(), CreateQueueOptions::default()).await
    }

    /// An empty table `images`, two empty buckets and a queue.
    pub(crate) async fn with_options(options: CloudOptions, queue: CreateQueueOptions) -> Self {
        let rig = Self::without_table(options, queue).await;
        rig.application.create_table(&rig.pool).await.unwrap();
        rig
    }

    pub(crate) async fn without_table(options: CloudOptions, queue: CreateQueueOptions) -> Self {
        Self::on_cluster(Cluster::shared().await, options, queue).await
    }

    /// The same with its table in another database.
    pub(crate) async fn in_database(mut self, options: &str) -> Self {
        let url = format!("{}_other", self.application.database_url);
        let (_, database) = url.rsplit_once('/').unwrap();
        let create = format!("CREATE DATABASE {database} {options} TEMPLATE template0");
        self.execute_sql(&create).await;
        self.application.database_url = url;
        self.pool = self.application.connect_pool(3).await.unwrap();
        self.application.create_table(&self.pool).await.unwrap();
        self
    }

    /// The same on a cluster of its own.
    pub(crate) async fn on_cluster(
        cluster: &Cluster,
        options: CloudOptions,
        queue: CreateQueueOptions,
    ) -> Self {
        let cloud = Cloud::start(options).unwrap();
        let database_url = cluster.create_database().await.unwrap();
        let application = Application::new(&cloud, database_url);
        application.create_buckets().await.unwrap();
        let name = if queue.fifo { "images.fifo" } else { "images" };
        let queue = cloud.create_queue(name, queue).await.unwrap();
        let pool = application.connect_pool(3).await.unwrap();
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
            .endpoint_url(self.cloud.endpoint_url())
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .retry_config(RetryConfig::disabled())
            .build();
        let access = S3Access::new(&sdk, true, Duration::from_mins(1));
        let source = access.bucket("SOURCE_BUCKET_NAME", "images-old", None);
        let destination = access.bucket("DESTINATION_BUCKET_NAME", "images-new", None);
        S3Store::new(source.await.unwrap(), destination.await.unwrap(), options)
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

    fn log_path(&self, program: &str) -> PathBuf {
        let number = self.logs.path().read_dir().unwrap().count();
        self.logs.path().join(format!("{program}-{number}.log"))
    }

    pub(crate) fn spawn(
        &self,
        program: &str,
        more: &[(&str, &str)],
        arguments: &[&str],
    ) -> ChildProcess {
        let environment = self.environment(program, more);
        ChildProcess::spawn(
            program,
            &environment,
            arguments,
            Some(&self.log_path(program)),
        )
        .unwrap()
    }

    /// The same database, logged in as another role.
    pub(crate) fn url_as(&self, role: &str) -> String {
        let (_, rest) = self.application.database_url.split_once('@').unwrap();
        format!("postgres://{role}:poor@{rest}")
    }

    pub(crate) fn spawn_consumer(&self, more: &[(&str, &str)]) -> ChildProcess {
        self.spawn("consumer", more, &[])
    }

    /// Runs a program to its end.
    pub(crate) async fn run_program(&self, program: &str, more: &[(&str, &str)]) -> ExitedProcess {
        self.run_program_with(program, more, &[]).await
    }

    pub(crate) async fn run_program_with(
        &self,
        program: &str,
        more: &[(&str, &str)],
        arguments: &[&str],
    ) -> ExitedProcess {
        wait_for_exit(&mut self.spawn(program, more, arguments)).await
    }

    /// Runs the feeder with these arguments to its end, as an operator does, its answer apart from its log.
    pub(crate) async fn run_feeder(&self, arguments: &[&str]) -> FeederOutput {
        let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
        command
            .args(arguments)
            .env_clear()
            .envs(self.environment("operator", &[]))
            .current_dir("/")
            .kill_on_drop(true);
        let output = tokio::time::timeout(WAIT_TIMEOUT, command.output()).await;
        let output = output.unwrap().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        FeederOutput {
            code: output.status.code().unwrap_or(-1),
            output: text(&output.stdout),
            log: text(&output.stderr),
        }
    }

    /// What a command answers as JSON.
    pub(crate) async fn feeder_json(&self, arguments: &[&str]) -> serde_json::Value {
        let result = self.run_feeder(arguments).await;
        serde_json::from_str(&result.output)
            .unwrap_or_else(|error| panic!("{error}: {}", result.log))
    }

    /// Puts an image into the source bucket, and its row into the table.
    pub(crate) async fn add_image(&self, path: &str) -> String {
        self.put_object("images-old", path, path.as_bytes()).await;
        self.add_row(path).await
    }

    pub(crate) async fn add_images(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for number in 0..count {
            ids.push(self.add_image(&format!("image/{number}.png")).await);
        }
        ids
    }

    pub(crate) async fn add_row(&self, path: &str) -> String {
        sqlx::query_scalar("INSERT INTO images (path) VALUES ($1) RETURNING id::text")
            .bind(path)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    pub(crate) async fn put_object(&self, bucket: &str, key: &str, bytes: &[u8]) -> String {
        let properties = image_properties();
        let at = location(bucket, key);
        self.application
            .put_object(&at, bytes.to_vec(), &properties)
            .await
            .unwrap()
    }

    /// The SHA-256 of an object at the destination; none when there is none.
    pub(crate) async fn destination_sha256(&self, key: &str) -> Option<String> {
        let object = self
            .application
            .get_tagged_object(&location("images-new", key))
            .await
            .unwrap();
        object.map(|object| object.sha256)
    }

    pub(crate) async fn path_of(&self, id: &str) -> Option<String> {
        self.application.read_path(&self.pool, id).await.unwrap()
    }

    pub(crate) async fn execute_sql(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// A number out of the database.
    pub(crate) async fn query_number(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql.to_owned()));
        query
            .fetch_optional(&self.pool)
            .await
            .unwrap_or(None)
            .unwrap_or(-1)
    }

    pub(crate) async fn count_rows(&self, ledger_table: &str) -> i64 {
        self.query_number(&format!(
            "SELECT count(*) FROM bucket_brigade.{ledger_table}"
        ))
        .await
    }

    /// A counter of the ledger, summed over processes.
    pub(crate) async fn ledger_counter(&self, name: &str) -> i64 {
        self.query_number(&format!(
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

    pub(crate) async fn send_message(&self, body: &str) {
        let sqs = self.cloud.sqs_client();
        sqs.send_message()
            .queue_url(&self.queue.url)
            .message_body(body)
            .send()
            .await
            .unwrap();
    }

    /// Sends the message the feeder would send.
    pub(crate) async fn feed_row(&self, id: &str, path: &str) {
        let body = serde_json::json!({ "id": id, "path": path });
        self.send_message(&body.to_string()).await;
    }

    /// Messages in the queue, received ones included.
    pub(crate) async fn queued_messages(&self) -> u64 {
        self.cloud
            .queue_depth(&self.queue.url)
            .await
            .unwrap()
            .total()
    }

    pub(crate) async fn visible_messages(&self) -> u64 {
        self.cloud
            .queue_depth(&self.queue.url)
            .await
            .unwrap()
            .visible
    }

    pub(crate) async fn dead_letters(&self) -> u64 {
        let url = self.queue.dead_letter_url.as_ref().unwrap();
        self.cloud.queue_depth(url).await.unwrap().total()
    }

    /// Opens the run in the ledger, as the feeder does before it feeds.
    pub(crate) async fn open_run(&self) -> PostgresLedger {
        self.open_run_with(RunOptions::default()).await
    }

    pub(crate) async fn open_run_with(&self, options: RunOptions) -> PostgresLedger {
        let database = self.application.database_url.parse().unwrap();
        let pool = ledger::create_pool(database, 2);
        let spec = RunSpec {
            options,
            ..self.run_spec()
        };
        PostgresLedger::open(pool, &spec, "test", SecondRun::Refused)
            .await
            .unwrap()
    }

    pub(crate) fn run_spec(&self) -> RunSpec {
        RunSpec {
            name: None,
            table: TableSpec {
                table: self.application.table.name.clone(),
                id_column: "id".into(),
                path_column: "path".into(),
            },
            rule: PathRule::new("image/", "avatar/", None, None).unwrap(),
            source_bucket: "images-old".into(),
            destination_bucket: "images-new".into(),
            options: RunOptions {
                companions: Some(self.application.companions.clone()).filter(|it| !it.is_empty()),
                ..RunOptions::default()
            },
        }
    }

    /// Waits until nothing is in the queue any more.
    pub(crate) async fn wait_until_drained(&self) {
        wait_until("the queue to drain", async || {
            self.queued_messages().await == 0
        })
        .await;
    }
}

/// Waits for a condition, not for a time.
pub(crate) async fn wait_until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition().await {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits for the end of a process.
pub(crate) async fn wait_for_exit(process: &mut ChildProcess) -> ExitedProcess {
    let status = tokio::time::timeout(WAIT_TIMEOUT, process.wait_for_exit()).await;
    let log = process.log_tail(400);
    let Ok(status) = status else {
        panic!("{} did not end; its log:\n{log}", process.name());
    };
    ExitedProcess {
        code: status.unwrap().code(),
        log,
    }
}

/// Asks a consumer to stop, and expects that it does so in good order.
pub(crate) async fn stop_consumer(mut process: ChildProcess) -> String {
    process.terminate().unwrap();
    let ended = wait_for_exit(&mut process).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    ended.log
}

pub(crate) fn location(bucket: &str, key: &str) -> ObjectLocation {
    ObjectLocation {
        bucket: bucket.into(),
        key: key.into(),
    }
}

pub(crate) fn image_properties() -> ObjectProperties {
    ObjectProperties {
        content_type: Some("image/png".into()),
        cache_control: Some("max-age=60".into()),
        metadata: [("owner".into(), "7".into())].into(),
        tags: [("kind".into(), "avatar".into())].into(),
        ..ObjectProperties::default()
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    sha256_hex(bytes)
}
