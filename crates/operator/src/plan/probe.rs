//! One real copy, to a key that no image has, and its removal: the proof that the copies can be made.

use std::time::{Duration, Instant};

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::s3::{copy_source, store_error};
use indicatif::DecimalBytes;

use super::check::PlanCheck;

/// What a copy that cannot be made needs.
const REQUIRED_PERMISSIONS: &str = "s3:GetObject and s3:GetObjectTagging on the source, s3:PutObject and s3:PutObjectTagging on the destination, and the KMS keys of both: deploy/policies/operator.json";

pub(super) struct CopyProbe<'a> {
    pub(super) client: &'a Client,
    pub(super) source: &'a str,
    pub(super) destination: &'a str,
    /// What keys of the destination start with.
    pub(super) prefix: &'a str,
}

#[derive(Default)]
pub(super) struct ProbeOutcome {
    pub(super) copy_duration: Option<Duration>,
    pub(super) uses_kms: bool,
}

impl CopyProbe<'_> {
    /// Copies the object at `key` twice to one probe key, the second time to see the store refuse, and
    /// removes it.
    pub(super) async fn run(
        &self,
        key: &str,
        size: i64,
        checks: &mut Vec<PlanCheck>,
    ) -> ProbeOutcome {
        let probe = format!(
            "{}.bucket-brigade-probe-{:016x}",
            self.prefix,
            fastrand::u64(..)
        );
        let whole = DecimalBytes(u64::try_from(size).unwrap_or(0));
        tracing::info!(
            "one probe object of {whole} is copied to s3://{}/{probe}, and removed again",
            self.destination
        );
        let began = Instant::now();
        if let Err(error) = self.try_copy(key, &probe).await {
            checks.push(PlanCheck::new_failure(
                "copy",
                format!("a copy failed: {error}"),
                REQUIRED_PERMISSIONS,
            ));
            return ProbeOutcome::default();
        }
        let took = began.elapsed();
        let head = self.head_probe(&probe).await;
        checks.push(check_copy(head.as_ref(), size, took));
        checks.push(self.check_conditional_copy(key, &probe).await);
        checks.push(self.remove_probe(&probe).await);
        ProbeOutcome {
            copy_duration: Some(took),
            uses_kms: head.is_ok_and(|head| head.ssekms_key_id().is_some()),
        }
    }

    async fn try_copy(&self, key: &str, probe: &str) -> Result<(), StoreError> {
        let request = self
            .client
            .copy_object()
            .copy_source(copy_source(self.source, key))
            .bucket(self.destination)
            .key(probe)
            .if_none_match("*");
        request.send().await.map(drop).map_err(store_error)
    }

    async fn head_probe(&self, probe: &str) -> Result<HeadObjectOutput, StoreError> {
        let request = self
            .client
            .head_object()
            .bucket(self.destination)
            .key(probe);
        request.send().await.map_err(store_error)
    }

    async fn check_conditional_copy(&self, key: &str, probe: &str) -> PlanCheck {
        match self.try_copy(key, probe).await {
            Err(StoreError::DestinationExists) => PlanCheck::new_ok(
                "condition",
                "a copy onto an object that exists is refused (If-None-Match)",
            ),
            Ok(()) => PlanCheck::new_warning(
                "condition",
                "the store ignores If-None-Match on a copy: consumers look before each copy, and what the application writes between the two would be overwritten",
                "no write of the application under the new prefix while the migration runs",
            ),
            Err(error) => PlanCheck::new_failure(
                "condition",
                format!("a second copy failed: {error}"),
                REQUIRED_PERMISSIONS,
            ),
        }
    }

    async fn remove_probe(&self, probe: &str) -> PlanCheck {
        let request = self
            .client
            .delete_object()
            .bucket(self.destination)
            .key(probe);
        match request.send().await.map_err(store_error) {
            Ok(_) => PlanCheck::new_ok("probe", "removed"),
            Err(error) => PlanCheck::new_warning(
                "probe",
                format!(
                    "s3://{}/{probe} could not be removed: {error}",
                    self.destination
                ),
                "remove it by hand; s3:DeleteObject on the probes' keys",
            ),
        }
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
