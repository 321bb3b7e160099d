//! One real copy, to a key that no image has, and its removal: the proof that the copies can be made.

use std::time::Duration;

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::s3::{CopyMethod, S3Store};
use bucket_brigade_common::preflight::PreflightError;
use indicatif::DecimalBytes;

use super::check::PlanCheck;

/// What a copy that cannot be made needs.
const REQUIRED_PERMISSIONS: &str = "s3:GetObject and s3:GetObjectTagging on the source, s3:PutObject and s3:PutObjectTagging on the destination, and the KMS keys of both: deploy/policies/operator.json";

#[derive(Default)]
pub(super) struct ProbeOutcome {
    pub(super) copy_duration: Option<Duration>,
    pub(super) uses_kms: bool,
}

/// Copies the object at `key` to a probe key, and removes it.
pub(super) async fn probe_copy(
    store: &S3Store,
    prefix: &str,
    (key, size): (&str, i64),
    checks: &mut Vec<PlanCheck>,
) -> ProbeOutcome {
    let probe = store.copy_probe(prefix);
    let whole = DecimalBytes(u64::try_from(size).unwrap_or(0));
    let location = probe.location();
    tracing::info!("one probe object of {whole} is copied to {location}, and removed again");
    let copied = probe.copy(key).await;
    let took = match copied {
        Ok(took) => took,
        Err(error) => {
            let finding = format!("a copy failed: {error}");
            checks.push(PlanCheck::new_failure(
                "copy",
                finding,
                REQUIRED_PERMISSIONS,
            ));
            return ProbeOutcome::default();
        }
    };
    let head = probe.head().await;
    checks.push(check_copy(head.as_ref(), size, took));
    checks.push(match probe.remove().await {
        Ok(()) => PlanCheck::new_ok("probe", "removed"),
        Err(error) => PlanCheck::new_warning(
            "probe",
            format!("{location} could not be removed: {error}"),
            "remove it by hand; s3:DeleteObject on the probes' keys",
        ),
    });
    ProbeOutcome {
        copy_duration: Some(took),
        uses_kms: head.is_ok_and(|head| head.ssekms_key_id().is_some()),
    }
}

/// By which way the bytes will go, and whether the store refuses to overwrite.
/// `may_copy` where the store would copy if it honoured the condition.
pub(super) fn check_method(opened: &Result<S3Store, PreflightError>, may_copy: bool) -> PlanCheck {
    let store = match opened {
        Ok(store) => store,
        Err(error @ PreflightError::InvalidSetting { .. }) => {
            return PlanCheck::from_preflight_error("condition", error);
        }
        Err(error) => {
            let finding = format!("a copy failed: {error}");
            return PlanCheck::new_failure("copy", finding, REQUIRED_PERMISSIONS);
        }
    };
    match (store.method(), store.is_conditional()) {
        (CopyMethod::Server, true) => PlanCheck::new_ok(
            "condition",
            "a copy onto an object that exists is refused (If-None-Match): the store copies",
        ),
        (CopyMethod::Stream, true) if may_copy => PlanCheck::new_warning(
            "condition",
            "the store ignores If-None-Match on a copy and honours it on an upload: the bytes go through the consumers",
            "give them bandwidth, or a store that honours it",
        ),
        (CopyMethod::Stream, true) => PlanCheck::new_ok(
            "condition",
            "an upload onto an object that exists is refused (If-None-Match), and the bytes go through the consumers",
        ),
        (_, false) => PlanCheck::new_warning(
            "condition",
            "the store ignores If-None-Match: consumers look before each copy, and what the application writes between the two would be overwritten",
            "no write of the application under the new prefix while the migration runs",
        ),
    }
}

fn check_copy(
    head: Result<&HeadObjectOutput, &StoreError>,
    size: i64,
    took: Duration,
) -> PlanCheck {
    let took = took.as_millis();
    match head {
        Ok(head) if head.content_length() == Some(size) => {
            let key = match head.ssekms_key_id() {
                Some(key) => format!(", encrypted with {key}"),
                None => String::new(),
            };
            let whole = DecimalBytes(u64::try_from(size).unwrap_or(0));
            PlanCheck::new_ok("copy", format!("{whole} in {took} ms{key}"))
        }
        Ok(head) => PlanCheck::new_failure(
            "copy",
            format!(
                "the copy has {} bytes, its source {size}",
                head.content_length().unwrap_or(0)
            ),
            "the store is none that copies can be made in",
        ),
        Err(error) => PlanCheck::new_failure(
            "copy",
            format!("made, but it cannot be read: {error}"),
            "s3:GetObject on the destination, and kms:Decrypt on its key",
        ),
    }
}
