//! From settings to a running pipeline: everything is checked before the first message is taken.

use std::sync::Arc;
use std::time::Duration;

use aws_config::SdkConfig;
use bucket_brigade_common::http_endpoints::serve_endpoints;
use bucket_brigade_common::ledger::{LedgerError, RunSelection};
use bucket_brigade_common::preflight::{
    check_delete_right, check_queue, retry_transient, warn_without_visibility_right,
};
use bucket_brigade_common::queue::sqs::SqsQueue;
use bucket_brigade_common::startup::exit_code;
use bucket_brigade_common::throttle::Throttle;
use bucket_brigade_common::trace::Traces;
use bucket_brigade_common::{aws, exit};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::context::{ConsumerContext, STANDSTILL_MARGIN};
use crate::metrics::ConsumerStatus;
use crate::open_files::raise_limit;
use crate::pipeline::{Pipeline, ServedRuns};
use crate::runs::{BUCKETS, LedgerRunLoader, LoadStep, Runs, within_limit};
use crate::settings::ConsumerSettings;

/// How often a run that the feeder opens is looked for.
const RUN_POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Consumes until `stop`.
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
    raise_limit(settings.max_concurrency);
    let throttle = Throttle::for_copies(settings.max_concurrency, settings.database_limits);
    let context = ConsumerContext {
        standstill_limit: settings.copy_timeout + STANDSTILL_MARGIN,
        ..ConsumerContext::new(throttle, settings.visibility_timeout, stop.clone())
    };
    let runs = Runs::new(settings.max_concurrency);
    let status = ConsumerStatus {
        context: context.clone(),
        runs: runs.clone(),
    };
    let ready = serve_endpoints(settings.metrics_addr, Arc::new(status)).await?;
    // Nothing is in hand yet. A check in progress is left half of the grace period, so that the probe can
    // remove its objects; one that does not end must not keep the process from ending.
    let overdue = async {
        stop.cancelled().await;
        sleep(settings.shutdown_grace / 2).await;
    };
    let pipeline = tokio::select! {
        pipeline = prepare_pipeline(&settings, &context, runs) => ignore_unavailable_if_stopped(pipeline, &stop)?,
        () = overdue => None,
    };
    let Some(pipeline) = pipeline else {
        return Ok(exit::DONE);
    };
    ready.set();
    tracing::info!(
        queue = settings.migration.queue_url,
        "ready: receiving messages"
    );
    if !pipeline.run().await? {
        tracing::warn!("some messages could not be released; they reappear by themselves");
    }
    Ok(exit::DONE)
}

/// What could not be reached does not matter any more once the process is asked to stop.
fn ignore_unavailable_if_stopped(
    pipeline: anyhow::Result<Option<Pipeline>>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Pipeline>> {
    match pipeline {
        Err(error) if stop.is_cancelled() && exit_code(&error) == exit::UNAVAILABLE => {
            tracing::warn!("stopped before it was ready: {error:#}");
            Ok(None)
        }
        other => other,
    }
}

/// Checks everything; none when the process is stopped meanwhile.
async fn prepare_pipeline(
    settings: &ConsumerSettings,
    context: &ConsumerContext,
    runs: Runs,
) -> anyhow::Result<Option<Pipeline>> {
    let sdk = aws::load_config().await;
    let queue_url = &settings.migration.queue_url;
    let queue = open_queue(&sdk, settings, context);
    let attributes = retry_transient(async || check_queue(&queue, queue_url).await).await?;
    check_delete_right(&queue, queue_url).await?;
    warn_without_visibility_right(&queue).await;
    let queue = queue.with_dead_letters(&attributes);
    let loader = LedgerRunLoader::new(settings.clone(), sdk, context.stop.clone());
    let Some(served) = Box::pin(find_served_runs(loader)).await? else {
        return Ok(None);
    };
    Ok(Some(Pipeline {
        queue: Arc::new(queue),
        served,
        runs,
        max_receive_count: attributes.max_receive_count,
        visibility_timeout: settings.visibility_timeout,
        shutdown_grace: settings.shutdown_grace,
        context: context.clone(),
    }))
}

/// The run that the settings name, checked; without, all that the ledger has. None at a stop.
async fn find_served_runs(loader: LedgerRunLoader) -> anyhow::Result<Option<ServedRuns>> {
    let (settings, stop) = (&loader.settings, &loader.stop);
    if let RunSelection::Ledger(None) = settings.migration.run {
        let find = async || Ok(loader.list_runs().await?.filter(|runs| !runs.is_empty()));
        let Some(found) = poll_for_run(find, stop).await? else {
            return Ok(None);
        };
        let is_only = found.len() == 1;
        for run in found.iter().filter(|run| is_only || !run.is_finished) {
            settings.migration.ensure_given(&run.to_spec()?)?;
        }
        return Ok(Some(ServedRuns::All(Arc::new(loader))));
    }
    let Some(spec) = poll_for_run(async || loader.find_selected().await, stop).await? else {
        return Ok(None);
    };
    settings.migration.ensure_given(&spec)?;
    let check = async |step: &LoadStep| {
        step.set(BUCKETS);
        Ok(Box::pin(loader.open_buckets(&spec, &spec.options)).await?)
    };
    // A run that is open has options that they are opened with once more.
    if let Err(error) = within_limit(check).await
        && !matches!(loader.find_ledger(&spec).await, Ok(Some(_)))
    {
        return Err(error);
    }
    let find = async || loader.find_ledger(&spec).await;
    let Some(ledger) = poll_for_run(find, stop).await? else {
        return Ok(None);
    };
    let prepare = async |step: &LoadStep| Box::pin(loader.prepare(&spec, ledger, step)).await;
    let parts = within_limit(prepare).await?;
    Ok(parts.map(|parts| ServedRuns::One(Box::new(parts))))
}

fn open_queue(sdk: &SdkConfig, settings: &ConsumerSettings, context: &ConsumerContext) -> SqsQueue {
    let queue = SqsQueue::new(sdk, &settings.migration.queue_url);
    // Only `/metrics` shows the ages: the queue is not asked for them otherwise.
    match settings.metrics_addr {
        Some(_) => queue.with_age_histogram(context.counters.ages.clone()),
        None => queue,
    }
}

/// Waits for the feeder to open the run; none when the process is stopped first.
async fn poll_for_run<T>(
    find: impl AsyncFn() -> Result<Option<T>, LedgerError>,
    stop: &CancellationToken,
) -> Result<Option<T>, LedgerError> {
    let mut is_logged = false;
    while !stop.is_cancelled() {
        let found = retry_transient(&find).await?;
        if found.is_some() {
            return Ok(found);
        }
        if !is_logged {
            tracing::info!("waiting for the feeder to open this run in the ledger");
            is_logged = true;
        }
        stop.run_until_cancelled(sleep(RUN_POLL_INTERVAL)).await;
    }
    Ok(None)
}
