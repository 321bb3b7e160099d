//! The rights that each operation of S3 and SQS needs, for errors that name the missing one: stores say little
//! more than that access is denied.

use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextMut, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::{Storable, StoreReplace};
use percent_encoding::percent_decode_str;
use serde_json::Value;

/// What an operation needs on what it is about, and on another resource, by what that is.
struct RequiredActions {
    target: &'static [&'static str],
    other: &'static [&'static str],
    other_name: &'static str,
}

/// Source: Amazon S3 User Guide, "Required permissions for Amazon S3 API operations"; Amazon SQS Developer Guide,
/// "Amazon SQS API permissions" (a batch needs the right of the single action).
fn find_required(operation: &str) -> Option<RequiredActions> {
    let write: &[_] = &["s3:PutObject", "s3:PutObjectTagging"];
    let (target, other, other_name): (&[_], &[_], _) = match operation {
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
    Some(RequiredActions {
        target,
        other,
        other_name,
    })
}

/// The actions that policies must allow for an operation of the API; none for one that is never called.
pub fn required_actions(operation: &str) -> Vec<&'static str> {
    let required = find_required(operation);
    required.map_or_else(Vec::new, |required| {
        [required.target, required.other].concat()
    })
}

/// What was denied.
#[derive(Debug, Default)]
pub(crate) struct DeniedResources {
    /// As ARNs.
    pub(crate) target: Option<String>,
    pub(crate) source: Option<String>,
}

/// The service's message, and the right that is missing where it does not name one.
pub(crate) fn describe_denial(
    operation: &str,
    resources: &DeniedResources,
    message: &str,
) -> String {
    let Some(required) = find_required(operation) else {
        return if message.is_empty() {
            format!("{operation} is denied")
        } else {
            message.to_owned()
        };
    };
    // AWS names a right of its own policies in most cases, and always one of KMS.
    let mut actions = required.target.iter().chain(required.other);
    if message.contains("kms:") || actions.any(|action| message.contains(action)) {
        return message.to_owned();
    }
    let on = |actions: &[&str], resource: Option<&String>, name: &str| {
        let resource = resource.map_or(name, String::as_str);
        format!("{} on {resource}", actions.join(" and "))
    };
    let mut needed = on(required.target, resources.target.as_ref(), "the resource");
    if !required.other.is_empty() {
        let other = on(
            required.other,
            resources.source.as_ref(),
            required.other_name,
        );
        needed = format!("{needed}, and {other}");
    }
    let needed = format!("{operation} needs {needed}");
    match message {
        "" => needed,
        message => format!("{message} ({needed})"),
    }
}

/// What keys of our own probes hold, before what no two of them share.
const PROBE_NAME: &str = ".bucket-brigade-probe-";

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

/// Notes on each refusal what was asked for: an error of the SDK's knows its operation alone.
#[derive(Debug)]
pub(crate) struct DenialNotes {
    /// None for queues.
    pub(crate) bucket: Option<String>,
}

/// What is left of a request when its response comes: kept unread, as almost all are granted.
#[derive(Debug)]
struct SentRequest {
    url: String,
    copy_source: Option<String>,
    body: Option<SdkBody>,
}

impl Storable for SentRequest {
    type Storer = StoreReplace<Self>;
}

const TARGET_NOTE: &str = "x-bucket-brigade-target";
const SOURCE_NOTE: &str = "x-bucket-brigade-source";

impl DeniedResources {
    pub(crate) fn of_response(response: &HttpResponse) -> Self {
        let note = |name| {
            let note = response.headers().get(name)?;
            percent_decode_str(note).decode_utf8().ok().map(Into::into)
        };
        Self {
            target: note(TARGET_NOTE),
            source: note(SOURCE_NOTE),
        }
    }
}

impl Intercept for DenialNotes {
    fn name(&self) -> &'static str {
        "DenialNotes"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        let source = request.headers().get("x-amz-copy-source");
        let is_of_queue = self.bucket.is_none();
        config.interceptor_state().store_put(SentRequest {
            url: request.uri().to_owned(),
            copy_source: source.map(ToOwned::to_owned),
            body: request.body().try_clone().filter(|_| is_of_queue),
        });
        Ok(())
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let is_refusal = matches!(context.response().status().as_u16(), 400 | 403);
        let Some(request) = config.load::<SentRequest>().filter(|_| is_refusal) else {
            return Ok(());
        };
        let target = match &self.bucket {
            Some(bucket) => Some(s3_arn(bucket, requested_key(&request.url, bucket))),
            None => request.body.as_ref().and_then(requested_queue),
        };
        let source = request.copy_source.as_ref();
        let source = source.map(|source| match source.split_once('/') {
            Some((bucket, key)) if !bucket.starts_with("arn%3A") => s3_arn(bucket, key),
            _ => source.to_owned(),
        });
        let headers = context.response_mut().headers_mut();
        for (name, note) in [(TARGET_NOTE, target), (SOURCE_NOTE, source)] {
            if let Some(note) = note {
                // Without it the error says less.
                drop(headers.try_insert(name, note));
            }
        }
        Ok(())
    }
}

/// As the URL spells it; empty for the bucket itself.
fn requested_key<'a>(url: &'a str, bucket: &str) -> &'a str {
    let (host, path) = url.split_once("://").map_or(("", url), |(_, rest)| {
        rest.split_once('/').unwrap_or((rest, ""))
    });
    let path = path.split('?').next().unwrap_or_default();
    let has_bucket_in_host = host.starts_with(&format!("{bucket}."));
    match path.strip_prefix(bucket) {
        Some(key) if !has_bucket_in_host => key.trim_start_matches('/'),
        _ => path,
    }
}

/// The ARN where the URL holds what it is made of.
fn requested_queue(body: &SdkBody) -> Option<String> {
    let body: Value = serde_json::from_slice(body.bytes()?).ok()?;
    if let Some(arn) = body["SourceArn"].as_str() {
        return Some(arn.to_owned());
    }
    let url = body["QueueUrl"].as_str()?;
    let arn = url.strip_prefix("https://sqs.").and_then(|rest| {
        let (region, rest) = rest.split_once(".amazonaws.com/")?;
        Some(format!("arn:aws:sqs:{region}:{}", rest.replace('/', ":")))
    });
    Some(arn.unwrap_or_else(|| url.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_names_each_right_and_what_it_is_needed_on() {
        let resources = DeniedResources {
            target: Some(s3_arn("new", "a/b.png")),
            source: Some(s3_arn("arn:aws:s3:eu-west-1:1:accesspoint/old", "b.png")),
        };
        assert_eq!(
            describe_denial("CopyObject", &resources, ""),
            "CopyObject needs s3:PutObject and s3:PutObjectTagging on arn:aws:s3:::new/a/b.png, and s3:GetObject and s3:GetObjectTagging on arn:aws:s3:eu-west-1:1:accesspoint/old/object/b.png"
        );
        assert_eq!(
            describe_denial("DeleteObject", &DeniedResources::default(), "Access Denied"),
            "Access Denied (DeleteObject needs s3:DeleteObject on the resource)"
        );
        let named = "User: u is not authorized to perform: s3:DeleteObject on resource: r";
        assert_eq!(describe_denial("DeleteObject", &resources, named), named);
    }

    #[test]
    fn a_request_says_what_it_asks_for() {
        let key = |url| requested_key(url, "b");
        assert_eq!(key("http://127.0.0.1:1/b/a%20b/c?x-id=1"), "a%20b/c");
        assert_eq!(key("https://b.s3.amazonaws.com/b/c"), "b/c");
        assert_eq!(key("http://127.0.0.1:1/b?versioning"), "");
        let queue = |url: &str| {
            let body = format!(r#"{{"QueueUrl":"{url}"}}"#);
            requested_queue(&body.into()).unwrap()
        };
        assert_eq!(
            queue("https://sqs.eu-west-1.amazonaws.com/1/images"),
            "arn:aws:sqs:eu-west-1:1:images"
        );
        assert_eq!(
            queue("http://127.0.0.1:1/1/images"),
            "http://127.0.0.1:1/1/images"
        );
    }
}
