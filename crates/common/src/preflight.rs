//! Checks before the first row is touched, shared by both binaries: the queue and the buckets.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::types::RequestPayer;
use thiserror::Error;
use tokio::time::Instant;

use crate::aws::signer::TIME_SKEWED;
use crate::aws::{ErrorOrigin, NOT_SENT_CODE, RequestError};
use crate::exit;
use crate::permissions::s3_arn;
use crate::queue::sqs::SqsQueue;
use crate::queue::{MessageQueue, OWN_DEAD_LETTERS, PROBE_HANDLE, QueueAttributes, QueueError};
use crate::retry::{Backoff, TransientError, retry};

/// Why a run cannot start.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// A setting names something that is not there, or not what it should be.
    #[error("{setting}: {problem}")]
    InvalidSetting {
        setting: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    #[error("{setting}: {problem}")]
    AccessDenied {
        setting: &'static str,
        problem: String,
    },
    #[error("{setting}: {problem}")]
    Unreachable {
        setting: &'static str,
        problem: String,
    },
}

impl PreflightError {
    pub fn invalid(setting: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self::InvalidSetting { setting, problem }
    }

    pub fn denied(setting: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self::AccessDenied { setting, problem }
    }

    pub fn unreachable(setting: &'static str, problem: impl Into<String>) -> Self {
        let problem = problem.into();
        Self::Unreachable { setting, problem }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InvalidSetting { .. } => exit::INVALID_SETTINGS,
            Self::AccessDenied { .. } => exit::NO_PERMISSION,
            Self::Unreachable { .. } => exit::UNAVAILABLE,
        }
    }
}

/// How often a check is repeated before what it looks for counts as out of reach: about five seconds, in
/// which a Postgres restarts.
const MAX_RETRIES: usize = 5;

/// Where each attempt meets silence one is enough.
const MAX_RETRY_TIME: Duration = Duration::from_secs(20);

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(300),
    max_delay: Duration::from_secs(2),
};

impl TransientError for PreflightError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }
}

impl TransientError for QueueError {
    fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Makes a check again while the service does not respond: a process may be started while it restarts, and
/// an orchestrator starts the process again less soon.
pub async fn retry_transient<T, E: TransientError>(
    check: impl AsyncFn() -> Result<T, E>,
) -> Result<T, E> {
    let began = Instant::now();
    let is_transient = |error: &E| {
        let is_transient = error.is_transient() && began.elapsed() < MAX_RETRY_TIME;
        if is_transient {
            tracing::info!("retrying: {error}");
        }
        is_transient
    };
    retry(
        RETRY_BACKOFF.delays().take(MAX_RETRIES),
        is_transient,
        check,
    )
    .await
}

/// A request to the queue that could not be sent, as the setting that is missing.
pub fn unsent_error(error: &QueueError) -> Option<PreflightError> {
    match error {
        QueueError::Refused { code, message, .. } if code == NOT_SENT_CODE => {
            Some(no_credentials(message))
        }
        _ => None,
    }
}

/// Before the first request, what is most often missing is not ours to name more precisely: the SDK
/// looks for credentials and region in a dozen places.
fn no_credentials(message: &str) -> PreflightError {
    PreflightError::invalid(
        "AWS_REGION, AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        format!("no request can be sent: {message}"),
    )
}

/// How strictly a bucket is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketCheck {
    /// This process works with the bucket.
    Access,
    /// It does not; only a name that is surely wrong is reported.
    NameOnly,
}

/// Checks that the queue is there, and warns when poison messages would be received for ever.
pub async fn check_queue(
    queue: &dyn MessageQueue,
    url: &str,
) -> Result<QueueAttributes, PreflightError> {
    let setting = "QUEUE_URL";
    let refused = |error: QueueError| {
        unsent_error(&error).unwrap_or_else(|| match error {
            _ if error.is_about_missing_queue() => {
                let problem = format!("there is no queue '{url}' in this account and region");
                PreflightError::invalid(setting, problem)
            }
            QueueError::Refused { .. } => {
                PreflightError::denied(setting, format!("'{url}': {error}"))
            }
            QueueError::Unavailable { .. } => {
                PreflightError::unreachable(setting, format!("'{url}': {error}"))
            }
        })
    };
    let attributes = queue.queue_attributes().await.map_err(refused)?;
    if attributes.is_own_dead_letter_queue() {
        let problem = format!("'{url}': {OWN_DEAD_LETTERS}; give it a dead-letter queue");
        return Err(PreflightError::invalid(setting, problem));
    }
    if attributes.max_receive_count.is_none() {
        tracing::warn!(
            queue = url,
            "the queue has no redrive policy: messages that cannot be processed are received again until they expire; give it a dead-letter queue"
        );
    }
    Ok(attributes)
}

/// Makes sure that messages can be deleted: those of moved rows would come again until they are dead letters.
pub async fn check_delete_right(queue: &SqsQueue, url: &str) -> Result<(), PreflightError> {
    match queue.probe_delete().await {
        Err(error) if error.is_denied() => Err(PreflightError::denied(
            "QUEUE_URL",
            format!("'{url}': {error} (sqs:DeleteMessage is needed)"),
        )),
        _ => Ok(()),
    }
}

/// Warns when leases could not be renewed and failed messages not be released. The handle is no message's.
pub async fn warn_without_visibility_right(queue: &dyn MessageQueue) {
    let nothing = (PROBE_HANDLE.to_owned(), Duration::ZERO);
    match queue.change_visibility(&[nothing]).await {
        Err(error) if error.is_denied() => tracing::warn!(
            "{error}: messages that take long are received again, and failed ones wait out their visibility timeout; allow sqs:ChangeMessageVisibility"
        ),
        _ => {}
    }
}

/// Checks that a bucket is there and, with [`BucketCheck::Access`], that we may list it.
pub async fn check_bucket(
    client: &Client,
    setting: &'static str,
    bucket: &str,
    need: BucketCheck,
) -> Result<(), PreflightError> {
    let Err(error) = client.head_bucket().bucket(bucket).send().await else {
        return Ok(());
    };
    let mut error = RequestError::from(error);
    // A HEAD's answer has no body that could name the cause.
    let list = || client.list_objects_v2().bucket(bucket).max_keys(1);
    if need == BucketCheck::Access
        && [400, 403].contains(&error.status)
        && let Err(named) = list().send().await
    {
        let paying = list().request_payer(RequestPayer::Requester);
        if paying.send().await.is_ok() {
            return Err(requester_pays(setting, bucket));
        }
        error = named.into();
    }
    let RequestError {
        origin,
        code,
        message,
        status,
    } = error;
    Err(match (origin, status) {
        (ErrorOrigin::Service, 404) => {
            PreflightError::invalid(setting, format!("there is no bucket '{bucket}'"))
        }
        _ if need == BucketCheck::NameOnly => return Ok(()),
        (ErrorOrigin::Local, _) => no_credentials(&message),
        (ErrorOrigin::Service, 301) => PreflightError::invalid(
            setting,
            format!(
                "bucket '{bucket}' is in another region than AWS_REGION says (SOURCE_REGION is for the source's, when the two differ): {message}"
            ),
        ),
        (ErrorOrigin::Service, 403) if code != "AccessDenied" && code != TIME_SKEWED => {
            PreflightError::denied(
                setting,
                format!("access to bucket '{bucket}' is refused: {code}: {message}"),
            )
        }
        (ErrorOrigin::Service, 403) if code != TIME_SKEWED => PreflightError::denied(
            setting,
            format!(
                "access to bucket '{bucket}' is denied (s3:ListBucket on {} is needed; without it a missing image looks like a forbidden one)",
                s3_arn(bucket, "")
            ),
        ),
        _ => PreflightError::unreachable(
            setting,
            format!("bucket '{bucket}' cannot be reached: {code}: {message}"),
        ),
    })
}

fn requester_pays(setting: &'static str, bucket: &str) -> PreflightError {
    let problem = format!(
        "the requester pays for bucket '{bucket}': start the feeder with REQUEST_PAYER=requester, or work with credentials of the bucket's owner"
    );
    PreflightError::denied(setting, problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_respond_is_retried_and_a_wrong_setting_is_not() {
        for (is_down, succeeds_at, made_at_end) in [
            (true, MAX_RETRIES + 1, MAX_RETRIES + 1),
            (true, usize::MAX, MAX_RETRIES + 1),
            (false, usize::MAX, 1),
        ] {
            let made = Cell::new(0);
            let checked = retry_transient(async || {
                made.set(made.get() + 1);
                if made.get() < succeeds_at {
                    return Err(if is_down {
                        PreflightError::unreachable("QUEUE_URL", "no response")
                    } else {
                        PreflightError::invalid("QUEUE_URL", "no such queue")
                    });
                }
                Ok(())
            });
            assert_eq!(checked.await.is_ok(), succeeds_at < usize::MAX);
            assert_eq!(made.get(), made_at_end);
        }
    }
}
