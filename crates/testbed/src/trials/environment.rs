//! What a trial needs: Postgres, S3, SQS, images and messages.

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
use crate::cloud::{Cloud, CloudOptions, CreateQueueOptions, QueueDepth, QueueUrls};
use crate::postgres::Cluster;
use crate::process::{ChildProcess, settings_env};

const MAX_CONCURRENT_REQUESTS: usize = 32;
const SEND_BATCH_ENTRIES: usize = 10;

/// No condition here is waited for longer.
const WAIT_TIMEOUT: Duration = Duration::from_mins(5);

/// Between two looks at a condition.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Images have the ids 1, 2, 3 and so on; those up to `images` have a row and an object, those up to
/// `sent` have been sent to the queue.
pub(super) struct TrialEnvironment {
    pub(super) cloud: Cloud,
    pub(super) queue: QueueUrls,
    application: Application,
    pool: PgPool,
    sqs: aws_sdk_sqs::Client,
    images: usize,
    sent_images: usize,
    logs: TempDir,
    _cluster: Cluster,
}

impl TrialEnvironment {
    /// An empty table whose run is open in the ledger, two empty buckets and a queue from which a
    /// message goes to the dead-letter queue after so many receives.
    pub(super) async fn set_up(max_receive_count: u32) -> Result<Self> {
        let cluster = Cluster::start().await?;
        let cloud = Cloud::start(CloudOptions::default())?;
        let application = Application::new(&cloud, cluster.create_database().await?);
        application.create_buckets().await?;
        let redrive = CreateQueueOptions {
            max_receive_count: Some(max_receive_count),
            ..CreateQueueOptions::default()
        };
        let queue = cloud.create_queue("images", redrive).await?;
        let pool = application.connect_pool(2).await?;
        application.create_table(&pool).await?;
        let environment = Self {
            sqs: cloud.sqs_client(),
            cloud,
            queue,
            application,
            pool,
            images: 0,
            sent_images: 0,
            logs: TempDir::new()?,
            _cluster: cluster,
        };
        environment.open_run().await?;
        Ok(environment)
    }

    /// The feeder opens the run, and has nothing to feed.
    async fn open_run(&self) -> Result<()> {
        let mut feeder = self.spawn_program("feeder", "feeder", &[])?;
        let status = feeder.wait_for_exit().await?;
        ensure!(status.success(), "{status}: {}", feeder.log_tail(30));
        Ok(())
    }

    /// Adds images, not yet sent.
    pub(super) async fn add_images(&mut self, count: usize) -> Result<()> {
        let new = self.images + 1..self.images + 1 + count;
        stream::iter(new.clone().map(|number| self.put_object(number)))
            .buffer_unordered(MAX_CONCURRENT_REQUESTS)
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
            .key(image_path(number))
            .content_type("image/png")
            .body(ByteStream::from(body.into_bytes()));
        request.send().await?;
        Ok(())
    }

    /// Sends up to so many images that were not sent yet, in the form the feeder sends them in.
    pub(super) async fn send_images(&mut self, most: usize) -> Result<()> {
        let new = self.sent_images + 1..self.images.min(self.sent_images + most) + 1;
        let batches = new.clone().step_by(SEND_BATCH_ENTRIES).map(|first| {
            let batch = first..new.end.min(first + SEND_BATCH_ENTRIES);
            self.send_batch(batch)
        });
        stream::iter(batches)
            .buffer_unordered(MAX_CONCURRENT_REQUESTS)
            .try_collect::<()>()
            .await?;
        self.sent_images = new.end - 1;
        Ok(())
    }

    async fn send_batch(&self, batch: Range<usize>) -> Result<()> {
        let entries: Vec<_> = batch.map(batch_entry).collect::<Result<_>>()?;
        let request = self.sqs.send_message_batch().queue_url(&self.queue.url);
        let output = request.set_entries(Some(entries)).send().await?;
        ensure!(output.failed().is_empty(), "a send failed");
        Ok(())
    }

    pub(super) fn spawn_consumer(&self, settings: &[(&str, &str)]) -> Result<ChildProcess> {
        let name = format!("consumer-{}", self.logs.path().read_dir()?.count());
        self.spawn_program("consumer", &name, settings)
    }

    fn spawn_program(
        &self,
        program: &str,
        name: &str,
        settings: &[(&str, &str)],
    ) -> Result<ChildProcess> {
        let mut environment =
            settings_env(&self.application, &self.cloud, &self.queue.url, program);
        let own = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        environment.extend(settings.iter().map(own));
        let log = self.logs.path().join(format!("{name}.log"));
        ChildProcess::spawn::<&str>(program, &environment, &[], Some(&log))
    }

    pub(super) fn sent_images(&self) -> usize {
        self.sent_images
    }

    pub(super) fn unsent_images(&self) -> usize {
        self.images - self.sent_images
    }

    pub(super) async fn moved_rows(&self) -> Result<usize> {
        let sql = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%'";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    pub(super) async fn count_ledger_rows(&self, table: &'static str) -> Result<usize> {
        let sql = format!("SELECT count(*) FROM bucket_brigade.{table}");
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
        let count: i64 = query.fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    /// Moves by the consumers' counters.
    pub(super) async fn counted_moves(&self) -> Result<usize> {
        let sql = "SELECT coalesce(sum(moved), 0)::bigint FROM bucket_brigade.counters";
        let count: i64 = sqlx::query_scalar(sql).fetch_one(&self.pool).await?;
        Ok(usize::try_from(count)?)
    }

    pub(super) fn copied_objects(&self) -> usize {
        self.cloud
            .count_objects(&self.application.destination_bucket)
    }

    pub(super) async fn queue_depth(&self) -> Result<QueueDepth> {
        self.cloud.queue_depth(&self.queue.url).await
    }

    pub(super) async fn dead_letters(&self) -> Result<u64> {
        let url = self.queue.dead_letter_url.as_ref();
        let url = url.context("there is no dead-letter queue")?;
        Ok(self.cloud.queue_depth(url).await?.total())
    }

    pub(super) async fn wait_until_drained(&self) -> Result<()> {
        wait_for("an empty queue", async || {
            Ok(self.queue_depth().await?.total() == 0)
        })
        .await
    }
}

pub(super) async fn wait_for(what: &str, condition: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !condition().await? {
        if Instant::now() > deadline {
            bail!("waited in vain for {what}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

fn image_path(number: usize) -> String {
    format!("image/{number}.png")
}

fn batch_entry(number: usize) -> Result<SendMessageBatchRequestEntry> {
    let body = json!({ "id": number.to_string(), "path": image_path(number) });
    let entry = SendMessageBatchRequestEntry::builder()
        .id(number.to_string())
        .message_body(body.to_string());
    Ok(entry.build()?)
}
