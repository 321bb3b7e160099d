//! From settings to a running pipeline: everything is checked before the first message is taken.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::fleet_control::{Heartbeat, WorkerRole};
use bucket_brigade_common::heartbeat::send_first_heartbeat;
use bucket_brigade_common::http_endpoints::serve_endpoints;
use bucket_brigade_common::ledger::{self, LedgerError, PostgresLedger, RunSpec};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::preflight::{
    BucketCheck, PreflightError, check_bucket, check_queue, retry_transient,
};
use bucket_brigade_common::s3::{CopyLimits, S3Options, S3Store};
use bucket_brigade_common::sqs::SqsQueue;
use bucket_brigade_common::startup::exit_code;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_common::trace::Traces;
use bucket_brigade_common::{aws, exit};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::lease::Leases;
use crate::metrics::ConsumerMetrics;
use crate::pipeline::{Parts, run};
use crate::settings::ConsumerSettings;
use crate::trace::Deliveries;

/// A consumer shares the server's connections with the application and with every other consumer.
const MAX_CONNECTIONS: u32 = 3;

/// How long the last word to the ledger may take.
const DEREGISTER_TIMEOUT: Duration = Duration::from_millis(300);

/// How often the run that the feeder opens is looked for.
const RUN_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Consumes until `stop`.
///
/// # Errors
/// [`PreflightError`] or [`LedgerError`], before anything is touched.
pub async fn start(
    mut settings: ConsumerSettings,
    traces: Traces,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let budget = traces.flush_budget(settings.shutdown_grace);
    settings.shutdown_grace -= budget;
    let ended = Box::pin(consume_until_stopped(settings, stop)).await;
    traces.shut_down(budget).await;
    ended
}

async fn consume_until_stopped(
    settings: ConsumerSettings,
    stop: CancellationToken,
) -> anyhow::Result<u8> {
    let observation = ConsumerMetrics {
        health: Health::default(),
        leases: Leases::new(settings.visibility_timeout),
        counters: Arc::default(),
    };
    let ready = serve_endpoints(settings.metrics_addr, Arc::new(observation.clone())).await?;
    // Nothing is in hand yet. A check under way is left half of the grace, so that the probe can remove
    // its objects; one that does not answer must not keep the process from ending.
    let overdue = async {
        stop.cancelled().await;
        sleep(settings.shutdown_grace / 2).await;
    };
    let parts = tokio::select! {
        parts = prepare_pipeline(&settings, observation, &stop) => ignore_unavailable_if_stopped(parts, &stop)?,
        () = overdue => None,
    };
    let Some(parts) = parts else {
        return Ok(exit::DONE);
    };
    ready.set();
    let fleet_control = Arc::clone(&parts.fleet_control);
    if !run(parts, stop).await {
        tracing::warn!("some messages could not be given back; they reappear by themselves");
    }
    // Who misses this word sees in a few seconds that this process is gone.
    drop(timeout(DEREGISTER_TIMEOUT, fleet_control.deregister()).await);
    Ok(exit::DONE)
}

/// What could not be reached matters to nobody any more once the process is asked to stop.
fn ignore_unavailable_if_stopped(
    parts: anyhow::Result<Option<Parts>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Parts>> {
    match parts {
        Err(error) if stop.is_cancelled() && exit_code(&error) == exit::UNAVAILABLE => {
            tracing::warn!("stopped before it was ready: {error:#}");
            Ok(None)
        }
        other => other,
    }
}

/// Checks everything and puts the parts together; none when the process is stopped meanwhile.
async fn prepare_pipeline(
    settings: &ConsumerSettings,
    observation: ConsumerMetrics,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Parts>> {
    let sdk = aws::load_config().await;
    let migration = &settings.migration;
    let client = |region| {
        let timeout = settings.copy_timeout;
        aws::s3_client(&sdk, migration.force_path_style, timeout, region)
    };
    let (s3, source_s3) = (client(None), client(settings.source_region.as_deref()));
    let queue = SqsQueue::new(aws::sqs_client(&sdk), &migration.queue_url)
        .with_traces(settings.traces.is_on());
    // Nobody sees the ages otherwise: the queue is not asked for them.
    let queue = match settings.metrics_addr {
        Some(_) => queue.with_age_histogram(observation.counters.ages.clone()),
        None => queue,
    };
    let attributes =
        retry_transient(async || check_queue(&queue, &migration.queue_url).await).await?;
    check_buckets(&s3, &source_s3, &migration.run).await?;
    let Some(ledger) = wait_for_run(settings, stop).await? else {
        return Ok(None);
    };
    let store = open_store(s3, source_s3, settings).await?;
    let witness = retry_transient(async || ledger.any_moved_path().await).await?;
    if settings.database_limits.replica_lag.is_some() {
        ledger.check_replica_lag().await?;
    }
    let throttle = Throttle::for_copies(settings.max_concurrency, settings.database_limits);
    let first = Heartbeat::starting(WorkerRole::Consumer);
    send_first_heartbeat(&ledger, &throttle, &first, stop).await;
    if stop.is_cancelled() {
        return Ok(None);
    }
    if let Err(error) = ledger.prune_dead_workers().await {
        tracing::debug!(%error, "processes that have ended stay in the ledger");
    }
    log_start(settings, &ledger);
    let rule = migration.run.rule.clone();
    let (source, destination) = (
        &migration.run.source_bucket,
        &migration.run.destination_bucket,
    );
    Ok(Some(Parts {
        deliveries: Deliveries::new(source, destination),
        witness: witness.and_then(|path| rule.route_for(&path).ok()),
        queue: Arc::new(queue),
        store: Arc::new(store),
        id_type: ledger.id_type(),
        catalog: Arc::new(ledger.clone()),
        rule,
        has_dead_letter_queue: attributes.max_receive_count.is_some(),
        max_concurrency: settings.max_concurrency,
        visibility: settings.visibility_timeout,
        grace: settings.shutdown_grace,
        fleet_control: Arc::new(ledger),
        throttle: Arc::new(throttle),
        observation,
    }))
}

async fn check_buckets(
    s3: &aws_sdk_s3::Client,
    source_s3: &aws_sdk_s3::Client,
    run: &RunSpec,
) -> Result<(), PreflightError> {
    let (source, destination) = (&run.source_bucket, &run.destination_bucket);
    let (of_source, of_destination) = ("SOURCE_BUCKET_NAME", "DESTINATION_BUCKET_NAME");
    retry_transient(async || check_bucket(source_s3, of_source, source, BucketCheck::Access).await)
        .await?;
    retry_transient(async || {
        check_bucket(s3, of_destination, destination, BucketCheck::Access).await
    })
    .await
}

fn log_start(settings: &ConsumerSettings, ledger: &PostgresLedger) {
    let run = &settings.migration.run;
    tracing::info!(
        name = settings.name,
        run = ledger.run_id(),
        table = ledger.table_name(),
        source = run.source_bucket,
        destination = run.destination_bucket,
        max_concurrency = settings.max_concurrency,
        "consuming"
    );
}

/// Waits for the feeder to open the run; none when the process is stopped first.
async fn wait_for_run(
    settings: &ConsumerSettings,
    stop: &CancellationToken,
) -> Result<Option<PostgresLedger>, LedgerError> {
    let migration = &settings.migration;
    let pool = ledger::create_pool(migration.database.clone(), MAX_CONNECTIONS);
    let mut told = false;
    while !stop.is_cancelled() {
        let find =
            async || PostgresLedger::find_run(pool.clone(), &migration.run, &settings.name).await;
        let found = retry_transient(find).await?;
        if found.is_some() {
            return Ok(found);
        }
        if !told {
            tracing::info!("waiting for the feeder to open this run in the ledger");
            told = true;
        }
        tokio::select! {
            biased;
            () = sleep(RUN_POLL_INTERVAL) => {}
            () = stop.cancelled() => {}
        }
    }
    Ok(None)
}

/// Finds out, unless told, whether the store refuses to overwrite on our condition.
async fn open_store(
    client: aws_sdk_s3::Client,
    source_client: aws_sdk_s3::Client,
    settings: &ConsumerSettings,
) -> anyhow::Result<S3Store> {
    let run = &settings.migration.run;
    let options = S3Options {
        source_bucket: run.source_bucket.clone(),
        destination_bucket: run.destination_bucket.clone(),
        storage_class: settings.storage_class.clone(),
        conditional_copy: settings.conditional_copy.unwrap_or(true),
        limits: CopyLimits::default(),
    };
    let store = S3Store::new(client.clone(), source_client.clone(), options.clone());
    if settings.conditional_copy.is_some() {
        return Ok(store);
    }
    let honours = retry_transient(async || {
        let prefix = run.rule.destination_key_prefix();
        let honours = store.honours_conditional_copy(prefix).await;
        honours.map_err(|error| bucket_write_error(&run.destination_bucket, &error))
    })
    .await?;
    if honours {
        return Ok(store);
    }
    tracing::warn!(
        "the store ignores If-None-Match on a copy: a HEAD goes before each copy, and an object that the application writes between the two would be overwritten"
    );
    Ok(S3Store::new(
        client,
        source_client,
        S3Options {
            conditional_copy: false,
            ..options
        },
    ))
}

fn bucket_write_error(bucket: &str, error: &StoreError) -> PreflightError {
    let setting = "DESTINATION_BUCKET_NAME";
    let problem = format!("cannot write to bucket '{bucket}': {error}");
    match error {
        StoreError::Throttled { .. } | StoreError::Transient { .. } => {
            PreflightError::Unreachable { setting, problem }
        }
        _ => PreflightError::AccessDenied { setting, problem },
    }
}
