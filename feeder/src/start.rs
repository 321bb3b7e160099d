//! From settings to a running feed: everything is checked before the first row is sent.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::feed_source::FeedSource;
use bucket_brigade_common::fleet_control::FleetControl;
use bucket_brigade_common::heartbeat::{send_first_heartbeat, send_heartbeats};
use bucket_brigade_common::http_endpoints::serve_endpoints;
use bucket_brigade_common::ledger::{self, AdvisoryLock, LedgerError, PostgresLedger};
use bucket_brigade_common::preflight::{BucketCheck, check_bucket, check_queue, retry_transient};
use bucket_brigade_common::sqs::SqsQueue;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_common::{aws, exit};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::feed::{FeedLoop, FeedOutcome};
use crate::progress::{FeederProgress, ProgressDisplay};
use crate::retry::FeederStopped;
use crate::settings::FeederSettings;
use bucket_brigade_operator::dashboard::{Dashboard, DashboardContext};

/// One to page, one for the display and the signs of life, one for the count of the rows in scope.
const BASE_CONNECTIONS: u32 = 3;

/// One more with the live page, which must not wait for the others nor they for it.
const DASHBOARD_CONNECTIONS: u32 = 1;

/// How long a bucket's name is looked up for.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last word to the ledger may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the feeder makes sure that it is still the only one.
const LOCK_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// By then the server has given up a session whose client does not answer, after 25 s by the keepalives that
/// it was asked for.
const DEAD_SESSION_TIMEOUT: Duration = Duration::from_secs(40);

/// Feeds until the end, the stop, or for ever, as the settings say. Returns the exit code.
///
/// # Errors
/// What is wrong with the queue, the buckets, the table or the ledger, before anything is sent; or
/// [`LedgerError::AnotherFeeder`].
pub async fn start(
    settings: FeederSettings,
    name: &str,
    display: ProgressDisplay,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let throttle = Arc::new(Throttle::for_rows(settings.database_limits));
    let progress = Arc::new(FeederProgress::new(Arc::clone(&throttle)));
    let ready = serve_endpoints(settings.metrics_addr, Arc::clone(&progress) as _).await?;
    let page = Dashboard::bind_listener(&settings.dashboard).await?;
    let migration = &settings.migration;
    let (queue, s3) = connect_aws(&settings).await?;
    let connections = BASE_CONNECTIONS + page.as_ref().map_or(0, |_| DASHBOARD_CONNECTIONS);
    let pool = ledger::create_pool(migration.database.clone(), connections);
    let open = async || PostgresLedger::open(pool.clone(), &migration.run, name).await;
    let ledger = retry_transient(open).await?;
    if settings.database_limits.replica_lag.is_some() {
        ledger.check_replica_lag().await?;
    }
    let lock = retry_transient(async || ledger.acquire_feeder_lock().await).await?;
    tracing::info!(
        run = ledger.run_id(),
        table = ledger.table_name(),
        "feeding"
    );
    if let Some(page) = page {
        let subject = DashboardContext {
            ledger: ledger.clone(),
            queue: queue.clone(),
            s3,
            destination_bucket: migration.run.destination_bucket.clone(),
            rule: migration.run.rule.clone(),
        };
        page.spawn_server(subject).await;
    }
    let feed = FeedLoop {
        queue: Arc::new(queue),
        source: Arc::new(ledger.clone()),
        ledger: Arc::new(ledger.clone()),
        rule: migration.run.rule.clone(),
        options: settings.options,
        throttle: Arc::clone(&throttle),
        progress: Arc::clone(&progress),
        stop,
    };
    tokio::spawn(count_scope(ledger.clone()));
    if let Err(error) = ledger.prune_dead_workers().await {
        tracing::debug!(%error, "processes that have ended stay in the ledger");
    }
    send_first_heartbeat(&ledger, &throttle, &progress.heartbeat(), &feed.stop).await;
    ready.set();
    let outcome = tokio::select! {
        biased;
        outcome = feed.run() => outcome,
        error = hold_feeder_lock(&ledger, lock) => return Err(error.into()),
        () = send_heartbeats(&ledger, &throttle, || progress.heartbeat()) => Err(FeederStopped),
        () = display.refresh_forever(&ledger, &progress) => Err(FeederStopped),
    };
    // Who misses this word sees in a few seconds that this process is gone.
    drop(timeout(DEREGISTER_TIMEOUT, ledger.deregister()).await);
    display.clear_bar();
    Ok(log_summary(outcome))
}

/// The feeder itself does nothing in the buckets and needs no rights there; but a name that is surely
/// wrong is better told now than by every consumer.
async fn connect_aws(settings: &FeederSettings) -> anyhow::Result<(SqsQueue, aws_sdk_s3::Client)> {
    let sdk = aws::load_config().await;
    let migration = &settings.migration;
    let queue = SqsQueue::new(aws::sqs_client(&sdk), &migration.queue_url);
    retry_transient(async || check_queue(&queue, &migration.queue_url).await).await?;
    let s3 = aws::s3_client(&sdk, migration.force_path_style, BUCKET_TIMEOUT, None);
    let run = &migration.run;
    check_bucket(
        &s3,
        "SOURCE_BUCKET_NAME",
        &run.source_bucket,
        BucketCheck::NameOnly,
    )
    .await?;
    check_bucket(
        &s3,
        "DESTINATION_BUCKET_NAME",
        &run.destination_bucket,
        BucketCheck::NameOnly,
    )
    .await?;
    Ok((queue, s3))
}

/// Counts beside the feeding: on a large table it takes minutes, and only the ETA needs it.
async fn count_scope(ledger: PostgresLedger) {
    if let Err(error) = ledger.count_scope().await {
        tracing::warn!(%error, "the rows in scope could not be counted: there will be no ETA");
    }
}

/// Returns only when another feeder has taken over, after the connection that held the lock was lost.
async fn hold_feeder_lock(ledger: &PostgresLedger, mut lock: AdvisoryLock) -> LedgerError {
    loop {
        while lock.is_held().await {
            sleep(LOCK_CHECK_INTERVAL).await;
        }
        tracing::warn!("the connection that holds the feeder's lock is lost or silent");
        // Closes the connection, by which the server knows that the lock is free.
        drop(lock);
        match reacquire_lock(ledger).await {
            Ok(taken) => lock = taken,
            Err(error) => return error,
        }
    }
}

/// The lock may still be with the session that fell silent: only after a time it is another feeder's.
async fn reacquire_lock(ledger: &PostgresLedger) -> Result<AdvisoryLock, LedgerError> {
    let lost = Instant::now();
    loop {
        match ledger.acquire_feeder_lock().await {
            Err(error @ LedgerError::AnotherFeeder(_)) if lost.elapsed() > DEAD_SESSION_TIMEOUT => {
                return Err(error);
            }
            Err(error) => tracing::debug!(%error, "the feeder's lock is not back yet"),
            taken => return taken,
        }
        sleep(LOCK_CHECK_INTERVAL).await;
    }
}

/// Tells how it ended, and with which exit code.
fn log_summary(outcome: Result<FeedOutcome, FeederStopped>) -> u8 {
    let Ok(FeedOutcome {
        progress: numbers,
        failures,
    }) = outcome
    else {
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
