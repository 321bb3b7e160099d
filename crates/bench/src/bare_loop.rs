//! Bare loops: what each call costs when nothing is done but the call. Each is a process of its own.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_config::BehaviorVersion;
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, SendMessageBatchRequestEntry};
use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove};
use bucket_brigade_common::ledger::{self, PostgresLedger};
use bucket_brigade_common::message::MoveTask;
use bucket_brigade_common::object_store::CopiedObject;
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_consumer::commit::Committer;
use bucket_brigade_consumer::context::ConsumerContext;
use clap::{Args, ValueEnum};
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::images::{self, DESTINATION_BUCKET, SOURCE_BUCKET};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BareCall {
    /// `CopyObject`, with the SDK as it comes.
    Copy,
    /// `CopyObject`, with the client that the consumer makes for itself.
    OurCopy,
    /// `ReceiveMessage` of ten and `DeleteMessageBatch` of them.
    Receive,
    /// `SendMessageBatch` of ten.
    Send,
    /// The commit statement for a hundred rows, on one connection.
    Commit,
    /// The consumer's commit stage alone, given one row at a time.
    CommitStage,
}

#[derive(Debug, Clone, Args)]
pub struct BareLoop {
    #[arg(long)]
    pub call: BareCall,
    #[arg(long)]
    pub first: u64,
    #[arg(long)]
    pub rows: u64,
    #[arg(long)]
    pub in_flight: usize,
    #[arg(long, env = "DATABASE_URL", hide = true, default_value = "")]
    pub database_url: String,
    #[arg(long, env = "QUEUE_URL", hide = true, default_value = "")]
    pub queue_url: String,
}

impl BareLoop {
    /// Runs the loop to its end. Commits print the rows they made per second.
    pub fn run(&self) -> Result<()> {
        tokio::runtime::Runtime::new()?.block_on(async {
            match self.call {
                BareCall::Copy => {
                    let sdk = aws_config::load_defaults(BehaviorVersion::latest()).await;
                    let config = aws_sdk_s3::config::Builder::from(&sdk).force_path_style(true);
                    self.copy_rows(aws_sdk_s3::Client::from_conf(config.build()))
                        .await
                }
                BareCall::OurCopy => {
                    let sdk = bucket_brigade_common::aws::load_config().await;
                    let timeout = Duration::from_mins(2);
                    let client = bucket_brigade_common::aws::s3_client(&sdk, true, timeout, None);
                    self.copy_rows(client).await
                }
                BareCall::Receive => self.call_queue(receive_and_delete).await,
                BareCall::Send => self.call_queue(send_batch).await,
                BareCall::Commit => self.commit_batches().await,
                BareCall::CommitStage => self.commit_stage().await,
            }
        })
    }

    async fn copy_rows(&self, client: aws_sdk_s3::Client) -> Result<()> {
        let copy = move |one: Range<u64>| copy_one(client.clone(), one.start);
        self.in_parallel(1, copy).await
    }

    /// Ten messages at a time.
    async fn call_queue<F>(
        &self,
        call: impl Fn(aws_sdk_sqs::Client, Range<u64>, String) -> F + Clone + Send + 'static,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send,
    {
        let sdk = aws_config::load_defaults(BehaviorVersion::latest()).await;
        let (client, url) = (aws_sdk_sqs::Client::new(&sdk), self.queue_url.clone());
        let call = move |ten| call(client.clone(), ten, url.clone());
        self.in_parallel(10, call).await
    }

    /// Calls in so many tasks until the rows, of which each call takes so many, are used up.
    async fn in_parallel<F>(
        &self,
        step: u64,
        call: impl Fn(Range<u64>) -> F + Clone + Send + 'static,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>> + Send,
    {
        let (next, end) = (Arc::new(AtomicU64::new(self.first)), self.first + self.rows);
        let worker = |_| {
            let (next, call) = (Arc::clone(&next), call.clone());
            tokio::spawn(async move {
                loop {
                    let first = next.fetch_add(step, Ordering::Relaxed);
                    if first >= end {
                        return anyhow::Ok(());
                    }
                    call(first..end.min(first + step)).await?;
                }
            })
        };
        let workers: Vec<_> = (0..self.in_flight).map(worker).collect();
        for worker in workers {
            worker.await??;
        }
        Ok(())
    }

    async fn open_ledger(&self, connections: u32) -> Result<PostgresLedger> {
        let pool = ledger::create_pool(self.database_url.parse()?, connections);
        let found = PostgresLedger::find_run(pool, &images::run_spec()?, "bare-loop").await?;
        found.context("the run is not open")
    }

    async fn commit_batches(&self) -> Result<()> {
        let ledger = self.open_ledger(1).await?;
        let (end, started) = (self.first + self.rows, Instant::now());
        for first in (self.first..end).step_by(100) {
            let hundred = first..end.min(first + 100);
            let moves: Vec<PendingMove> = hundred.map(build_move).collect();
            let moved = ledger.commit(&moves.iter().collect::<Vec<_>>()).await?;
            ensure!(moved.len() == moves.len(), "rows did not match");
        }
        self.print_rate(started);
        Ok(())
    }

    async fn commit_stage(&self) -> Result<()> {
        let ledger = Arc::new(self.open_ledger(3).await?);
        let throttle = Throttle::for_copies(1000, DatabaseLimits::default());
        let lease = Duration::from_hours(1);
        let context = ConsumerContext::new(throttle, lease, CancellationToken::new());
        let commit = Committer::new(ledger, &context);
        let lease = context.leases.start_lease(String::new());
        let watch = lease.watch();
        let rule = images::run_spec()?.rule;
        let started = Instant::now();
        futures::stream::iter(self.first..self.first + self.rows)
            .map(|id| {
                let (commit, rule, watch) = (&commit, &rule, &watch);
                async move {
                    let route = rule.route_for(&images::old_path(id)).ok()?;
                    let id = RowId::from_database(id.to_string());
                    let copied = CopiedObject::new(ETAG);
                    let task = MoveTask {
                        id,
                        route,
                        fence: 0,
                    };
                    Some(
                        commit
                            .commit(&task, watch, copied, CompanionCopies::new())
                            .await,
                    )
                }
            })
            .buffer_unordered(self.in_flight)
            .for_each(|_| std::future::ready(()))
            .await;
        self.print_rate(started);
        Ok(())
    }

    #[expect(clippy::print_stdout, reason = "this process's answer")]
    fn print_rate(&self, started: Instant) {
        let seconds = started.elapsed().as_secs_f64();
        println!("{}", crate::stats::to_f64(self.rows) / seconds);
    }
}

const ETAG: &str = "9b2cf535f27731c974343645a3985328";

fn build_move(id: u64) -> PendingMove {
    PendingMove {
        id: RowId::from_database(id.to_string()),
        old_path: images::old_path(id),
        new_path: images::new_path(id),
        destination_key: images::new_path(id),
        etag: ETAG.to_owned(),
        size_bytes: None,
        is_source_gone: false,
        is_found: false,
        companions: CompanionCopies::new(),
        fence: 0,
    }
}

/// The same request as the consumer's.
async fn copy_one(client: aws_sdk_s3::Client, id: u64) -> Result<()> {
    let copied = client
        .copy_object()
        .copy_source(format!("{SOURCE_BUCKET}/{}", images::old_path(id)))
        .bucket(DESTINATION_BUCKET)
        .key(images::new_path(id))
        .if_none_match("*")
        .send()
        .await?;
    ensure!(copied.copy_object_result.is_some(), "an empty answer");
    Ok(())
}

async fn receive_and_delete(client: aws_sdk_sqs::Client, _: Range<u64>, url: String) -> Result<()> {
    let received = client
        .receive_message()
        .queue_url(&url)
        .max_number_of_messages(10)
        .wait_time_seconds(20)
        .message_system_attribute_names(
            aws_sdk_sqs::types::MessageSystemAttributeName::ApproximateReceiveCount,
        )
        .send()
        .await?;
    let handles = received.messages.unwrap_or_default().into_iter();
    let entries: Result<Vec<_>, _> = handles
        .enumerate()
        .map(|(index, message)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .set_receipt_handle(message.receipt_handle)
                .build()
        })
        .collect();
    let delete = client.delete_message_batch().queue_url(&url);
    delete.set_entries(Some(entries?)).send().await?;
    Ok(())
}

async fn send_batch(client: aws_sdk_sqs::Client, ten: Range<u64>, url: String) -> Result<()> {
    let entries: Result<Vec<_>, _> = ten
        .enumerate()
        .map(|(index, id)| {
            SendMessageBatchRequestEntry::builder()
                .id(index.to_string())
                .message_body(format!(
                    r#"{{"id":"{id}","path":"{}"}}"#,
                    images::old_path(id)
                ))
                .build()
        })
        .collect();
    let sent = client.send_message_batch().queue_url(url);
    let sent = sent.set_entries(Some(entries?)).send().await?;
    ensure!(sent.failed.is_empty(), "entries failed");
    Ok(())
}
