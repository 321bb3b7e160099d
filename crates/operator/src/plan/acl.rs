//! Who may read the images now, and whether the copies will be as open: S3 carries no ACL over.

use aws_sdk_s3::types::{ObjectCannedAcl, Permission};
use bucket_brigade_common::object_store::s3::S3Bucket;

use super::check::PlanCheck;

/// Objects whose ACLs are read.
const MAX_READ_ACLS: usize = 5;

/// The group that is everyone. Source: Amazon S3 User Guide, "Access control list overview".
const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

/// Warns when the sources are public and the copies would not be. None where the ACLs cannot be read: that
/// right is not needed otherwise.
pub(super) async fn check_acls(
    source: &S3Bucket,
    keys: impl Iterator<Item = &str>,
    acl: Option<&ObjectCannedAcl>,
) -> Option<PlanCheck> {
    let mut public = 0;
    for key in keys.take(MAX_READ_ACLS) {
        public += u32::from(is_public(source, key).await?);
    }
    let is_private = acl.is_none_or(|acl| !acl.as_str().starts_with("public-"));
    (public > 0 && is_private).then(|| {
        PlanCheck::new_warning(
            "objects",
            format!("{public} of the sampled objects are public by their ACL, and their copies would not be"),
            "set COPY_ACL=public-read (the destination bucket must have ACLs enabled), or open the new bucket by a policy",
        )
    })
}

async fn is_public(bucket: &S3Bucket, key: &str) -> Option<bool> {
    let request = bucket.client().get_object_acl().bucket(bucket.name());
    let output = request.key(key).send().await.ok()?;
    Some(output.grants().iter().any(|grant| {
        let is_everyone = grant.grantee().and_then(|to| to.uri()) == Some(ALL_USERS);
        let reads = [Permission::Read, Permission::FullControl];
        is_everyone && grant.permission().is_some_and(|may| reads.contains(may))
    }))
}
