//! Why an image was not moved.

/// S3's code for an object that is not there.
pub(crate) const NO_SUCH_KEY: &str = "NoSuchKey";

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FailureCause {
    /// A short code: S3's or Postgres's own where there is one.
    pub code: String,
    pub message: String,
    /// Whether trying again unchanged is pointless.
    pub permanent: bool,
}

impl FailureCause {
    pub fn new(code: impl Into<String>, message: impl Into<String>, permanent: bool) -> Self {
        Self {
            code: code.into(),
            message: message.into(),
            permanent,
        }
    }

    pub(super) fn row_locked() -> Self {
        let message =
            "the row stayed locked by another transaction, or a trigger undoes the change";
        Self::new("RowLocked", message, false)
    }

    pub(super) fn source_vanished() -> Self {
        let message = "the source object does not exist; what stands at the destination is not a copy on record";
        Self::new(NO_SUCH_KEY, message, true)
    }

    pub(crate) fn destination_vanished() -> Self {
        let message = "the store refuses the copy because an object stands at the destination, and finds none there";
        Self::new("DestinationVanished", message, false)
    }

    pub(crate) fn panicked(message: String) -> Self {
        Self::new("Panic", message, false)
    }

    /// Not for good: the application may be in the middle of replacing the image, and its row comes next.
    pub(crate) fn destination_conflict(key: &str, difference: &str) -> Self {
        let message = format!("another object stands at '{key}': {difference}");
        Self::new("DestinationConflict", message, false)
    }
}
