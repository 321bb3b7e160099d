//! Who may read the images now, to whom the copies will belong, and whether the application can read them.

use aws_sdk_s3::types::ObjectOwnership;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::s3::{FROM_SOURCE, S3Bucket};

use super::check::PlanChecks;

const MAX_READ_ACLS: usize = 5;

const BUCKET_OWNER_ACL: &str = "bucket-owner-full-control";

/// Warns when the sources are public and the copies would not be: S3 carries no ACL over. Not where ACLs cannot be
/// read: that right is not needed otherwise.
pub(super) async fn check_acls(
    source: &S3Bucket,
    keys: impl Iterator<Item = &str>,
    acl: Option<&str>,
    checks: &mut PlanChecks,
) {
    let mut public = 0;
    for key in keys.take(MAX_READ_ACLS) {
        match source.is_public(key).await {
            Ok(is_public) => public += u32::from(is_public),
            Err(_) => return,
        }
    }
    let is_private = acl.is_none_or(|acl| !acl.starts_with("public-") && acl != FROM_SOURCE);
    if public > 0 && is_private {
        checks.warn(
            "objects",
            format!("{public} of the sampled objects are public by their ACL, and their copies would not be"),
            "set COPY_ACL=public-read, or source (the destination bucket must have ACLs enabled), or open the new bucket by a policy",
        );
    }
}

/// What the bucket says; where the store knows no such setting, what it says of a copy. None where neither can be
/// asked: the rights are not needed otherwise.
pub(super) async fn find_owner(
    destination: &S3Bucket,
    copy_key: &str,
    acl: Option<&str>,
) -> Option<String> {
    let request = destination.client().get_bucket_ownership_controls();
    let controls = request.bucket(destination.name()).send().await;
    let owner = match controls.map_err(|error| destination.refused("", error)) {
        Ok(controls) => {
            let rules = controls.ownership_controls.map(|controls| controls.rules);
            let rule = rules.and_then(|rules| rules.into_iter().next());
            rule.map(|rule| describe_rule(&rule.object_ownership, acl))
        }
        Err(error) if error.code() == "OwnershipControlsNotFoundError" => {
            Some(describe_rule(&ObjectOwnership::ObjectWriter, acl))
        }
        Err(StoreError::Denied { .. }) => return None,
        Err(_) => None,
    };
    match owner {
        Some(owner) => Some(owner),
        None => read_owner(destination, copy_key).await,
    }
}

fn describe_rule(rule: &ObjectOwnership, acl: Option<&str>) -> String {
    let word = rule.as_str();
    match rule {
        ObjectOwnership::BucketOwnerEnforced => {
            format!("the bucket's owner, and only policies open them ({word})")
        }
        ObjectOwnership::BucketOwnerPreferred if acl == Some(BUCKET_OWNER_ACL) => {
            format!("the bucket's owner ({word}, COPY_ACL={BUCKET_OWNER_ACL})")
        }
        _ => format!(
            "the account that copies ({word}): if that is not the bucket's, COPY_ACL={BUCKET_OWNER_ACL} opens them to its owner"
        ),
    }
}

async fn read_owner(bucket: &S3Bucket, key: &str) -> Option<String> {
    let request = bucket.client().get_object_acl().bucket(bucket.name());
    let owner = request.key(key).send().await.ok()?.owner?;
    let name = owner.display_name.filter(|name| !name.is_empty());
    Some(format!("'{}'", name.or(owner.id)?))
}

pub(super) async fn check_application(bucket: &S3Bucket, copy_key: &str, checks: &mut PlanChecks) {
    match bucket.check_readable(copy_key).await {
        Ok(()) => checks.ok("application", "it can read a copy (APPLICATION_PROFILE)"),
        Err(error) => checks.fail(
            "application",
            format!("it cannot read a copy (APPLICATION_PROFILE): {error}"),
            format!("give it that right, and kms:Decrypt on the copies' key; where copies belong to another user: COPY_ACL={BUCKET_OWNER_ACL}, or public-read"),
        ),
    }
}
