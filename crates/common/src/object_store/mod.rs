//! The object store, as a trait of only the calls used, and its S3 implementation in [`s3`].

pub mod objects;
pub mod s3;

use async_trait::async_trait;
use thiserror::Error;

use crate::aws::exchange::{NO_CONNECTION, NOT_CONNECTED, TIMED_OUT};
use crate::object_store::objects::BucketSide;
use crate::path_rule::{MoveRoute, PathRule};

/// Our codes for an answer that lacks what each of S3's has.
pub(crate) const NO_ETAG: &str = "NoETag";
pub(crate) const NO_LENGTH: &str = "NoLength";

/// Our code for a refusal by condition that the destination does not bear out.
const DESTINATION_VANISHED: &str = "DestinationVanished";

/// A copy the store has proven by an `ETag` in its answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CopiedObject {
    /// The copy's `ETag`, without quotes.
    pub etag: String,
    /// The object's size in bytes, where it became known on the way.
    pub size_bytes: Option<i64>,
    /// Whether it stood there already, and may be another's.
    pub is_found: bool,
    /// When one that was found was written, by the store's clock, in seconds since 1970.
    pub modified_seconds: Option<i64>,
    /// Whether it is an earlier copy, and stands without its source.
    pub is_source_gone: bool,
}

impl CopiedObject {
    /// One that was made just now.
    pub fn new(etag: impl Into<String>) -> Self {
        Self {
            etag: etag.into(),
            size_bytes: None,
            is_found: false,
            modified_seconds: None,
            is_source_gone: false,
        }
    }
}

/// What stands at the destination, compared with the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationState {
    Empty,
    /// The source's bytes and headers: a copy of ours.
    Same(CopiedObject),
    /// An object without a source: our copy, if its ETag is the recorded one.
    WithoutSource(CopiedObject),
    /// Something else, with a word on what differs.
    Different(String),
}

/// Why a call to the object store did not succeed, named by what to do about it; with the service's error code and
/// message.
#[derive(Debug, Clone, Error)]
pub enum StoreError {
    /// Asked too fast: slow down, then try again.
    #[error("throttled ({code}): {message}")]
    Throttled { code: String, message: String },
    /// Broken for the moment: try again.
    #[error("{code}: {message}")]
    Transient {
        /// The service's error code, or a name for what the transport met.
        code: String,
        message: String,
    },
    /// An object stands at the destination already.
    #[error("an object exists at the destination")]
    DestinationExists,
    /// Larger than one `CopyObject` may copy.
    #[error("the object is larger than one CopyObject may copy")]
    TooLarge,
    /// This object cannot be copied, however often it is tried: a code that can be about nothing else.
    #[error("{code}: {message}")]
    Permanent { code: String, message: String },
    /// Not allowed: this object's own trouble, or everybody's.
    #[error("{code}: {message}")]
    Denied { code: String, message: String },
    /// A refusal that is in no list: this object's own trouble, or a setting that the store does not know.
    /// It counts against the object only when another has been copied since the object first failed.
    #[error("{code}: {message}")]
    Suspect { code: String, message: String },
    /// No call can succeed until an operator repairs it: credentials, a missing bucket.
    #[error("{code}: {message}")]
    Systemic { code: String, message: String },
}

impl StoreError {
    pub fn transient(code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self::Transient { code, message }
    }

    pub fn permanent(code: &str, message: impl Into<String>) -> Self {
        let (code, message) = (code.to_owned(), message.into());
        Self::Permanent { code, message }
    }

    /// A moment's race with the application that removes what stood there; or a store that refuses whatever the
    /// condition.
    pub(crate) fn destination_vanished() -> Self {
        let message = "the store refuses to write because an object stands at the destination, and finds none there";
        Self::transient(DESTINATION_VANISHED, message)
    }

    /// Whether it says that the store has responded.
    pub fn is_response(&self) -> bool {
        ![TIMED_OUT, NO_CONNECTION, NOT_CONNECTED].contains(&self.code())
    }

    /// Whether it is no answer of S3's: it has neither a code of S3's nor what S3 always says.
    pub fn is_foreign(&self) -> bool {
        let is_ours = ["UnknownError", "NotFound", NO_ETAG, NO_LENGTH].contains(&self.code());
        is_ours && matches!(self, Self::Suspect { .. })
    }

    /// The code to record and to count by.
    pub fn code(&self) -> &str {
        match self {
            Self::Throttled { code, .. }
            | Self::Transient { code, .. }
            | Self::Permanent { code, .. }
            | Self::Denied { code, .. }
            | Self::Suspect { code, .. }
            | Self::Systemic { code, .. } => code,
            Self::DestinationExists => "DestinationExists",
            Self::TooLarge => "TooLarge",
        }
    }
}

#[async_trait]
pub trait ObjectStore: Send + Sync {
    /// One server-side copy that never overwrites, with everything a browser or CDN sees of it.
    ///
    /// # Errors
    /// [`StoreError::DestinationExists`] when there really is an object at the destination already;
    /// [`StoreError::TooLarge`] when [`copy_multipart`](Self::copy_multipart) must do it.
    async fn copy(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError>;

    /// The same for an object too large for one call.
    async fn copy_multipart(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError>;

    /// Compares what stands at the destination with the source.
    async fn compare_objects(&self, route: &MoveRoute) -> Result<DestinationState, StoreError>;

    /// Reads and writes as a copy does: from one of these source objects to a key of the consumer's own; where they
    /// are gone or large, between objects of its own. All are removed again. Returns whether an object of the source
    /// was read.
    async fn check_rights(
        &self,
        rule: &PathRule,
        source_keys: &[String],
    ) -> Result<bool, StoreError>;

    /// Reads the first bytes of these source objects where a copy's bytes go through this process; one that has them, or
    /// is refused, is enough.
    ///
    /// # Errors
    /// All of them are silent.
    async fn check_source(&self, _source_keys: &[String]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Whose store does not respond at all, not even with a refusal.
    async fn silent_side(&self) -> Option<BucketSide>;

    /// The name of one of two stores; none where one holds both buckets.
    fn store_name(&self, _side: BucketSide) -> Option<String> {
        None
    }
}
