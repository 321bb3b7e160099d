//! The policies in `deploy/policies` grant what a run needs, each right and not one more.
//!
//! The local services check no rights: a run in which something of everything happens is
//! counted, and each request is mapped to the rights that AWS asks for it.

use std::collections::BTreeSet;
use std::time::Duration;

use bucket_brigade_common::object_store::s3::{CopyLimits, S3Options};
use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};
use bucket_brigade_common::permissions::required_actions;
use bucket_brigade_testbed::cloud::{CreateQueueOptions, FaultHandle};
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};
use serde_json::Value;

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, stop_consumer, wait_until};

const QUEUE: &str = "arn:aws:sqs:REGION:ACCOUNT:QUEUE";
const DEAD_LETTER_QUEUE: &str = "arn:aws:sqs:REGION:ACCOUNT:DEAD_LETTER_QUEUE";
const BUCKETS: [&str; 2] = [
    "arn:aws:s3:::SOURCE_BUCKET",
    "arn:aws:s3:::DESTINATION_BUCKET",
];
const SOURCE: &str = "arn:aws:s3:::SOURCE_BUCKET/SOURCE_KEY_PREFIX*";
const DESTINATION: &str = "arn:aws:s3:::DESTINATION_BUCKET/DESTINATION_KEY_PREFIX*";
const PROBES: &str =
    "arn:aws:s3:::DESTINATION_BUCKET/DESTINATION_KEY_PREFIX.bucket-brigade-probe-*";

/// An action on a resource.
pub(crate) type PolicyRight = (String, String);

fn rights(action: &str, resources: &[&str]) -> Vec<PolicyRight> {
    let right = |resource: &&str| (action.to_owned(), (*resource).to_owned());
    resources.iter().map(right).collect()
}

fn one_or_many(value: &Value) -> Vec<String> {
    match value {
        Value::Array(many) => many.iter().flat_map(one_or_many).collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    }
}

pub(crate) fn granted_rights(policy: &str) -> BTreeSet<PolicyRight> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    let mut granted = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        for action in one_or_many(&statement["Action"]) {
            for resource in one_or_many(&statement["Resource"]) {
                assert!(
                    granted.insert((action.clone(), resource)),
                    "granted twice: {action}"
                );
            }
        }
    }
    granted
}

/// What AWS asks for one request of this operation.
/// Sources: Amazon S3 User Guide, "Required permissions for Amazon S3 API operations"; Amazon SQS
/// Developer Guide, "Amazon SQS API permissions" (a batch needs the right of the single action).
fn needed_rights(caller: &str, operation: &str, on: &ReadCounters) -> Vec<PolicyRight> {
    match operation {
        "SendMessageBatch" if caller == "consumer" => {
            rights("sqs:SendMessage", &[DEAD_LETTER_QUEUE])
        }
        "SendMessageBatch" => rights("sqs:SendMessage", &[QUEUE]),
        "ReceiveMessage" => rights("sqs:ReceiveMessage", &[QUEUE]),
        "DeleteMessage" | "DeleteMessageBatch" => rights("sqs:DeleteMessage", &[QUEUE]),
        "ChangeMessageVisibilityBatch" => rights("sqs:ChangeMessageVisibility", &[QUEUE]),
        "GetQueueAttributes" => rights("sqs:GetQueueAttributes", &[QUEUE]),
        "HeadBucket" => rights("s3:ListBucket", &BUCKETS),
        // Tags travel with the copy.
        "CopyObject" => [
            rights("s3:GetObject", &[SOURCE]),
            rights("s3:GetObjectTagging", &[SOURCE]),
            rights("s3:PutObject", &[DESTINATION]),
            rights("s3:PutObjectTagging", &[DESTINATION]),
        ]
        .concat(),
        "UploadPartCopy" => [
            rights("s3:GetObject", &[SOURCE]),
            rights("s3:PutObject", &[DESTINATION]),
        ]
        .concat(),
        // With the tags of the source, where it has some.
        "CreateMultipartUpload" => [
            rights("s3:PutObject", &[DESTINATION]),
            rights("s3:PutObjectTagging", &[DESTINATION]),
        ]
        .concat(),
        "CompleteMultipartUpload" | "PutObject" => rights("s3:PutObject", &[DESTINATION]),
        "AbortMultipartUpload" => rights("s3:AbortMultipartUpload", &[DESTINATION]),
        "HeadObject" | "GetObject" => rights("s3:GetObject", &on.resources(operation)),
        "GetObjectTagging" => rights("s3:GetObjectTagging", &on.resources(operation)),
        "DeleteObject" => rights("s3:DeleteObject", &[PROBES]),
        other => panic!("no right is listed for {other}"),
    }
}

/// Errors name what is needed of each operation.
fn assert_errors_name(operation: &str, needed: &[PolicyRight]) {
    let named = required_actions(operation);
    for (action, _) in needed {
        assert!(named.contains(&action.as_str()), "{operation}: {action}");
    }
}

/// Faults that do no harm, but count on which objects the operations are that read either.
struct ReadCounters(Vec<(&'static str, &'static str, FaultHandle)>);

impl ReadCounters {
    fn start(rig: &TestRig) -> Self {
        let watch = |operation: &'static str, prefix: &str, resource| {
            let harmless = Fault::new(operation, FaultEffect::Delay(Duration::ZERO));
            let handle = rig
                .cloud
                .inject_fault(harmless.caller("consumer").key_contains(prefix));
            (operation, resource, handle)
        };
        let both = |operation| {
            [
                watch(operation, "image/", SOURCE),
                watch(operation, "avatar/", DESTINATION),
            ]
        };
        let watched = ["HeadObject", "GetObject", "GetObjectTagging"].map(both);
        let mut watched: Vec<_> = watched.into_iter().flatten().collect();
        watched.push(watch(
            "DeleteObject",
            "avatar/.bucket-brigade-probe-",
            PROBES,
        ));
        Self(watched)
    }

    fn resources(&self, operation: &str) -> Vec<&'static str> {
        let of = self
            .0
            .iter()
            .filter(|(name, _, handle)| *name == operation && handle.hits() > 0);
        of.map(|(_, resource, _)| *resource).collect()
    }

    fn count(&self, operation: &str) -> u64 {
        let of = self.0.iter().filter(|(name, ..)| *name == operation);
        of.map(|(.., handle)| handle.hits()).sum()
    }
}

/// The local stand-in for the 5 GiB of one `CopyObject`.
const COPY_SIZE_LIMIT: u64 = 1000;

/// Rows of every kind: ordinary, without an object, in conflict; and a poison message.
async fn rows_of_every_kind(rig: &TestRig) {
    rig.add_images(3).await;
    rig.add_row("image/missing.png").await;
    rig.add_image("image/conflict.png").await;
    rig.put_object("images-new", "avatar/conflict.png", b"the application's")
        .await;
    rig.send_message("no message of ours").await;
}

/// What the consumer's store does above the limit, which the program itself has at 5 GiB: a copy in
/// parts, the same again, which finds the first one and compares the bytes, and one that is cut off.
async fn copies_in_parts(rig: &TestRig) {
    let options = S3Options {
        limits: CopyLimits {
            single_bytes: COPY_SIZE_LIMIT,
            part_bytes: 5 << 20,
        },
        ..S3Options::default()
    };
    let store = rig.store(options).await;
    let rule = rig.run_spec().rule;
    let bytes = vec![7; usize::try_from(COPY_SIZE_LIMIT).unwrap() + 1];
    let refused = FaultEffect::error(403, "InvalidObjectState");
    let _broken = rig
        .cloud
        .inject_fault(Fault::new("UploadPartCopy", refused).key_contains("broken"));
    for (name, is_copied) in [("large", true), ("broken", false)] {
        let path = format!("image/{name}.png");
        rig.put_object("images-old", &path, &bytes).await;
        let route = rule.route_for(&path).unwrap();
        assert!(matches!(
            store.copy(&route).await,
            Err(StoreError::TooLarge)
        ));
        assert_eq!(store.copy_multipart(&route).await.is_ok(), is_copied);
        let same = matches!(
            store.compare_objects(&route).await.unwrap(),
            DestinationState::Same(_)
        );
        assert_eq!(same, is_copied);
    }
}

#[tokio::test]
async fn a_run_uses_every_right_and_no_other() {
    let options = CloudOptions {
        copy_limit_bytes: COPY_SIZE_LIMIT,
        ..CloudOptions::default()
    };
    let rig = TestRig::with_options(options, CreateQueueOptions::default()).await;
    rows_of_every_kind(&rig).await;
    // The feeder only wants to know whether the names are right, and needs no right for it.
    let denied = FaultEffect::error(403, "AccessDenied");
    let _denied = rig
        .cloud
        .inject_fault(Fault::new("HeadBucket", denied).caller("feeder"));
    let observed = ReadCounters::start(&rig);
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    let log = stop_consumer(consumer).await;
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("failures").await
        ),
        (3, 2),
        "{log}"
    );
    copies_in_parts(&rig).await;
    let requests = rig.cloud.request_counts();
    for operation in [
        "HeadObject",
        "GetObject",
        "GetObjectTagging",
        "DeleteObject",
    ] {
        let all = requests.count_operation_by("consumer", operation);
        assert_eq!(
            observed.count(operation),
            all,
            "{operation} on something else"
        );
    }
    let used = |caller: &str, except: &str| -> BTreeSet<PolicyRight> {
        let asked = requests
            .snapshot_by(caller)
            .into_keys()
            .filter(|name| name != except);
        asked
            .flat_map(|operation| {
                let needed = needed_rights(caller, &operation, &observed);
                assert_errors_name(&operation, &needed);
                needed
            })
            .collect()
    };
    let policy = include_str!("../../../../deploy/policies/consumer.json");
    assert_eq!(used("consumer", ""), granted_rights(policy));
    let policy = include_str!("../../../../deploy/policies/feeder.json");
    assert_eq!(used("feeder", "HeadBucket"), granted_rights(policy));
}

#[tokio::test]
async fn the_live_page_uses_two_rights_more_and_reads_no_image_itself() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let address = free_address();
    let settings = [
        ("STATUS_ADDR", address.as_str()),
        ("STATUS_THUMBNAILS", "true"),
    ];
    let consumer = rig.spawn_consumer(&[]);
    let feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let urls = async || -> Vec<String> {
        let answer = http_get(&address, "/status.json").await;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let status: Value = serde_json::from_str(body).unwrap_or_default();
        let shown = status["thumbnails"].as_array().cloned().unwrap_or_default();
        let url = |one: &Value| one["url"].as_str().unwrap().to_owned();
        let knows_dead_letters = status["view"]["queue"]["dead_letters"].is_u64();
        shown
            .iter()
            .map(url)
            .filter(|_| knows_dead_letters)
            .collect()
    };
    wait_until("the thumbnails", async || urls().await.len() == 3).await;
    for url in urls().await {
        let (host, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .unwrap();
        assert!(path.starts_with("images-new/avatar/"), "{url}");
        let answer = http_get(host, &format!("/{path}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let requests = rig.cloud.request_counts();
    assert_eq!(requests.count_operation_by("feeder", "GetObject"), 0);
    drop(feeder);
    stop_consumer(consumer).await;
    let policy = include_str!("../../../../deploy/policies/feeder-page.json");
    let used = [
        rights("sqs:GetQueueAttributes", &[DEAD_LETTER_QUEUE]),
        rights("s3:GetObject", &[DESTINATION]),
    ];
    assert_eq!(BTreeSet::from_iter(used.concat()), granted_rights(policy));
}

/// What AWS asks for one request of an operator's command. A redrive is asked for on the dead-letter
/// queue, and moves on behalf of the caller.
/// Source: Amazon SQS Developer Guide, "Configure a dead-letter queue redrive".
fn operator_rights(operation: &str) -> Vec<PolicyRight> {
    match operation {
        "GetQueueAttributes" => rights("sqs:GetQueueAttributes", &[QUEUE, DEAD_LETTER_QUEUE]),
        "StartMessageMoveTask" => [
            rights("sqs:StartMessageMoveTask", &[DEAD_LETTER_QUEUE]),
            rights("sqs:ReceiveMessage", &[DEAD_LETTER_QUEUE]),
            rights("sqs:DeleteMessage", &[DEAD_LETTER_QUEUE]),
            rights("sqs:SendMessage", &[QUEUE]),
        ]
        .concat(),
        "HeadBucket" | "ListObjects" | "ListObjectsV2" => rights("s3:ListBucket", &BUCKETS),
        "GetBucketOwnershipControls" => rights("s3:GetBucketOwnershipControls", &BUCKETS[1..]),
        "HeadObject" => rights("s3:GetObject", &[SOURCE, DESTINATION]),
        "GetObjectTagging" => rights("s3:GetObjectTagging", &[SOURCE, DESTINATION]),
        "GetObjectAcl" => rights("s3:GetObjectAcl", &[SOURCE]),
        "CopyObject" => [
            rights("s3:GetObject", &[SOURCE]),
            rights("s3:GetObjectTagging", &[SOURCE]),
            rights("s3:PutObject", &[PROBES]),
            rights("s3:PutObjectTagging", &[PROBES]),
        ]
        .concat(),
        "PutObject" => rights("s3:PutObject", &[PROBES]),
        "DeleteObject" => rights("s3:DeleteObject", &[PROBES]),
        other => panic!("no right is listed for {other}"),
    }
}

#[tokio::test]
async fn an_operators_commands_use_every_right_and_no_other() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.add_row("image/missing.png").await;
    assert_eq!(rig.run_feeder(&["plan"]).await.code, 0);
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(2));
    wait_until("the dead letter", async || rig.dead_letters().await == 1).await;
    for command in ["status", "pause", "resume", "failures", "retry"] {
        rig.run_feeder(&[command]).await;
    }
    rig.run_feeder(&["retry", "--yes"]).await;
    stop_consumer(consumer).await;
    let asked = rig
        .cloud
        .request_counts()
        .snapshot_by("operator")
        .into_keys();
    let used: BTreeSet<PolicyRight> = asked
        .flat_map(|operation| {
            let needed = operator_rights(&operation);
            assert_errors_name(&operation, &needed);
            needed
        })
        .collect();
    let policy = include_str!("../../../../deploy/policies/operator.json");
    assert_eq!(used, granted_rights(policy));
}
