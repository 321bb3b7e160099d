//! From settings to a running feed: everything is checked before the first row is sent.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::control::Control;
use bucket_brigade_common::ledger::{self, FeederLock, Ledger, LedgerError};
use bucket_brigade_common::observe::observe;
use bucket_brigade_common::preflight::{Need, check_bucket, check_queue, patiently};
use bucket_brigade_common::scope::Scope;
use bucket_brigade_common::sqs::SqsQueue;
use bucket_brigade_common::trace::{FLUSH, Traces};
use bucket_brigade_common::{aws, exit, startup};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::feed::{Feed, Outcome};
use crate::page::{Page, Subject};
use crate::persist::Stopped;
use crate::progress::{Display, Progress};
use crate::settings::Settings;
use crate::steering::Steering;

/// One to page, one for the display and the signs of life, one for the count of the rows in scope.
const CONNECTIONS: u32 = 3;

/// One more with the live page, which must not wait for the others nor they for it.
const PAGE_CONNECTIONS: u32 = 1;

/// How long a bucket's name is looked up for.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last word to the ledger may take.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How often the feeder makes sure that it is still the only one.
const CHECK_LOCK: Duration = Duration::from_secs(5);

/// Feeds until the end, the stop, or for ever, as the settings say. Returns the exit code.
///
/// # Errors
/// What is wrong with the queue, the buckets, the table or the ledger, before anything is sent; or
/// [`LedgerError::AnotherFeeder`].
pub async fn start(
    settings: Settings,
    display: Display,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let name = startup::process_name("feeder");
    let traces = Traces::start(&settings.traces, "bucket-brigade-feeder", &name)?;
    let ended = Box::pin(feed(settings, &traces, &name, display, stop)).await;
    traces.end(FLUSH).await;
    ended
}

async fn feed(
    settings: Settings,
    traces: &Traces,
    name: &str,
    display: Display,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let progress = Arc::new(Progress::default());
    let ready = observe(settings.metrics_addr, Arc::clone(&progress) as _).await?;
    let page = Page::listen(&settings.page).await?;
    let migration = &settings.migration;
    let (queue, s3) = connect(&settings).await?;
    let connections = CONNECTIONS + page.as_ref().map_or(0, |_| PAGE_CONNECTIONS);
    let pool = ledger::pool(migration.database.clone(), connections);
    let open = async || Ledger::open(pool.clone(), &migration.run, name).await;
    let ledger = patiently(open).await?;
    if settings.database_limits.replica_lag.is_some() {
        ledger.check_replica_lag().await?;
    }
    let lock = patiently(async || ledger.lock_feeder().await).await?;
    tracing::info!(
        run = ledger.run_id(),
        table = ledger.table_name(),
        "feeding"
    );
    if let Some(page) = page {
        let subject = Subject {
            ledger: ledger.clone(),
            queue: queue.clone(),
            s3,
            destination_bucket: migration.run.destination_bucket.clone(),
            rule: migration.run.rule.clone(),
        };
        page.serve(subject).await;
    }
    let feed = Feed {
        queue: Arc::new(queue),
        scope: Arc::new(ledger.clone()),
        catalog: Arc::new(ledger.clone()),
        rule: migration.run.rule.clone(),
        pacing: settings.pacing,
        steering: Arc::new(Steering::new(settings.database_limits)),
        progress: Arc::clone(&progress),
        tracer: traces.tracer(),
        stop,
    };
    tokio::spawn(count_scope(ledger.clone()));
    if let Err(error) = ledger.forget_the_dead().await {
        tracing::debug!(%error, "processes that have ended stay in the ledger");
    }
    feed.steering.beat_once(&ledger, &progress).await;
    ready.set();
    let outcome = tokio::select! {
        biased;
        outcome = feed.run() => outcome,
        error = keep_lock(&ledger, lock) => return Err(error.into()),
        () = feed.steering.beat_forever(&ledger, &progress) => Err(Stopped),
        () = display.show_forever(&ledger, &progress) => Err(Stopped),
    };
    // Who misses this word sees in a few seconds that this process is gone.
    drop(timeout(LAST_WORD, ledger.leave()).await);
    display.clear();
    Ok(tell(outcome))
}

/// The feeder itself does nothing in the buckets and needs no rights there; but a name that is surely
/// wrong is better told now than by every consumer.
async fn connect(settings: &Settings) -> anyhow::Result<(SqsQueue, aws_sdk_s3::Client)> {
    let sdk = aws::load().await;
    let migration = &settings.migration;
    let queue = SqsQueue::new(aws::sqs_client(&sdk), &migration.queue_url);
    patiently(async || check_queue(&queue, &migration.queue_url).await).await?;
    let s3 = aws::s3_client(&sdk, migration.force_path_style, BUCKET_TIMEOUT, None);
    let run = &migration.run;
    check_bucket(&s3, "SOURCE_BUCKET_NAME", &run.source_bucket, Need::Name).await?;
    check_bucket(
        &s3,
        "DESTINATION_BUCKET_NAME",
        &run.destination_bucket,
        Need::Name,
    )
    .await?;
    Ok((queue, s3))
}

/// Counts beside the feeding: on a large table it takes minutes, and only the ETA needs it.
async fn count_scope(ledger: Ledger) {
    if let Err(error) = ledger.count_scope().await {
        tracing::warn!(%error, "the rows in scope could not be counted: there will be no ETA");
    }
}

/// Returns only when another feeder has taken over, after the connection that held the lock was lost.
async fn keep_lock(ledger: &Ledger, mut lock: FeederLock) -> LedgerError {
    loop {
        sleep(CHECK_LOCK).await;
        if lock.is_held().await {
            continue;
        }
        match ledger.lock_feeder().await {
            Ok(taken) => lock = taken,
            Err(error @ LedgerError::AnotherFeeder(_)) => return error,
            Err(error) => tracing::debug!(%error, "the feeder's lock is not back yet"),
        }
    }
}

/// Tells how it ended, and with which exit code.
fn tell(outcome: Result<Outcome, Stopped>) -> u8 {
    let Ok(Outcome { numbers, failures }) = outcome else {
        tracing::info!("stopped before the end; starting the feeder again goes on from here");
        return exit::STOPPED;
    };
    let (moved, changed, failed) = (numbers.moved, numbers.changed, numbers.failed);
    tracing::info!(
        moved,
        changed,
        failed,
        orphans = numbers.orphans,
        poison = numbers.poison,
        "done: {moved} moved, {changed} changed by the application, {failed} failed"
    );
    if numbers.orphans > 0 {
        tracing::warn!(
            orphans = numbers.orphans,
            "{} copies lost their row to the application: see bucket_brigade.orphans",
            numbers.orphans
        );
    }
    for (code, count) in failures {
        tracing::warn!(
            code,
            count,
            "{count} rows failed with {code}: see bucket_brigade.failures"
        );
    }
    if numbers.failed > 0 {
        exit::ROWS_FAILED
    } else {
        exit::DONE
    }
}
