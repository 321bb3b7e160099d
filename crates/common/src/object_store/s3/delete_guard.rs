//! What spares an object that is another one by now when it is to be removed: the store's own condition, Ceph's date,
//! or a look right before.

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};

use super::S3Store;
use super::copy::RequestHeaders;
use super::probe::PROBE_BODY;
use crate::object_store::StoreError;
use crate::object_store::objects::{BucketSide, DeleteOutcome, DeleteTarget};
use crate::path_rule::MAX_KEY_BYTES;

/// RGW's own, which knows no `If-Match` on a delete; a date as in ISO 8601. Source: `rgw_rest_s3.cc`, `RGWDeleteObj_ObjStore_S3`.
const UNMODIFIED_SINCE: &str = "x-amz-delete-if-unmodified-since";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DeleteGuard {
    IfMatch,
    UnmodifiedSince,
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
        let attributes = self.options.attributes.for_probe();
        // Of the other bucket it is not known what its policy wants.
        let headers: RequestHeaders = match side {
            BucketSide::Source => Vec::new(),
            BucketSide::Destination => attributes.headers().collect(),
        };
        let bucket = self.bucket_at(side);
        for guard in [DeleteGuard::IfMatch, DeleteGuard::UnmodifiedSince] {
            bucket
                .put(&probe.key, "", headers.clone(), PROBE_BODY)
                .await?;
            if self.refuses_delete(side, &probe, guard).await? {
                bucket.delete(&probe.key, Vec::new()).await?;
                return Ok(guard);
            }
        }
        // Ceph confirms a delete that it did not carry out where a bucket's versions are suspended.
        bucket.delete(&probe.key, Vec::new()).await?;
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
        let removed = async {
            let mut headers = Vec::new();
            if guard == DeleteGuard::IfMatch {
                headers = if_match(&object.etag);
            } else {
                let head = self.bucket_at(side).head(&object.key).await?;
                let head = head.ok_or_else(|| StoreError::permanent("NoSuchKey", ""))?;
                if head.etag() != object.etag {
                    return Err(StoreError::DestinationExists);
                }
                if guard == DeleteGuard::UnmodifiedSince
                    && let Some(modified) = head.last_modified()
                {
                    // Its date knows no fractions: whatever was written in that second is the object itself.
                    headers = unmodified_since(modified.secs() + 1);
                }
            }
            self.bucket_at(side).delete(&object.key, headers).await
        };
        match removed.await {
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
        let headers = match guard {
            DeleteGuard::IfMatch => if_match(&probe.etag),
            _ => unmodified_since(1),
        };
        match self.bucket_at(side).delete(&probe.key, headers).await {
            Ok(_) | Err(StoreError::Suspect { .. }) => Ok(false),
            Err(StoreError::DestinationExists) => Ok(true),
            Err(error) if error.code() == "NoSuchKey" => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn if_match(etag: &str) -> RequestHeaders {
    vec![("if-match".into(), format!("\"{etag}\""))]
}

fn unmodified_since(seconds: i64) -> RequestHeaders {
    let since = DateTime::from_secs(seconds).fmt(DateTimeFormat::DateTime);
    let headers = since.map(|since| (UNMODIFIED_SINCE.into(), since));
    headers.into_iter().collect()
}
