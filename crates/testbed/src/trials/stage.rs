//! What a trial stands on.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use sqlx::postgres::PgPool;
use tempfile::TempDir;

use crate::application::Application;
use crate::cloud::{Cloud, CreateQueue, Options, QueueDepth, QueueUrls};
use crate::postgres::Cluster;
use crate::process::{Process, settings_env};

const AT_ONCE: usize = 32;
const BATCH: usize = 10;

/// No condition here is waited for longer.
const PATIENCE: Duration = Duration::from_mins(5);

/// Between two looks at a condition.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Images have the ids 1, 2, 3 and so on; those up to `images` have a row and an object, those up to
/// `sent` have been sent to the queue.
pub(super) struct Stage {
    pub(super) cloud: Cloud,
    pub(super) queue: QueueUrls,
    application: Application,
    pool: PgPool,
    sqs: aws_sdk_sqs::Client,
    images: usize,
    sent: usize,
    logs: TempDir,
    _cluster: Cluster,
}

impl Stage {
    /// An empty table whose run is open in the ledger, two empty buckets and a queue from which a
    /// message goes to the dead-letter queue after so many receives.
    pub(super) async fn set_up(max_receive_count: u32) -> Result<Self> {
        let cluster = Cluster::start().await?;
        let cloud = Cloud::start(Options::default())?;
        let application = Application::new(&cloud, cluster.create_database().await?);
        application.create_buckets().await?;
        let redrive = CreateQueue {
            max_receive_count: Some(max_receive_count),
            ..CreateQueue::default()
        };
        let queue = cloud.create_queue("images", redrive).await?;
        let pool = application.pool(2).await?;
        application.create_table(&pool).await?;
        let stage = Self {
            sqs: cloud.sqs(),
            cloud,
            queue,
            application,
            pool,
            images: 0,
            sent: 0,
            logs: TempDir::new()?,
            _cluster: cluster,
        };
        stage.open_run().await?;
        Ok(stage)
    }

    /// The feeder opens the run, and has nothing to feed.
    async fn open_run(&self) -> Result<()> {
        let mut feeder = self.spawn("feeder", "feeder", &[])?;
        let status = feeder.wait().await?;
        ensure!(status.success(), "{status}: {}", feeder.log_tail(30));
        Ok(())
    }

    /// Adds images, not yet sent.
    pub(super) async fn add_images(&mut self, count: usize) -> Result<()> {
        let new = self.images + 1..self.images + 1 + count;
        stream::iter(new.clone().map(|number| self.put_object(number)))
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        sqlx::query(
            "INSERT INTO images (id, path) OVERRIDING SYSTEM VALUE \
             SELECT n, 'image/' || n || '.png' FROM generate_series($1::bigint, $2::bigint) n",
        )
        .bind(i64::try_from(new.start)?)
        .bind(i64::try_from(new.end)? - 1)
        .execute(&self.pool)
        .await?;
        self.images += count;
        Ok(())
    }

    async fn put_object(&self, number: usize) -> Result<()> {
        let body = format!("the bytes of image {number}");
        let request = self
            .application
            .s3
            .put_object()
            .bucket(&self.application.source_bucket)
            .key(path_of(number))
            .content_type("image/png")
            .body(ByteStream::from(body.into_bytes()));
        request.send().await?;
        Ok(())
    }

    /// Sends up to so many images that were not sent yet, in the form the feeder sends them in.
    pub(super) async fn send(&mut self, most: usize) -> Result<()> {
        let new = self.sent + 1..self.images.min(self.sent + most) + 1;
        let batches = new.clone().step_by(BATCH).map(|first| {
            let batch = first..new.end.min(first + BATCH);
            self.send_batch(batch)
        });
        stream::iter(batches)
            .buffer_unordered(AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.sent = new.end - 1;
        Ok(())
    }

    async fn send_batch(&self, batch: Range<usize>) -> Result<()> {
        let entries: Vec<_> = batch.map(entry).collect::<Result<_>>()?;
        let request = self.sqs.send_message_batch().queue_url(&self.queue.url);
        let answer = request.set_entries(Some(entries)).send().await?;
        ensure!(answer.failed().is_empty(), "a send failed");
        Ok(())
    }

    pub(super) fn consumer(&self, settings: &[(&str, &str)]) -> Result<Process> {
        let name = format!("consumer-{}", self.logs.path().read_dir()?.count());
        self.spawn("consumer", &name, settings)
    }

    fn spawn(&self, program: &str, name: &str, settings: &[(&str, &str)]) -> Result<Process> {
        let mut environment =
            settings_env(&self.application, &self.cloud, &self.queue.url, program);
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        environment.extend(settings.iter().map(own));
        let log = self.logs.path().join(format!("{name}.log"));
        Process::spawn::<&str>(program, &environment, &[], Some(&log))
    }

    /// Images that were sent.
    pub(super) fn sent(&self) -> usize {
        self.sent
    }

    /// Images that were not sent yet.
    pub(super) fn unsent(&self) -> usize {
        self.images - self.sent
    }

    /// Rows that have the new path.
    pub(super) async fn moved(&self) -> Result<usize> {
        let sql = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    /// Rows of a table of the ledger.
    pub(super) async fn ledger(&self, table: &'static str) -> Result<usize> {
        let sql = format!("SELECT count(*) FROM bucket_brigade.{table}");
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
        let count: i64 = query.fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    /// Moves that the consumers' counters tell of.
    pub(super) async fn counted_moves(&self) -> Result<usize> {
        let sql = "SELECT coalesce(sum(moved), 0)::bigint FROM bucket_brigade.counters";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    /// Objects at the destination.
    pub(super) fn copies(&self) -> usize {
        self.cloud.objects_in(&self.application.destination_bucket)
    }

    pub(super) async fn queued(&self) -> Result<QueueDepth> {
        self.cloud.queue_depth(&self.queue.url).await
    }

    pub(super) async fn dead(&self) -> Result<u64> {
        let url = self.queue.dead_letter_url.as_ref();
        let url = url.context("there is no dead-letter queue")?;
        Ok(self.cloud.queue_depth(url).await?.total())
    }

    /// Waits until no message is left.
    pub(super) async fn drained(&self) -> Result<()> {
        wait_for("an empty queue", async || {
            Ok(self.queued().await?.total() == 0)
        })
        .await
    }
}

/// Waits for a condition.
pub(super) async fn wait_for(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await? {
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

fn path_of(number: usize) -> String {
    format!("image/{number}.png")
}

fn entry(number: usize) -> Result<SendMessageBatchRequestEntry> {
    let body = json!({ "id": number.to_string(), "path": path_of(number) });
    let entry = SendMessageBatchRequestEntry::builder()
        .id(number.to_string())
        .message_body(body.to_string());
    Ok(entry.build()?)
}
