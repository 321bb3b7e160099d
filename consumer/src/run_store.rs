//! The store of one run: its buckets, checked, and how copies are made between them.

use aws_config::SdkConfig;
use bucket_brigade_common::ledger::RunSpec;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::s3::{CopyLimits, S3Access, S3Bucket, S3Options, S3Store};
use bucket_brigade_common::preflight::{PreflightError, retry_transient};

use crate::settings::ConsumerSettings;

/// Source and destination, checked.
pub(crate) async fn open_buckets(
    sdk: &SdkConfig,
    settings: &ConsumerSettings,
    run: &RunSpec,
) -> Result<(S3Bucket, S3Bucket), PreflightError> {
    let path_style = settings.migration.force_path_style;
    let access = S3Access::new(sdk, path_style, settings.copy_timeout);
    let region = settings.source_region.as_deref();
    let (source, destination) = access
        .buckets(&run.source_bucket, region, &run.destination_bucket)
        .await?;
    source.check_access().await?;
    destination.check_access().await?;
    Ok((source, destination))
}

/// Finds out, unless the settings say it, whether the store refuses to overwrite on our condition.
pub(crate) async fn open_store(
    source: S3Bucket,
    destination: S3Bucket,
    settings: &ConsumerSettings,
    run: &RunSpec,
) -> anyhow::Result<S3Store> {
    let options = S3Options {
        attributes: settings.attributes.clone(),
        conditional_copy: settings.conditional_copy.unwrap_or(true),
        limits: CopyLimits::default(),
    };
    let store = S3Store::new(source.clone(), destination.clone(), options.clone());
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
    let options = S3Options {
        conditional_copy: false,
        ..options
    };
    Ok(S3Store::new(source, destination, options))
}

fn bucket_write_error(bucket: &str, error: &StoreError) -> PreflightError {
    let setting = "DESTINATION_BUCKET_NAME";
    let problem = format!("cannot write to bucket '{bucket}': {error}");
    match error {
        StoreError::Throttled { .. } | StoreError::Transient { .. } => {
            PreflightError::Unreachable { setting, problem }
        }
        StoreError::Suspect { code, .. } if code == "InvalidStorageClass" => {
            let setting = "STORAGE_CLASS";
            PreflightError::InvalidSetting { setting, problem }
        }
        _ => PreflightError::AccessDenied { setting, problem },
    }
}
