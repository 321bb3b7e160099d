//! What spares an object that is another one by now when it is to be removed: the store's own condition, Ceph's date,
//! or a look right before.

use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};

use super::remove::quote_etag;
use super::{S3Bucket, S3Store, bare_etag, store_error};
use crate::object_store::StoreError;
use crate::object_store::objects::{BucketSide, DeleteOutcome, DeleteTarget};

/// RGW's own, which knows no `If-Match` on a delete; a date as in ISO 8601. Source: `rgw_rest_s3.cc`, `RGWDeleteObj_ObjStore_S3`.
const UNMODIFIED_SINCE: &str = "x-amz-delete-if-unmodified-since";

/// The most bytes of a key.
const MAX_KEY_BYTES: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeleteGuard {
    IfMatch,
    UnmodifiedSince,
    /// A HEAD right before.
    HeadBefore,
}

/// A key that does not exist beside one that does, with an ETag that it cannot have.
pub(super) fn probe_target(key: &str) -> DeleteTarget {
    let suffix = format!(".bucket-brigade-probe-{:016x}", fastrand::u64(..));
    let end = key.floor_char_boundary(MAX_KEY_BYTES - suffix.len());
    DeleteTarget {
        key: format!("{}{suffix}", &key[..end]),
        etag: "0".into(),
    }
}

impl S3Store {
    /// First without an object: S3 and most stores answer that already.
    pub(super) async fn probe_deletes(
        &self,
        side: BucketSide,
        beside: &str,
    ) -> Result<DeleteGuard, StoreError> {
        let probe = probe_target(beside);
        if self
            .refuses_delete(side, &probe, DeleteGuard::IfMatch)
            .await?
        {
            return Ok(DeleteGuard::IfMatch);
        }
        for guard in [DeleteGuard::IfMatch, DeleteGuard::UnmodifiedSince] {
            self.put_probe(side, &probe.key).await?;
            if self.refuses_delete(side, &probe, guard).await? {
                self.send_delete(side, &probe.key, None, None).await?;
                return Ok(guard);
            }
        }
        tracing::warn!(
            "the store removes whatever stands under a key: each object is looked at right before, and what the application uploads between the two requests is lost"
        );
        Ok(DeleteGuard::HeadBefore)
    }

    /// Removes an object if it still has its ETag.
    pub(super) async fn delete_guarded(
        &self,
        side: BucketSide,
        object: &DeleteTarget,
        guard: DeleteGuard,
    ) -> DeleteOutcome {
        let removed = match guard {
            DeleteGuard::IfMatch => {
                let etag = quote_etag(&object.etag);
                self.send_delete(side, &object.key, Some(etag), None).await
            }
            DeleteGuard::UnmodifiedSince | DeleteGuard::HeadBefore => {
                let modified = match self.bucket_at(side).head(&object.key).await {
                    Ok(None) => Err(StoreError::permanent("NoSuchKey", "")),
                    Ok(Some(head))
                        if bare_etag(head.e_tag().unwrap_or_default()) != object.etag =>
                    {
                        Err(StoreError::DestinationExists)
                    }
                    Ok(Some(head)) => Ok(head.last_modified),
                    Err(error) => Err(error),
                };
                let is_known = guard == DeleteGuard::UnmodifiedSince;
                match modified.map(|at| at.filter(|_| is_known)) {
                    Ok(at) => self.send_delete(side, &object.key, None, at).await,
                    Err(error) => Err(error),
                }
            }
        };
        match removed {
            Ok(delete_marker) => DeleteOutcome::Deleted { delete_marker },
            Err(StoreError::DestinationExists) => DeleteOutcome::Changed,
            Err(error) if error.code() == "NoSuchKey" => DeleteOutcome::Deleted {
                delete_marker: None,
            },
            Err(error) => DeleteOutcome::Refused(error),
        }
    }

    async fn refuses_delete(
        &self,
        side: BucketSide,
        probe: &DeleteTarget,
        guard: DeleteGuard,
    ) -> Result<bool, StoreError> {
        let (etag, since) = match guard {
            DeleteGuard::IfMatch => (Some(quote_etag(&probe.etag)), None),
            _ => (None, Some(DateTime::from_secs(0))),
        };
        match self.send_delete(side, &probe.key, etag, since).await {
            Ok(_) | Err(StoreError::Suspect { .. }) => Ok(false),
            Err(StoreError::DestinationExists) => Ok(true),
            Err(error) if error.code() == "NoSuchKey" => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Returns the delete marker that hides it.
    async fn send_delete(
        &self,
        side: BucketSide,
        key: &str,
        if_match: Option<String>,
        unmodified_since: Option<DateTime>,
    ) -> Result<Option<String>, StoreError> {
        let S3Bucket { client, name, .. } = self.bucket_at(side);
        let request = client.delete_object().bucket(name).key(key);
        let request = request.set_if_match(if_match).customize();
        // A HEAD's date knows no fractions: whatever was written in that second is the object itself.
        let since = unmodified_since.map(|at| DateTime::from_secs(at.secs() + 1));
        let since = since.and_then(|at| at.fmt(DateTimeFormat::DateTime).ok());
        let request = request.mutate_request(move |request| {
            if let Some(since) = &since {
                request
                    .headers_mut()
                    .insert(UNMODIFIED_SINCE, since.clone());
            }
        });
        let removed = request.send().await.map_err(store_error)?;
        Ok(removed.version_id)
    }

    async fn put_probe(&self, side: BucketSide, key: &str) -> Result<(), StoreError> {
        let S3Bucket { client, name, .. } = self.bucket_at(side);
        let request = client.put_object().bucket(name).key(key);
        let request = request.body(ByteStream::from_static(b"a probe of bucket-brigade"));
        request.send().await.map(drop).map_err(store_error)
    }
}
