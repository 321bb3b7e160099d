//! Removing objects: a thousand a request, each only while it has the ETag it was looked at with.
//!
//! S3 evaluates the condition since September 2025. A store that ignores it removes whatever stands
//! under the key, so whoever calls looks at the object right before.

use std::collections::HashMap;

use async_trait::async_trait;
use aws_sdk_s3::operation::delete_objects::DeleteObjectsOutput;
use aws_sdk_s3::types::{BucketVersioningStatus, Delete, ObjectIdentifier};

use super::{S3Bucket, S3Store, store_error};
use crate::aws::{Answer, Origin};
use crate::object_store::{Copied, ObjectStore, StoreError};
use crate::objects::{Doomed, Fate, Remove, Side, Versioning};
use crate::path_rule::Route;

#[async_trait]
impl Remove for S3Store {
    async fn versioning(&self, side: Side) -> Result<Versioning, StoreError> {
        let S3Bucket { client, name, .. } = self.at(side);
        let asked = client.get_bucket_versioning().bucket(name).send().await;
        let answer = asked.map_err(store_error)?;
        Ok(match answer.status {
            Some(BucketVersioningStatus::Enabled) => Versioning::Enabled,
            Some(_) => Versioning::Suspended,
            None => Versioning::Off,
        })
    }

    async fn remove(&self, side: Side, objects: &[Doomed]) -> Result<Vec<Fate>, StoreError> {
        let (in_batch, alone): (Vec<_>, Vec<_>) = objects
            .iter()
            .partition(|object| fits_into_xml(&object.key));
        let mut fates = self.remove_batch(side, &in_batch).await?;
        for object in alone {
            fates.insert(&object.key, self.remove_one(side, object).await);
        }
        for object in in_batch {
            // The header's form is sure; that of the ETag in a batch is each store's own reading.
            if let Some(Fate::Changed) = fates.get(object.key.as_str()) {
                fates.insert(&object.key, self.remove_one(side, object).await);
            }
        }
        let fate = |object: &Doomed| fates.remove(object.key.as_str()).unwrap_or_else(no_answer);
        Ok(objects.iter().map(fate).collect())
    }

    async fn bring_back(&self, side: Side, route: &Route) -> Result<Copied, StoreError> {
        let (store, route) = match side {
            Side::Destination => (self.clone(), route.clone()),
            Side::Source => (self.turned_round(), turned_round(route)),
        };
        match store.copy(&route).await {
            Err(StoreError::TooLarge) => store.copy_in_parts(&route).await,
            other => other,
        }
    }
}

impl S3Store {
    async fn remove_batch<'a>(
        &self,
        side: Side,
        objects: &[&'a Doomed],
    ) -> Result<HashMap<&'a str, Fate>, StoreError> {
        if objects.is_empty() {
            return Ok(HashMap::new());
        }
        let identifiers = objects.iter().map(|object| identifier(object));
        let identifiers: Result<Vec<_>, _> = identifiers.collect();
        let delete = identifiers.and_then(|all| Delete::builder().set_objects(Some(all)).build());
        let S3Bucket { client, name, .. } = self.at(side);
        let request = client.delete_objects().bucket(name);
        let delete = delete.map_err(|error| StoreError::Permanent {
            code: "RequestNotBuilt".into(),
            message: error.to_string(),
        })?;
        let output = request.delete(delete).send().await.map_err(store_error)?;
        let mut answers = answers(output);
        let fate = |object: &&'a Doomed| {
            let answer = answers.remove(&object.key).unwrap_or_else(no_answer);
            (object.key.as_str(), answer)
        };
        Ok(objects.iter().map(fate).collect())
    }

    async fn remove_one(&self, side: Side, object: &Doomed) -> Fate {
        let S3Bucket { client, name, .. } = self.at(side);
        let request = client.delete_object().bucket(name).key(&object.key);
        match request.if_match(quoted(&object.etag)).send().await {
            Ok(output) => Fate::Removed {
                delete_marker: output.version_id,
            },
            Err(error) => match store_error(error) {
                StoreError::DestinationExists => Fate::Changed,
                StoreError::Permanent { code, .. } if code == "NoSuchKey" => Fate::Removed {
                    delete_marker: None,
                },
                other => Fate::Refused(other),
            },
        }
    }

    /// The same store with source and destination exchanged.
    fn turned_round(&self) -> Self {
        Self::new(
            self.destination.clone(),
            self.source.clone(),
            self.options.clone(),
        )
    }
}

fn turned_round(route: &Route) -> Route {
    Route {
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

fn quoted(etag: &str) -> String {
    format!("\"{etag}\"")
}

fn identifier(object: &Doomed) -> Result<ObjectIdentifier, aws_sdk_s3::error::BuildError> {
    ObjectIdentifier::builder()
        .key(&object.key)
        .e_tag(quoted(&object.etag))
        .build()
}

fn answers(output: DeleteObjectsOutput) -> HashMap<String, Fate> {
    let removed = output.deleted.unwrap_or_default().into_iter();
    let removed = removed.filter_map(|deleted| {
        let delete_marker = deleted.delete_marker_version_id;
        Some((deleted.key?, Fate::Removed { delete_marker }))
    });
    let refused = output.errors.unwrap_or_default().into_iter();
    let refused = refused.filter_map(|error| {
        let code = error.code.unwrap_or_default();
        Some((error.key?, refusal(code, error.message.unwrap_or_default())))
    });
    removed.chain(refused).collect()
}

/// An entry's error has no status of its own.
fn refusal(code: String, message: String) -> Fate {
    let error = store_error(Answer {
        origin: Origin::Service,
        code,
        message,
        status: 0,
    });
    match error {
        StoreError::DestinationExists => Fate::Changed,
        StoreError::Permanent { code, .. } if code == "NoSuchKey" => Fate::Removed {
            delete_marker: None,
        },
        other => Fate::Refused(other),
    }
}

fn no_answer() -> Fate {
    Fate::Refused(StoreError::Transient {
        code: "NoAnswer".into(),
        message: "the answer does not mention this object".into(),
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
        let of = |code: &str| refusal(code.into(), String::new());
        assert!(matches!(of("PreconditionFailed"), Fate::Changed));
        assert!(matches!(of("NoSuchKey"), Fate::Removed { .. }));
        let refused = |code| match of(code) {
            Fate::Refused(error) => error,
            other => panic!("{other:?}"),
        };
        assert!(matches!(refused("AccessDenied"), StoreError::Denied { .. }));
        let transient = refused("InternalError");
        assert!(matches!(transient, StoreError::Transient { .. }));
    }
}
