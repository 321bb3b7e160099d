//! The rights that each operation of S3 and SQS needs, for errors that name the missing one: stores say little
//! more than that access is denied.

/// What an operation needs on what it is about, and on another resource, by what that is.
type RequiredActions = (
    &'static [&'static str],
    &'static [&'static str],
    &'static str,
);

/// Source: Amazon S3 User Guide, "Required permissions for Amazon S3 API operations"; Amazon SQS Developer Guide,
/// "Amazon SQS API permissions" (a batch needs the right of the single action).
fn find_required(operation: &str) -> Option<RequiredActions> {
    let write: &[_] = &["s3:PutObject", "s3:PutObjectTagging"];
    let required: RequiredActions = match operation {
        "HeadBucket" | "ListObjects" | "ListObjectsV2" => (&["s3:ListBucket"], &[], ""),
        "GetBucketVersioning" => (&["s3:GetBucketVersioning"], &[], ""),
        "GetBucketOwnershipControls" => (&["s3:GetBucketOwnershipControls"], &[], ""),
        "HeadObject" | "GetObject" => (&["s3:GetObject"], &[], ""),
        "GetObjectTagging" => (&["s3:GetObjectTagging"], &[], ""),
        "GetObjectAcl" => (&["s3:GetObjectAcl"], &[], ""),
        "PutObject" | "CreateMultipartUpload" => (write, &[], ""),
        "UploadPart" | "CompleteMultipartUpload" => (&["s3:PutObject"], &[], ""),
        "CopyObject" => (
            write,
            &["s3:GetObject", "s3:GetObjectTagging"],
            "the source",
        ),
        "UploadPartCopy" => (&["s3:PutObject"], &["s3:GetObject"], "the source"),
        "AbortMultipartUpload" => (&["s3:AbortMultipartUpload"], &[], ""),
        "DeleteObject" | "DeleteObjects" => (&["s3:DeleteObject"], &[], ""),
        "GetQueueAttributes" => (&["sqs:GetQueueAttributes"], &[], ""),
        "SendMessageBatch" => (&["sqs:SendMessage"], &[], ""),
        "ReceiveMessage" => (&["sqs:ReceiveMessage"], &[], ""),
        "DeleteMessage" | "DeleteMessageBatch" => (&["sqs:DeleteMessage"], &[], ""),
        "ChangeMessageVisibilityBatch" => (&["sqs:ChangeMessageVisibility"], &[], ""),
        "StartMessageMoveTask" => (
            &[
                "sqs:StartMessageMoveTask",
                "sqs:ReceiveMessage",
                "sqs:DeleteMessage",
            ],
            &["sqs:SendMessage"],
            "the queue",
        ),
        _ => return None,
    };
    Some(required)
}

/// The actions that policies must allow for an operation of the API; none for one that is never called.
pub fn required_actions(operation: &str) -> Vec<&'static str> {
    let required = find_required(operation);
    required.map_or_else(Vec::new, |(target, other, _)| [target, other].concat())
}

/// The service's message, and the right that is missing where it does not name one. Resources are named as in
/// a policy.
pub(crate) fn describe_denial(
    operation: &str,
    target: &str,
    source: Option<&str>,
    message: &str,
) -> String {
    let Some((actions, other, other_name)) = find_required(operation) else {
        return if message.is_empty() {
            format!("{operation} is denied")
        } else {
            message.to_owned()
        };
    };
    // AWS names a right of its own policies in most cases, and always one of KMS.
    let mut all = actions.iter().chain(other);
    if message.contains("kms:") || all.any(|action| message.contains(action)) {
        return message.to_owned();
    }
    let mut needed = format!("{} on {target}", actions.join(" and "));
    if !other.is_empty() {
        let source = source.unwrap_or(other_name);
        needed = format!("{needed}, and {} on {source}", other.join(" and "));
    }
    append_need(message, &format!("{operation} needs {needed}"))
}

/// The same where it is the key of KMS that may not be used. Source: Amazon SQS Developer Guide, "Key management".
pub(crate) fn describe_key_denial(operation: &str, target: &str, message: &str) -> String {
    if message.contains("kms:") {
        return message.to_owned();
    }
    let actions = if operation.starts_with("Send") {
        "kms:GenerateDataKey and kms:Decrypt"
    } else {
        "kms:Decrypt"
    };
    append_need(
        message,
        &format!("{operation} needs {actions} on the KMS key of {target}"),
    )
}

fn append_need(message: &str, needed: &str) -> String {
    match message {
        "" => needed.to_owned(),
        message => format!("{message} ({needed})"),
    }
}

/// What keys of our own probes hold, before what no two of them share.
pub(crate) const PROBE_NAME: &str = ".bucket-brigade-probe-";

/// Of a bucket, by its name or the ARN of an access point, or of an object in it, as a policy names it.
pub(crate) fn s3_arn(bucket: &str, key: &str) -> String {
    let probes = key.split_once(PROBE_NAME);
    let probes = probes.map(|(prefix, _)| format!("{prefix}{PROBE_NAME}*"));
    let key = probes.as_deref().unwrap_or(key);
    match (bucket.starts_with("arn:"), key) {
        (true, "") => bucket.to_owned(),
        (true, key) => format!("{bucket}/object/{key}"),
        (false, "") => format!("arn:aws:s3:::{bucket}"),
        (false, key) => format!("arn:aws:s3:::{bucket}/{key}"),
    }
}

/// Of a queue: the ARN where its URL holds what that is made of.
pub(crate) fn sqs_arn(url: &str) -> String {
    let arn = url.strip_prefix("https://sqs.").and_then(|rest| {
        let (region, rest) = rest.split_once(".amazonaws.com/")?;
        Some(format!("arn:aws:sqs:{region}:{}", rest.replace('/', ":")))
    });
    arn.unwrap_or_else(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_names_each_right_and_what_it_is_needed_on() {
        let (target, source) = (
            s3_arn("new", "a/b.png"),
            s3_arn("arn:aws:s3:eu-west-1:1:accesspoint/old", "b.png"),
        );
        assert_eq!(
            describe_denial("CopyObject", &target, Some(&source), ""),
            "CopyObject needs s3:PutObject and s3:PutObjectTagging on arn:aws:s3:::new/a/b.png, and s3:GetObject and s3:GetObjectTagging on arn:aws:s3:eu-west-1:1:accesspoint/old/object/b.png"
        );
        let delete = |message| describe_denial("DeleteObject", "arn", None, message);
        assert_eq!(
            delete("Access Denied"),
            "Access Denied (DeleteObject needs s3:DeleteObject on arn)"
        );
        let named = "User: u is not authorized to perform: s3:DeleteObject on resource: r";
        assert_eq!(delete(named), named);
    }

    #[test]
    fn a_denied_key_is_no_denied_queue() {
        assert_eq!(
            describe_key_denial("ReceiveMessage", "arn", ""),
            "ReceiveMessage needs kms:Decrypt on the KMS key of arn"
        );
        let send = describe_key_denial("SendMessageBatch", "arn", "The ciphertext refers to a key");
        assert!(send.ends_with("kms:GenerateDataKey and kms:Decrypt on the KMS key of arn)"));
    }

    #[test]
    fn a_queue_is_named_as_in_a_policy() {
        assert_eq!(
            sqs_arn("https://sqs.eu-west-1.amazonaws.com/1/images"),
            "arn:aws:sqs:eu-west-1:1:images"
        );
        let local = "http://127.0.0.1:1/1/images";
        assert_eq!(sqs_arn(local), local);
    }
}
