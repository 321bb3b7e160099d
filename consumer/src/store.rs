//! The store of a run: its two buckets, checked, and the way of the bytes between them.

use aws_config::SdkConfig;
use bucket_brigade_common::ledger::{RunOptions, RunSpec};
use bucket_brigade_common::object_store::s3::{MethodRequest, S3Store};
use bucket_brigade_common::preflight::PreflightError;

use crate::settings::ConsumerSettings;

/// Before a feeder has opened the run.
pub(crate) async fn check_buckets(
    sdk: &SdkConfig,
    settings: &ConsumerSettings,
    run: &RunSpec,
) -> Result<(), PreflightError> {
    let stores = &settings.migration.stores;
    let buckets = stores.open_buckets(sdk, run, &run.options, settings.copy_timeout);
    let (source, destination) = buckets.await?;
    source.check_access().await?;
    destination.check_access().await
}

pub(crate) async fn open_store(
    sdk: &SdkConfig,
    settings: &ConsumerSettings,
    run: &RunSpec,
    options: &RunOptions,
) -> Result<S3Store, PreflightError> {
    let stores = &settings.migration.stores;
    let buckets = stores.open_buckets(sdk, run, options, settings.copy_timeout);
    let (source, destination) = buckets.await?;
    source.check_access().await?;
    destination.check_access().await?;
    let request = MethodRequest {
        options,
        stores,
        conditional_copy: settings.conditional_copy,
        prefix: run.rule.destination_key_prefix(),
        source_prefix: run.rule.source_key_prefix(),
    };
    let store = Box::pin(request.open(source, destination)).await?;
    tracing::info!(method = %store.method(), "copying");
    Ok(store)
}
