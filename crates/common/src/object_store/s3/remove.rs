//! Removing objects: a thousand a request, each only while it has the ETag it was looked at with.
//!
//! S3 evaluates the condition since September 2025. A store that ignores it removes whatever stands
//! under the key, so the caller looks at the object right before.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::types::{BucketVersioningStatus, Delete, ObjectIdentifier};
use futures::future::join_all;

use super::{S3Bucket, S3Store, store_error};
use crate::aws::{ErrorOrigin, RequestError};
use crate::object_store::objects::{
    BucketSide, BucketVersioning, DeleteOutcome, DeleteTarget, ObjectRemover,
};
use crate::object_store::{CopiedObject, ObjectStore, StoreError};
use crate::path_rule::MoveRoute;

/// Objects removed at a time where each takes a request of its own.
const MAX_SINGLE_DELETES: usize = 32;

#[async_trait]
impl ObjectRemover for S3Store {
    async fn delete_objects(
        &self,
        side: BucketSide,
        objects: &[DeleteTarget],
    ) -> Result<Vec<DeleteOutcome>, StoreError> {
        let (in_batch, single): (Vec<_>, Vec<_>) = objects
            .iter()
            .partition(|object| fits_into_xml(&object.key));
        let (mut outcomes, single) = match self.send_delete_objects(side, &in_batch).await {
            // A store that knows no such request, or wants another checksum than the SDK's.
            Err(StoreError::Suspect { .. }) => (HashMap::new(), objects.iter().collect()),
            outcomes => (outcomes?, single),
        };
        for chunk in single.chunks(MAX_SINGLE_DELETES) {
            let sent = chunk
                .iter()
                .map(|object| self.send_delete_object(side, object));
            let keys = chunk.iter().map(|object| object.key.as_str());
            outcomes.extend(keys.zip(join_all(sent).await));
        }
        for object in in_batch {
            // The header's form is sure; that of the ETag in a batch is each store's own reading.
            if let Some(DeleteOutcome::Changed) = outcomes.get(object.key.as_str()) {
                outcomes.insert(&object.key, self.send_delete_object(side, object).await);
            }
        }
        let outcome_of = |object: &DeleteTarget| {
            outcomes
                .remove(object.key.as_str())
                .unwrap_or_else(missing_outcome)
        };
        Ok(objects.iter().map(outcome_of).collect())
    }
}

impl S3Store {
    /// Whether the bucket keeps what is removed from it.
    pub async fn bucket_versioning(
        &self,
        side: BucketSide,
    ) -> Result<BucketVersioning, StoreError> {
        let S3Bucket { client, name, .. } = self.bucket_at(side);
        let asked = client.get_bucket_versioning().bucket(name).send().await;
        let versioning = asked.map_err(store_error)?;
        Ok(match versioning.status {
            Some(BucketVersioningStatus::Enabled) => BucketVersioning::Enabled,
            Some(_) => BucketVersioning::Suspended,
            None => BucketVersioning::Off,
        })
    }

    /// Copies an object that was removed on one side back from the other, if there is none.
    pub async fn restore_object(
        &self,
        side: BucketSide,
        route: &MoveRoute,
    ) -> Result<CopiedObject, StoreError> {
        let (store, route) = match side {
            BucketSide::Destination => (self.clone(), route.clone()),
            BucketSide::Source => (self.with_sides_swapped(), reverse_route(route)),
        };
        match store.copy(&route).await {
            Err(StoreError::TooLarge) => store.copy_multipart(&route).await,
            other => other,
        }
    }

    async fn send_delete_objects<'a>(
        &self,
        side: BucketSide,
        objects: &[&'a DeleteTarget],
    ) -> Result<HashMap<&'a str, DeleteOutcome>, StoreError> {
        if objects.is_empty() {
            return Ok(HashMap::new());
        }
        let identifiers = objects.iter().map(|object| object_identifier(object));
        let identifiers: Result<Vec<_>, _> = identifiers.collect();
        let delete = identifiers.and_then(|all| Delete::builder().set_objects(Some(all)).build());
        let S3Bucket { client, name, .. } = self.bucket_at(side);
        let request = client.delete_objects().bucket(name);
        let delete = delete.map_err(|error| StoreError::Permanent {
            code: "RequestNotBuilt".into(),
            message: error.to_string(),
        })?;
        let output = request.delete(delete).send().await.map_err(store_error)?;
        let mut outcomes = delete_outcomes(output);
        let outcome_of = |object: &&'a DeleteTarget| {
            let outcome = outcomes.remove(&object.key).unwrap_or_else(missing_outcome);
            (object.key.as_str(), outcome)
        };
        Ok(objects.iter().map(outcome_of).collect())
    }

    async fn send_delete_object(&self, side: BucketSide, object: &DeleteTarget) -> DeleteOutcome {
        let S3Bucket { client, name, .. } = self.bucket_at(side);
        let request = client.delete_object().bucket(name).key(&object.key);
        match request.if_match(quote_etag(&object.etag)).send().await {
            Ok(output) => DeleteOutcome::Deleted {
                delete_marker: output.version_id,
            },
            Err(error) => match store_error(error) {
                StoreError::DestinationExists => DeleteOutcome::Changed,
                StoreError::Permanent { code, .. } if code == "NoSuchKey" => {
                    DeleteOutcome::Deleted {
                        delete_marker: None,
                    }
                }
                other => DeleteOutcome::Refused(other),
            },
        }
    }

    /// The same store with source and destination exchanged.
    fn with_sides_swapped(&self) -> Self {
        Self::new(
            self.destination.clone(),
            self.source.clone(),
            self.options.clone(),
        )
    }
}

fn reverse_route(route: &MoveRoute) -> MoveRoute {
    MoveRoute {
        old_path: route.new_path.clone(),
        new_path: route.old_path.clone(),
        source_key: route.destination_key.clone(),
        destination_key: route.source_key.clone(),
    }
}

/// XML 1.0 has no form for most control characters, nor for two noncharacters.
fn fits_into_xml(key: &str) -> bool {
    !key.chars()
        .any(|character| character.is_control() || matches!(character, '\u{fffe}' | '\u{ffff}'))
}

fn quote_etag(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn object_identifier(
    object: &DeleteTarget,
) -> Result<ObjectIdentifier, aws_sdk_s3::error::BuildError> {
    ObjectIdentifier::builder()
        .key(&object.key)
        .e_tag(quote_etag(&object.etag))
        .build()
}

fn delete_outcomes(output: DeleteObjectsOutput) -> HashMap<String, DeleteOutcome> {
    let removed = output.deleted.unwrap_or_default().into_iter();
    let removed = removed.filter_map(|deleted| {
        let delete_marker = deleted.delete_marker_version_id;
        Some((deleted.key?, DeleteOutcome::Deleted { delete_marker }))
    });
    let refused = output.errors.unwrap_or_default().into_iter();
    let refused = refused.filter_map(|error| {
        let code = error.code.unwrap_or_default();
        Some((
            error.key?,
            classify_entry_error(code, error.message.unwrap_or_default()),
        ))
    });
    removed.chain(refused).collect()
}

/// An entry's error has no status of its own.
fn classify_entry_error(code: String, message: String) -> DeleteOutcome {
    let error = store_error(RequestError {
        origin: ErrorOrigin::Service,
        code,
        message,
        status: 0,
    });
    match error {
        StoreError::DestinationExists => DeleteOutcome::Changed,
        StoreError::Permanent { code, .. } if code == "NoSuchKey" => DeleteOutcome::Deleted {
            delete_marker: None,
        },
        other => DeleteOutcome::Refused(other),
    }
}

fn missing_outcome() -> DeleteOutcome {
    DeleteOutcome::Refused(StoreError::Transient {
        code: "NoAnswer".into(),
        message: "the response does not mention this object".into(),
    })
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
        let of = |code: &str| classify_entry_error(code.into(), String::new());
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
