//! Can objects be copied at all? Asked when copies fail, by a copy to a key that no image has. It is
//! unconditional: a refusal by condition would prove no right to write.

use super::copy::{CopyCondition, CopyRequest};
use super::probe::CopyProbe;
use super::{S3Store, copy_source};
use crate::object_store::StoreError;
use crate::object_store::objects::BucketSide;
use crate::path_rule::{MoveRoute, PathRule};

impl S3Store {
    pub(super) async fn copy_for_rights(
        &self,
        rule: &PathRule,
        copied: Option<&MoveRoute>,
    ) -> Result<(), StoreError> {
        if let Some(copied) = copied {
            let source = copy_source(&self.source.name, &copied.source_key);
            match self.copy_onto_probe(rule, source).await {
                // It has gone since, or cannot be copied in one request.
                Err(StoreError::Permanent { .. } | StoreError::TooLarge) => {}
                other => return other,
            }
        }
        self.copy_own_object(rule).await
    }

    /// The right to read the source is shown by a key that is not there: without it the store answers
    /// 403, and not 404.
    async fn copy_own_object(&self, rule: &PathRule) -> Result<(), StoreError> {
        let missing = self.copy_probe(rule.source_key_prefix());
        self.stat_object(BucketSide::Source, &missing.key).await?;
        let own = self.copy_probe(rule.destination_key_prefix());
        own.put(b"a probe of bucket-brigade").await?;
        let source = copy_source(&self.destination.name, &own.key);
        let copied = self.copy_onto_probe(rule, source).await;
        remove_quietly(&own).await;
        copied
    }

    async fn copy_onto_probe(&self, rule: &PathRule, source: String) -> Result<(), StoreError> {
        let probe = self.copy_probe(rule.destination_key_prefix());
        let request = CopyRequest {
            key: &probe.key,
            source,
            condition: CopyCondition::None,
            attributes: &self.options.attributes,
        };
        let checked = match self.send_copy(&request).await {
            Ok(_) => probe.head().await.map(drop),
            Err(error) => Err(error),
        };
        // The copy may have been made although the answer says otherwise.
        if let Ok(()) | Err(StoreError::Transient { .. }) = checked {
            remove_quietly(&probe).await;
        }
        checked
    }
}

/// While the store is down this fails again and again: no warning for each.
async fn remove_quietly(probe: &CopyProbe<'_>) {
    if let Err(error) = probe.remove().await {
        let location = probe.location();
        tracing::debug!(location, %error, "could not remove a probe object");
    }
}
