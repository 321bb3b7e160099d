//! The policies for KMS keys of one's own, and for ACLs. The local services have neither: what AWS asks for follows
//! from the rights on objects and queues, which other tests hold to the requests.

use std::collections::BTreeSet;

use crate::policies::{PolicyRight, granted_rights};

macro_rules! policy {
    ($name:literal) => {
        granted_rights(include_str!(concat!(
            "../../../../deploy/policies/",
            $name,
            ".json"
        )))
    };
}

/// What a request that needs this right needs on the key that encrypts the object or the queue. A multipart
/// upload, which only one who may abort it makes, decrypts its parts.
/// Sources: Amazon S3 User Guide, "Protecting data with SSE-KMS"; Amazon SQS Developer Guide, "Key management".
fn key_rights((action, resource): &PolicyRight) -> Vec<PolicyRight> {
    let key = match resource.split(':').next_back().unwrap_or_default() {
        name if name.starts_with("SOURCE_BUCKET/") => "SOURCE_REGION:ACCOUNT:key/SOURCE_KEY",
        name if name.starts_with("DESTINATION_BUCKET/") => "REGION:ACCOUNT:key/DESTINATION_KEY",
        _ => "REGION:ACCOUNT:key/QUEUE_KEY",
    };
    let actions: &[&str] = match action.as_str() {
        "s3:GetObject" | "s3:AbortMultipartUpload" | "sqs:ReceiveMessage" => &["kms:Decrypt"],
        "s3:PutObject" => &["kms:GenerateDataKey"],
        "sqs:SendMessage" => &["kms:GenerateDataKey", "kms:Decrypt"],
        _ => &[],
    };
    let right = |action: &&str| ((*action).to_owned(), format!("arn:aws:kms:{key}"));
    actions.iter().map(right).collect()
}

fn needed_keys(policies: &[BTreeSet<PolicyRight>]) -> BTreeSet<PolicyRight> {
    policies.iter().flatten().flat_map(key_rights).collect()
}

#[test]
fn the_right_to_an_object_or_a_queue_comes_with_its_key() {
    assert_eq!(needed_keys(&[policy!("consumer")]), policy!("consumer-kms"));
    let feeder = [policy!("feeder"), policy!("feeder-page")];
    assert_eq!(needed_keys(&feeder), policy!("feeder-kms"));
    let operator = [policy!("operator"), policy!("operator-write")];
    assert_eq!(needed_keys(&operator), policy!("operator-kms"));
}

/// Source: Amazon S3 User Guide, "Required permissions": a copy with `x-amz-acl` needs it on the copy. With
/// `COPY_ACL=source` the source's is read; tags too are read of sources alone.
#[test]
fn acls_are_set_wherever_copies_are_written_and_read_wherever_sources_are() {
    let acls = policy!("consumer").into_iter();
    let acls = acls.filter_map(|(action, resource)| match action.as_str() {
        "s3:PutObject" => Some(("s3:PutObjectAcl".to_owned(), resource)),
        "s3:GetObjectTagging" if resource.contains("SOURCE") => {
            Some(("s3:GetObjectAcl".to_owned(), resource))
        }
        _ => None,
    });
    assert_eq!(acls.collect::<BTreeSet<_>>(), policy!("copy-acl"));
}

/// `clean` brings sources back, from their copies.
#[test]
fn an_operator_who_writes_sets_and_reads_acls_of_both_buckets() {
    let written = policy!("operator-write").into_iter();
    let written = written.filter(|(action, _)| action == "s3:PutObject");
    let acls = written.flat_map(|(_, resource)| {
        ["s3:PutObjectAcl", "s3:GetObjectAcl"].map(|action| (action.to_owned(), resource.clone()))
    });
    assert_eq!(acls.collect::<BTreeSet<_>>(), policy!("operator-acl"));
}
