//! Checks before the first row is touched, shared by both binaries: the queue and the buckets.

use std::time::Duration;

use aws_sdk_s3::Client;
use thiserror::Error;
use tokio::time::sleep;

use crate::aws::{ErrorOrigin, NOT_SENT_CODE, RequestError};
use crate::backoff::Backoff;
use crate::exit;
use crate::queue::{MessageQueue, QueueAttributes, QueueError};

/// Why a run cannot start.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// A setting names something that is not there, or not what it should be.
    #[error("{setting}: {problem}")]
    InvalidSetting {
        /// The setting.
        setting: &'static str,
        /// What is wrong, and the mend.
        problem: String,
    },
    /// A right is missing.
    #[error("{setting}: {problem}")]
    AccessDenied {
        /// The setting.
        setting: &'static str,
        /// Which right.
        problem: String,
    },
    /// The service does not answer.
    #[error("{setting}: {problem}")]
    Unreachable {
        /// The setting.
        setting: &'static str,
        /// What happened.
        problem: String,
    },
}

impl PreflightError {
    /// The exit code that tells this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::InvalidSetting { .. } => exit::INVALID_SETTINGS,
            Self::AccessDenied { .. } => exit::NO_PERMISSION,
            Self::Unreachable { .. } => exit::UNAVAILABLE,
        }
    }
}

/// How often a check is made before what it looks for counts as out of reach: about five seconds, in
/// which a Postgres restarts.
const MAX_ATTEMPTS: u32 = 6;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(300),
    max_delay: Duration::from_secs(2),
};

/// An error that may be over in a moment.
pub trait TransientError: std::error::Error {
    /// Whether the service merely did not answer; whatever it answered is final.
    fn is_transient(&self) -> bool;
}

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

/// Makes a check again while it meets nothing worse than a blink of the service: a process may be
/// started in the middle of one, and whoever starts it again does so less soon.
///
/// # Errors
/// The check's own.
pub async fn retry_transient<T, E: TransientError>(
    check: impl AsyncFn() -> Result<T, E>,
) -> Result<T, E> {
    for tries in 1..MAX_ATTEMPTS {
        match check().await {
            Err(error) if error.is_transient() => {
                tracing::info!("trying again: {error}");
                sleep(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())).await;
            }
            other => return other,
        }
    }
    check().await
}

/// Before the first request, what is most often missing is not ours to name more precisely: the SDK
/// looks for credentials and region in a dozen places.
fn no_credentials(message: &str) -> PreflightError {
    PreflightError::InvalidSetting {
        setting: "AWS_REGION, AWS_PROFILE or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        problem: format!("no request can be sent: {message}"),
    }
}

/// How strictly a bucket is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketCheck {
    /// This process works with the bucket.
    Access,
    /// It does not; only a name that is surely wrong is worth a word.
    NameOnly,
}

/// Checks that the queue is there, and warns when poison messages would circle in it.
///
/// # Errors
/// [`PreflightError`] naming `QUEUE_URL`.
pub async fn check_queue(
    queue: &dyn MessageQueue,
    url: &str,
) -> Result<QueueAttributes, PreflightError> {
    let setting = "QUEUE_URL";
    let attributes = queue
        .queue_attributes()
        .await
        .map_err(|error| match error {
            QueueError::Refused { code, .. }
                if code.contains("NonExistent") || code.contains("DoesNotExist") =>
            {
                let problem = format!("there is no queue '{url}' in this account and region");
                PreflightError::InvalidSetting { setting, problem }
            }
            QueueError::Refused { code, message, .. } if code == NOT_SENT_CODE => {
                no_credentials(&message)
            }
            QueueError::Refused { .. } => PreflightError::AccessDenied {
                setting,
                problem: format!("'{url}': {error} (sqs:GetQueueAttributes is needed)"),
            },
            QueueError::Unavailable { .. } => PreflightError::Unreachable {
                setting,
                problem: format!("'{url}': {error}"),
            },
        })?;
    if attributes.max_receive_count.is_none() {
        tracing::warn!(
            queue = url,
            "the queue has no redrive policy: messages that cannot be processed will circle until they expire; give it a dead-letter queue"
        );
    }
    Ok(attributes)
}

/// Checks that a bucket is there and, with [`Need::Use`], that we may look into it.
///
/// # Errors
/// [`PreflightError`] naming the setting.
pub async fn check_bucket(
    client: &Client,
    setting: &'static str,
    bucket: &str,
    need: BucketCheck,
) -> Result<(), PreflightError> {
    let Err(error) = client.head_bucket().bucket(bucket).send().await else {
        return Ok(());
    };
    let RequestError {
        origin,
        code,
        message,
        status,
    } = error.into();
    let at_fault = match (origin, status) {
        (ErrorOrigin::Service, 404) => {
            let problem = format!("there is no bucket '{bucket}'");
            return Err(PreflightError::InvalidSetting { setting, problem });
        }
        _ if need == BucketCheck::NameOnly => return Ok(()),
        (ErrorOrigin::Local, _) => no_credentials(&message),
        (ErrorOrigin::Service, 301) => {
            let problem = format!(
                "bucket '{bucket}' is in another region than AWS_REGION says (SOURCE_REGION tells the source's, when the two differ)"
            );
            return Err(PreflightError::InvalidSetting { setting, problem });
        }
        (ErrorOrigin::Service, 403) => PreflightError::AccessDenied {
            setting,
            problem: format!(
                "access to bucket '{bucket}' is denied (s3:ListBucket is needed; without it a missing image looks like a forbidden one)"
            ),
        },
        _ => PreflightError::Unreachable {
            setting,
            problem: format!("bucket '{bucket}' cannot be reached: {code}: {message}"),
        },
    };
    Err(at_fault)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn unreachable() -> PreflightError {
        PreflightError::Unreachable {
            setting: "QUEUE_URL",
            problem: "no answer".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_transient_error_is_retried() {
        let made = Cell::new(0);
        let check = async || {
            made.set(made.get() + 1);
            if made.get() < MAX_ATTEMPTS {
                Err(unreachable())
            } else {
                Ok(made.get())
            }
        };
        assert_eq!(retry_transient(check).await.unwrap(), MAX_ATTEMPTS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_setting_is_not_retried() {
        let made = Cell::new(0);
        let check = async || -> Result<(), PreflightError> {
            made.set(made.get() + 1);
            let (setting, problem) = ("QUEUE_URL", "no such queue".into());
            Err(PreflightError::InvalidSetting { setting, problem })
        };
        assert!(retry_transient(check).await.is_err());
        assert_eq!(made.get(), 1);
        let check = async || {
            made.set(made.get() + 1);
            Err::<(), PreflightError>(unreachable())
        };
        assert!(retry_transient(check).await.is_err());
        assert_eq!(made.get(), 1 + MAX_ATTEMPTS);
    }
}
