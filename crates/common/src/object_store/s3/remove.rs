//! Removing objects: a thousand a request, each only while it has the ETag it was looked at with.
//!
//! S3 evaluates the condition since September 2025. For a store that ignores it, [`super::delete_guard`] finds
//! what else spares an object that is another one by now.

use std::collections::HashMap;

use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::types::{BucketVersioningStatus, Delete, ObjectIdentifier};
use futures::future::join_all;

use super::delete_guard::{DeleteGuard, probe_target};
use super::errors::NOT_MENTIONED;
use super::{S3Store, store_error};
use crate::aws::{ErrorOrigin, RequestError};
use crate::object_store::StoreError;
use crate::object_store::objects::{
    BucketSide, BucketVersioning, DeleteOutcome, DeleteTarget, RemovalDeadline,
};
use crate::permissions::s3_arn;

/// Objects removed at a time where each takes a request of its own.
const MAX_SINGLE_DELETES: usize = 32;

/// Objects removed in one request before it is known that the store evaluates the ETags in it.
const MAX_UNPROVEN_BATCH: usize = 10;

impl S3Store {
    /// Deletes up to [`MAX_DELETE_OBJECTS`](crate::object_store::objects::MAX_DELETE_OBJECTS) objects, each only while
    /// it has its ETag. The outcomes are in the order of the objects.
    pub async fn delete_objects(
        &self,
        side: BucketSide,
        objects: &[DeleteTarget],
        deadline: RemovalDeadline,
    ) -> Result<Vec<DeleteOutcome>, StoreError> {
        let Some(first) = objects.first() else {
            return Ok(Vec::new());
        };
        let guard = self.find_delete_guard(side, &first.key).await?;
        let mut outcomes = HashMap::new();
        let sent = self.send_deletes(side, objects, guard, deadline, &mut outcomes);
        let missing = match sent.await {
            Err(error) if outcomes.is_empty() => return Err(error),
            // Some are gone by now.
            Err(error) => DeleteOutcome::Refused(error),
            Ok(()) => missing_outcome(),
        };
        let outcome_of = |object: &DeleteTarget| {
            let outcome = outcomes.remove(object.key.as_str());
            outcome.unwrap_or_else(|| missing.clone())
        };
        Ok(objects.iter().map(outcome_of).collect())
    }

    /// Finds out how objects beside `key` can be removed, unless that is known: where it is forbidden, this says so
    /// before anything is asked to go.
    pub async fn prepare_deletes(&self, side: BucketSide, key: &str) -> Result<(), StoreError> {
        self.find_delete_guard(side, key).await.map(drop)
    }

    async fn find_delete_guard(
        &self,
        side: BucketSide,
        key: &str,
    ) -> Result<DeleteGuard, StoreError> {
        let probe = || self.probe_deletes(side, key);
        self.delete_guard.get_or_try_init(probe).await.copied()
    }

    /// Whether the bucket keeps what is removed from it.
    pub async fn bucket_versioning(
        &self,
        side: BucketSide,
    ) -> Result<BucketVersioning, StoreError> {
        let bucket = self.bucket_at(side);
        let request = bucket.client.get_bucket_versioning().bucket(&bucket.name);
        let asked = request.send().await;
        let versioning = asked.map_err(|error| bucket.refused("", error))?;
        Ok(match versioning.status {
            Some(BucketVersioningStatus::Enabled) => BucketVersioning::Enabled,
            Some(_) => BucketVersioning::Suspended,
            None => BucketVersioning::Off,
        })
    }

    async fn send_deletes<'a>(
        &self,
        side: BucketSide,
        objects: &'a [DeleteTarget],
        guard: DeleteGuard,
        deadline: RemovalDeadline,
        outcomes: &mut HashMap<&'a str, DeleteOutcome>,
    ) -> Result<(), StoreError> {
        if guard == DeleteGuard::IfMatch {
            self.delete_in_batches(side, objects, deadline, outcomes)
                .await?;
        }
        let left = objects.iter();
        let left: Vec<_> = left
            .filter(|object| !outcomes.contains_key(object.key.as_str()))
            .collect();
        for chunk in left.chunks(MAX_SINGLE_DELETES) {
            deadline.check()?;
            let sent = chunk
                .iter()
                .map(|object| self.delete_guarded(side, object, guard));
            let keys = chunk.iter().map(|object| object.key.as_str());
            outcomes.extend(keys.zip(join_all(sent).await));
        }
        Ok(())
    }

    /// Those that a batch can hold, as long as the store evaluates the ETags in one: the first holds a key that does
    /// not exist, with an ETag.
    async fn delete_in_batches<'a>(
        &self,
        side: BucketSide,
        objects: &'a [DeleteTarget],
        deadline: RemovalDeadline,
        outcomes: &mut HashMap<&'a str, DeleteOutcome>,
    ) -> Result<(), StoreError> {
        let in_batch = objects.iter().filter(|object| fits_into_xml(&object.key));
        let mut in_batch: &[_] = &in_batch.collect::<Vec<_>>();
        while let Some(object) = in_batch.first() {
            let is_known = self.batches_are_guarded.get().copied();
            let size = match is_known {
                Some(false) => return Ok(()),
                Some(true) => in_batch.len(),
                None => in_batch.len().min(MAX_UNPROVEN_BATCH),
            };
            let (batch, rest) = in_batch.split_at(size);
            let probe = probe_target(&object.key);
            let probe = is_known.is_none().then_some(&probe);
            deadline.check()?;
            let sent = self.send_delete_objects(side, batch, probe).await;
            // A store that knows no such request, or wants another checksum than the SDK's.
            if let Err(StoreError::Suspect { .. }) = sent {
                self.batches_are_guarded.get_or_init(|| false);
                return Ok(());
            }
            outcomes.extend(sent?);
            in_batch = rest;
        }
        // The header's form is sure; that of the ETag in a batch is each store's own reading.
        for object in objects {
            if let Some(DeleteOutcome::Changed) = outcomes.get(object.key.as_str()) {
                outcomes.remove(object.key.as_str());
            }
        }
        Ok(())
    }

    async fn send_delete_objects<'a>(
        &self,
        side: BucketSide,
        objects: &[&'a DeleteTarget],
        probe: Option<&DeleteTarget>,
    ) -> Result<HashMap<&'a str, DeleteOutcome>, StoreError> {
        let identifiers = objects.iter().copied().chain(probe);
        let identifiers: Result<Vec<_>, _> = identifiers.map(object_identifier).collect();
        let delete = identifiers.and_then(|all| Delete::builder().set_objects(Some(all)).build());
        let bucket = self.bucket_at(side);
        let request = bucket.client.delete_objects().bucket(&bucket.name);
        let delete =
            delete.map_err(|error| StoreError::permanent("RequestNotBuilt", error.to_string()))?;
        let output = request.delete(delete).send().await;
        let output = output.map_err(|error| bucket.refused("", error))?;
        if let Some(probe) = probe {
            let mut refused = output.errors().iter();
            let is_guarded = refused.any(|error| error.key() == Some(&probe.key));
            self.batches_are_guarded.get_or_init(|| is_guarded);
        }
        let mut outcomes = delete_outcomes(output, &bucket.name);
        let outcome_of = |object: &&'a DeleteTarget| {
            let outcome = outcomes.remove(&object.key).unwrap_or_else(missing_outcome);
            (object.key.as_str(), outcome)
        };
        Ok(objects.iter().map(outcome_of).collect())
    }
}

/// XML 1.0 has no form for most control characters, nor for two noncharacters.
fn fits_into_xml(key: &str) -> bool {
    !key.chars()
        .any(|character| character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}'))
}

fn object_identifier(
    object: &DeleteTarget,
) -> Result<ObjectIdentifier, aws_sdk_s3::error::BuildError> {
    ObjectIdentifier::builder()
        .key(&object.key)
        .e_tag(format!("\"{}\"", object.etag))
        .build()
}

fn delete_outcomes(output: DeleteObjectsOutput, bucket: &str) -> HashMap<String, DeleteOutcome> {
    let removed = output.deleted.unwrap_or_default().into_iter();
    let removed = removed.filter_map(|deleted| {
        let delete_marker = deleted.delete_marker_version_id;
        Some((deleted.key?, DeleteOutcome::Deleted { delete_marker }))
    });
    let refused = output.errors.unwrap_or_default().into_iter();
    let refused = refused.filter_map(|error| {
        let code = error.code.unwrap_or_default();
        let (key, message) = (error.key?, error.message.unwrap_or_default());
        let outcome = classify_entry_error(code, message, &s3_arn(bucket, &key));
        Some((key, outcome))
    });
    removed.chain(refused).collect()
}

/// An entry's error has no status of its own.
fn classify_entry_error(code: String, message: String, arn: &str) -> DeleteOutcome {
    let error = RequestError {
        origin: ErrorOrigin::Service,
        code,
        message,
        status: 0,
    };
    let error = store_error(error.explain_denial("DeleteObjects", arn, None));
    match error {
        StoreError::DestinationExists => DeleteOutcome::Changed,
        StoreError::Permanent { code, .. } if code == "NoSuchKey" => DeleteOutcome::Deleted {
            delete_marker: None,
        },
        other => DeleteOutcome::Refused(other),
    }
}

fn missing_outcome() -> DeleteOutcome {
    DeleteOutcome::Refused(StoreError::transient(
        NOT_MENTIONED,
        "the response does not mention this object",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_xml_cannot_hold_go_alone() {
        for key in ["a b+c%20.png", "é/#?&<>'\"", "a//../b/"] {
            assert!(fits_into_xml(key), "{key}");
        }
        for key in ["\u{1}", "a\nb", "a\rb", "\u{7f}", "\u{ffff}"] {
            assert!(!fits_into_xml(key), "{key:?}");
        }
    }

    #[test]
    fn an_entry_s_error_is_sorted_by_its_code() {
        let of = |code: &str| classify_entry_error(code.into(), String::new(), "arn");
        assert!(matches!(of("PreconditionFailed"), DeleteOutcome::Changed));
        assert!(matches!(of("NoSuchKey"), DeleteOutcome::Deleted { .. }));
        let refused = |code| match of(code) {
            DeleteOutcome::Refused(error) => error,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused("AccessDenied"), StoreError::Denied { .. }));
        let transient = refused("InternalError");
        assert!(matches!(transient, StoreError::Transient { .. }));
    }
}
