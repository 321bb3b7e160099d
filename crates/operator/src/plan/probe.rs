//! One real copy, to a key that no image has, and its removal: the proof that the copies can be made.

use std::fmt::Display;
use std::time::Duration;

use bucket_brigade_common::ledger::RunSpec;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::s3::{CopyMethod, ObjectHead, S3Bucket, S3Store};
use bucket_brigade_common::preflight::PreflightError;
use indicatif::DecimalBytes;

use super::check::PlanChecks;
use super::estimate::ObjectFacts;
use super::ownership::{check_application, check_owner};

/// What a copy that cannot be made needs.
const REQUIRED_PERMISSIONS: &str = "s3:GetObject and s3:GetObjectTagging on the source, s3:PutObject and s3:PutObjectTagging on the destination, and the KMS keys of both: deploy/policies/operator.json (with COPY_ACL copy-acl.json, too)";

pub(super) struct ProbeRequest<'a> {
    pub(super) run: &'a RunSpec,
    pub(super) destination: &'a S3Bucket,
    /// The destination, by the application's profile.
    pub(super) application: Option<&'a S3Bucket>,
    pub(super) source_key: &'a str,
    pub(super) size_bytes: i64,
}

pub(super) async fn probe_copy(
    store: &S3Store,
    request: &ProbeRequest<'_>,
    objects: &mut ObjectFacts,
    checks: &mut PlanChecks,
) {
    let probe = store.copy_probe(request.run.rule.destination_key_prefix());
    let (whole, location) = (format_size(request.size_bytes), probe.location());
    tracing::info!("one probe object of {whole} is copied to {location}, to be removed afterwards");
    let took = match probe.copy(request.source_key).await {
        Ok(took) => took,
        Err(error) => return add_refused_copy(&error, request.run, checks),
    };
    objects.copy_duration = Some(took);
    let head = probe.head().await;
    let key = head.as_ref().ok().and_then(ObjectHead::kms_key);
    objects.uses_kms |= key.is_some();
    check_copy(head.as_ref(), request.size_bytes, took, checks);
    let acl = request.run.options.copy_acl.as_deref();
    check_owner(request.destination, probe.key(), acl, checks).await;
    if let Some(application) = request.application {
        check_application(application, probe.key(), checks).await;
    }
    match probe.remove().await {
        Ok(()) => checks.ok("probe", "removed"),
        Err(error) => checks.warn(
            "probe",
            format!("{location} could not be removed: {error}"),
            "remove it by hand; s3:DeleteObject on the probes' keys",
        ),
    }
}

fn add_refused_copy(error: &StoreError, run: &RunSpec, checks: &mut PlanChecks) {
    match (error, run.options.copy_attributes()) {
        (StoreError::Suspect { .. }, Some((_, given))) => {
            let mend = format!("the store may not support {given}");
            checks.fail("copy", format!("a copy failed: {error}"), mend);
        }
        _ => add_failed_copy(error, checks),
    }
}

fn add_failed_copy(error: &impl Display, checks: &mut PlanChecks) {
    let finding = format!("a copy failed: {error}");
    checks.fail("copy", finding, REQUIRED_PERMISSIONS);
}

fn format_size(bytes: i64) -> DecimalBytes {
    DecimalBytes(u64::try_from(bytes).unwrap_or(0))
}

/// By which way the bytes will go, and whether the store refuses to overwrite.
/// `may_copy` where the store would copy if it honoured the condition.
pub(super) fn check_method(
    opened: &Result<S3Store, PreflightError>,
    may_copy: bool,
    checks: &mut PlanChecks,
) {
    let store = match opened {
        Ok(store) => store,
        Err(error @ PreflightError::InvalidSetting { .. }) => {
            return checks.fail_by("condition", error);
        }
        Err(error) => return add_failed_copy(error, checks),
    };
    match (store.method(), store.is_conditional()) {
        (CopyMethod::Server, true) => checks.ok(
            "condition",
            "a copy onto an object that exists is refused (If-None-Match): the store copies",
        ),
        (CopyMethod::Stream, true) if may_copy => checks.warn(
            "condition",
            "the store ignores If-None-Match on a copy and honours it on an upload: the bytes go through the consumers",
            "give them bandwidth, or a store that honours it",
        ),
        (CopyMethod::Stream, true) => checks.ok(
            "condition",
            "an upload onto an object that exists is refused (If-None-Match), and the bytes go through the consumers",
        ),
        (_, false) => checks.warn(
            "condition",
            "the store ignores If-None-Match: consumers look before each copy, and what the application writes between the two would be overwritten",
            "no write of the application under the new prefix while the migration runs",
        ),
    }
}

fn check_copy(
    head: Result<&ObjectHead, &StoreError>,
    size: i64,
    took: Duration,
    checks: &mut PlanChecks,
) {
    let (whole, took) = (format_size(size), took.as_millis());
    match head {
        Ok(head) if head.size_bytes == size => {
            let key = head.kms_key();
            let key = key.map_or_else(String::new, |key| format!(", encrypted with {key}"));
            checks.ok("copy", format!("{whole} in {took} ms{key}"));
        }
        Ok(head) => {
            let copied = head.size_bytes;
            checks.fail(
                "copy",
                format!("the copy has {copied} bytes, its source {size}"),
                "the store is none that copies can be made in",
            );
        }
        Err(error) => checks.fail(
            "copy",
            format!("made, but it cannot be read: {error}"),
            "s3:GetObject on the destination, and kms:Decrypt on its key",
        ),
    }
}
