//! `CopyObject` without the SDK's layers, once the SDK has shown how.
//!
//! The SDK makes each request anew out of plugins, interceptors and endpoint rules, which costs more than
//! all the rest of an image. For one bucket the outcome is always the same but for key, copy source and
//! condition. So the SDK makes the first copy, and the [`Pattern`] of its request is kept: address, signing
//! scope, headers, and the SDK's own HTTP client, credentials and clock. The copies that follow fill it in.
//!
//! A request that no pattern can be read of, such as one that is not signed with Signature Version 4, leaves
//! the copies to the SDK. So does an answer that blames what all copies share, once: the pattern is
//! forgotten, and the SDK shows it anew.

mod answer;
mod pattern;
#[cfg(test)]
mod signature;
#[cfg(test)]
mod tests;

use std::sync::{Arc, PoisonError, RwLock};

use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;

pub(super) use pattern::Pattern;

/// One copy, as its request tells it.
#[derive(Debug, Clone)]
pub(super) struct Order<'a> {
    /// The destination key.
    pub key: &'a str,
    /// `bucket/key` of the source, percent-encoded.
    pub source: String,
    /// When the copy may be written.
    pub condition: Condition<'a>,
    /// The storage class of the copy; none for the bucket's default.
    pub storage_class: Option<&'a str>,
}

/// When a copy may be written.
#[derive(Debug, Clone, Copy)]
pub(super) enum Condition<'a> {
    /// Only where there is no object.
    Absent,
    /// Only over the object with this `ETag`.
    Over(&'a str),
    /// The store knows no conditions.
    None,
}

/// What the SDK has shown, shared by all clones of a store.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown(Arc<RwLock<Option<Arc<Pattern>>>>);

impl Shown {
    pub(super) fn pattern(&self) -> Option<Arc<Pattern>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Has the SDK show it anew.
    pub(super) fn forget(&self) {
        self.keep(None);
    }

    fn keep(&self, pattern: Option<Pattern>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = pattern.map(Arc::new);
    }
}

/// Reads the pattern of a copy that the SDK is about to send.
#[derive(Debug)]
pub(super) struct Watch {
    shown: Shown,
    key: String,
}

impl Watch {
    /// Watches the copy to this key.
    pub(super) fn new(shown: &Shown, key: &str) -> Self {
        Self {
            shown: shown.clone(),
            key: key.to_owned(),
        }
    }
}

impl Intercept for Watch {
    fn name(&self) -> &'static str {
        "CopyPattern"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        settings: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let pattern = Pattern::of(context.request(), &self.key, components, settings);
        self.shown.keep(pattern);
        Ok(())
    }
}
