//! From settings to a running feed: everything is checked before the first row is sent.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::aws;
use bucket_brigade_common::heartbeat::{send_first_heartbeat, send_heartbeats};
use bucket_brigade_common::http_endpoints::serve_endpoints;
use bucket_brigade_common::ledger::fleet_control::FleetControl;
use bucket_brigade_common::ledger::{self, LedgerError, PostgresLedger, RunOptions};
use bucket_brigade_common::message::MessageOrigin;
use bucket_brigade_common::preflight::{check_queue, retry_transient};
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::settings::MigrationSettings;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_operator::dashboard::{Dashboard, DashboardContext, OwnRun};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::control::RunControl;
use crate::count::count_scope;
use crate::display::ProgressDisplay;
use crate::feed::FeedLoop;
use crate::lock::{hold_feeder_lock, take_feeder_lock};
use crate::outcome::log_summary;
use crate::progress::FeederProgress;
use crate::retry::FeederStopped;
use crate::settings::FeederSettings;

/// One to page, one for the display and the heartbeats, one for the count of the rows in scope.
const BASE_CONNECTIONS: u32 = 3;

/// One more with the live page, which must not wait for the others nor they for it.
const DASHBOARD_CONNECTIONS: u32 = 1;

/// How long a bucket's name is looked up for.
const BUCKET_TIMEOUT: Duration = Duration::from_secs(10);

const DEREGISTER_TIMEOUT: Duration = Duration::from_secs(1);

/// Feeds until the end or the stop. Returns the exit code. An error is about the queue, the buckets, the table or the
/// ledger, before anything is sent; or another feeder has taken over.
pub async fn start(
    migration: MigrationSettings,
    settings: FeederSettings,
    name: &str,
    display: ProgressDisplay,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let throttle = Arc::new(Throttle::for_rows(settings.database_limits));
    let progress = Arc::new(FeederProgress::new(Arc::clone(&throttle)));
    let ready = serve_endpoints(settings.metrics_addr, Arc::clone(&progress) as _).await?;
    let dashboard = Dashboard::bind_listener(&settings.dashboard).await?;
    let run = &migration.run;
    let open = async {
        let (queue, s3) = connect_aws(&migration).await?;
        let ledger = open_ledger(&migration, &settings, name).await?;
        let ledger = ledger.with_throttle(Arc::clone(&throttle));
        let (lock, fence) = take_feeder_lock(&ledger).await?;
        anyhow::Ok((queue, s3, ledger, lock, fence))
    };
    let Some((queue, s3, ledger, lock, fence)) = unless_stopped(&stop, open).await? else {
        return Ok(log_summary(Err(FeederStopped)));
    };
    tracing::info!(
        run = ledger.run_id(),
        table = ledger.table_name(),
        filter = ledger.options().row_filter,
        "feeding"
    );
    let prepare = async {
        if let Some(dashboard) = dashboard {
            let context = dashboard_context(&ledger, &queue, s3, &run.destination_bucket);
            dashboard.spawn_server(context).await;
        }
        let pages = settings.feed_order.open_reader(&ledger).await?;
        let control = RunControl::start(settings.control, &ledger, &throttle, &progress).await?;
        ledger.prune_dead_workers().await;
        warn_of_interrupted_rollback(&ledger).await;
        anyhow::Ok((pages, control))
    };
    let Some((pages, control)) = unless_stopped(&stop, prepare).await? else {
        return Ok(log_summary(Err(FeederStopped)));
    };
    tokio::spawn(count_scope(ledger.clone(), Arc::clone(&throttle)));
    send_first_heartbeat(&ledger, &throttle, &progress.heartbeat(), &stop).await;
    ready.set();
    let feed = FeedLoop {
        origin: MessageOrigin {
            run: ledger.run_key(),
            fence,
        },
        queue: Arc::new(queue),
        source: Arc::new(ledger.clone()),
        pages,
        ledger: Arc::new(ledger.clone()),
        rule: run.rule.clone(),
        options: settings.options,
        throttle: Arc::clone(&throttle),
        progress: Arc::clone(&progress),
        stop,
    };
    let ended = tokio::select! {
        biased;
        outcome = feed.run() => Ok(outcome),
        error = hold_feeder_lock(&ledger, lock, fence) => Err(error),
        () = send_heartbeats(&ledger, &throttle, || progress.heartbeat(), |sent| progress.record_heartbeat(sent)) => Err(LedgerError::run_gone()),
        () = display.refresh_forever(&ledger, &progress) => Ok(Err(FeederStopped)),
        () = control.run() => Ok(Err(FeederStopped)),
    };
    // Without it others see in a few seconds that this process is gone.
    drop(timeout(DEREGISTER_TIMEOUT, ledger.deregister()).await);
    display.clear_bar();
    let outcome = ended?;
    if outcome.is_ok() && ledger.read_fence().await.is_ok_and(|now| now != fence) {
        return Err(LedgerError::FenceRaised(ledger.run_id()).into());
    }
    control.finish(outcome.as_ref().ok()).await;
    Ok(log_summary(outcome))
}

/// None when the process is stopped first.
async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<Option<T>> {
    let work = Box::pin(stop.run_until_cancelled(work));
    work.await.transpose()
}

fn dashboard_context(
    ledger: &PostgresLedger,
    queue: &SqsQueue,
    s3: aws_sdk_s3::Client,
    destination_bucket: &str,
) -> DashboardContext {
    DashboardContext {
        pool: ledger.database().clone(),
        queue: Some(queue.clone()),
        own_run: Some(OwnRun {
            ledger: ledger.clone(),
            s3,
            destination_bucket: destination_bucket.to_owned(),
        }),
    }
}

/// The feeder itself does nothing in the buckets and needs no rights there; but a name that is surely
/// wrong is better reported now than by every consumer.
async fn connect_aws(
    migration: &MigrationSettings,
) -> anyhow::Result<(SqsQueue, aws_sdk_s3::Client)> {
    let sdk = aws::load_config().await;
    let queue = SqsQueue::new(&sdk, &migration.queue_url);
    retry_transient(async || check_queue(&queue, &migration.queue_url).await).await?;
    // A presigned URL can hold no header: none is added.
    let (run, options) = (&migration.run, RunOptions::default());
    let buckets = migration
        .stores
        .open_buckets(&sdk, run, &options, BUCKET_TIMEOUT);
    let (source, destination) = buckets.await?;
    source.check_name().await?;
    destination.check_name().await?;
    Ok((queue, destination.client().clone()))
}

async fn open_ledger(
    migration: &MigrationSettings,
    settings: &FeederSettings,
    name: &str,
) -> anyhow::Result<PostgresLedger> {
    let for_dashboard = settings
        .dashboard
        .address
        .map_or(0, |_| DASHBOARD_CONNECTIONS);
    let connections = BASE_CONNECTIONS + for_dashboard + settings.control.connections();
    let pool = ledger::create_pool(migration.database.clone(), connections);
    let open = async || {
        PostgresLedger::open(pool.clone(), &migration.run, name, settings.second_run).await
    };
    let ledger = retry_transient(open).await?;
    if settings.database_limits.replica_lag.is_some() {
        ledger.check_replica_lag().await?;
    }
    Ok(ledger)
}

/// Only a rollback looks again at the copies of what went back.
async fn warn_of_interrupted_rollback(ledger: &PostgresLedger) {
    match ledger.has_interrupted_rollback().await {
        Ok(true) => tracing::warn!(
            "a rollback was cut off before it had looked at all copies again: an image that was replaced meanwhile fails with DestinationConflict; run `feeder rollback --ids` with the row's id then"
        ),
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "rollbacks cannot be looked at"),
    }
}
