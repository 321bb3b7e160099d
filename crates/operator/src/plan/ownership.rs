//! Who may read the images now, to whom the copies will belong, and whether the application can read them.

use aws_sdk_s3::types::{ObjectOwnership, Owner};
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

/// What the bucket says; where the store knows no such setting, what it says of a copy and of the bucket. Nothing where
/// neither can be asked: the rights are not needed otherwise.
pub(super) async fn check_owner(
    destination: &S3Bucket,
    copy_key: &str,
    acl: Option<&str>,
    checks: &mut PlanChecks,
) {
    let owner = match find_rule(destination, acl).await {
        Some(Some(rule)) => rule,
        Some(None) => {
            let Some(owner) = object_owner(destination, copy_key).await else {
                return;
            };
            let name = name_of(&owner);
            if !acl
                .is_some_and(|acl| acl.starts_with("bucket-owner-") || acl.starts_with("public-"))
                && let Some(bucket) = bucket_owner(destination).await
                && bucket.id != owner.id
            {
                return checks.warn(
                    "ownership",
                    format!("copies will belong to {name} and the bucket to {}, who may read none of them, nor the application as that user", name_of(&bucket)),
                    format!("set COPY_ACL={BUCKET_OWNER_ACL}, or copy as the bucket's owner; APPLICATION_PROFILE has the plan try it"),
                );
            }
            name
        }
        None => return,
    };
    checks.ok("ownership", format!("copies will belong to {owner}"));
}

/// None where it may not be asked, and in it none where there is no such thing.
async fn find_rule(destination: &S3Bucket, acl: Option<&str>) -> Option<Option<String>> {
    let request = destination.client().get_bucket_ownership_controls();
    let controls = request.bucket(destination.name()).send().await;
    match controls.map_err(|error| destination.refused("", error)) {
        Ok(controls) => {
            let rules = controls.ownership_controls.map(|controls| controls.rules);
            let rule = rules.and_then(|rules| rules.into_iter().next());
            Some(rule.map(|rule| describe_rule(&rule.object_ownership, acl)))
        }
        Err(error) if error.code() == "OwnershipControlsNotFoundError" => {
            Some(Some(describe_rule(&ObjectOwnership::ObjectWriter, acl)))
        }
        Err(StoreError::Denied { .. }) => None,
        Err(_) => Some(None),
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

async fn object_owner(bucket: &S3Bucket, key: &str) -> Option<Owner> {
    let request = bucket.client().get_object_acl().bucket(bucket.name());
    let owner = request.key(key).send().await.ok()?.owner?;
    owner.id.is_some().then_some(owner)
}

async fn bucket_owner(bucket: &S3Bucket) -> Option<Owner> {
    let request = bucket.client().get_bucket_acl().bucket(bucket.name());
    let owner = request.send().await.ok()?.owner?;
    owner.id.is_some().then_some(owner)
}

fn name_of(owner: &Owner) -> String {
    let name = owner.display_name().filter(|name| !name.is_empty());
    format!("'{}'", name.or(owner.id()).unwrap_or_default())
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
