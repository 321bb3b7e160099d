//! Who may read the images now, and whether the copies will be as open: S3 carries no ACL over.

use bucket_brigade_common::object_store::s3::{FROM_SOURCE, S3Bucket};

use super::check::PlanCheck;

/// Objects whose ACLs are read.
const MAX_READ_ACLS: usize = 5;

/// Warns when the sources are public and the copies would not be. None where the ACLs cannot be read: that
/// right is not needed otherwise.
pub(super) async fn check_acls(
    source: &S3Bucket,
    keys: impl Iterator<Item = &str>,
    acl: Option<&str>,
) -> Option<PlanCheck> {
    let mut public = 0;
    for key in keys.take(MAX_READ_ACLS) {
        public += u32::from(source.is_public(key).await.ok()?);
    }
    let is_private = acl.is_none_or(|acl| !acl.starts_with("public-") && acl != FROM_SOURCE);
    (public > 0 && is_private).then(|| {
        PlanCheck::new_warning(
            "objects",
            format!("{public} of the sampled objects are public by their ACL, and their copies would not be"),
            "set COPY_ACL=public-read, or source (the destination bucket must have ACLs enabled), or open the new bucket by a policy",
        )
    })
}
