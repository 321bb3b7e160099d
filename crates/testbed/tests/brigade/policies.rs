//! The policies in `deploy/policies` grant what a run needs, each right and not one more.
//!
//! The local services ask nobody for rights: a run in which something of everything happens is
//! counted, and each request is mapped to the rights that AWS asks for it.

use std::collections::BTreeSet;
use std::time::Duration;

use bucket_brigade_common::object_store::{Destination, ObjectStore, StoreError};
use bucket_brigade_common::s3::{CopyLimits, S3Options};
use bucket_brigade_testbed::cloud::{CreateQueue, FaultHandle};
use bucket_brigade_testbed::{Effect, Fault, Options};
use serde_json::Value;

use crate::observation::{free_address, get};
use crate::rig::{Rig, eventually, stop};

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
type Right = (String, String);

fn rights(action: &str, resources: &[&str]) -> Vec<Right> {
    let right = |resource: &&str| (action.to_owned(), (*resource).to_owned());
    resources.iter().map(right).collect()
}

fn one_or_many(value: &Value) -> Vec<String> {
    match value {
        Value::Array(many) => many.iter().flat_map(one_or_many).collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    }
}

fn granted(policy: &str) -> BTreeSet<Right> {
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
fn needed(operation: &str, on: &Observed) -> Vec<Right> {
    match operation {
        "SendMessageBatch" => rights("sqs:SendMessage", &[QUEUE]),
        "ReceiveMessage" => rights("sqs:ReceiveMessage", &[QUEUE]),
        "DeleteMessageBatch" => rights("sqs:DeleteMessage", &[QUEUE]),
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
        other => panic!("nobody knows what right {other} needs"),
    }
}

/// Faults that do no harm, but count on which objects the operations are that read either.
struct Observed(Vec<(&'static str, &'static str, FaultHandle)>);

impl Observed {
    fn start(rig: &Rig) -> Self {
        let watch = |operation: &'static str, prefix: &str, resource| {
            let harmless = Fault::new(operation, Effect::Delay(Duration::ZERO));
            let handle = rig
                .cloud
                .inject(harmless.caller("consumer").key_contains(prefix));
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
const LIMIT: u64 = 1000;

/// Rows of every kind: ordinary, without an object, in conflict; and a poison message.
async fn rows_of_every_kind(rig: &Rig) {
    rig.images(3).await;
    rig.row("image/missing.png").await;
    rig.image("image/conflict.png").await;
    rig.object("images-new", "avatar/conflict.png", b"the application's")
        .await;
    rig.send("no message of ours").await;
}

/// What the consumer's store does above the limit, which the program itself has at 5 GiB: a copy in
/// parts, the same again, which finds the first one and compares the bytes, and one that is cut off.
async fn copies_in_parts(rig: &Rig) {
    let options = S3Options {
        storage_class: None,
        conditional_copy: true,
        limits: CopyLimits {
            single_bytes: LIMIT,
            part_bytes: 5 << 20,
        },
    };
    let store = rig.store(options).await;
    let rule = rig.run_spec().rule;
    let bytes = vec![7; usize::try_from(LIMIT).unwrap() + 1];
    let refused = Effect::error(403, "InvalidObjectState");
    let _broken = rig
        .cloud
        .inject(Fault::new("UploadPartCopy", refused).key_contains("broken"));
    for (name, is_copied) in [("large", true), ("broken", false)] {
        let path = format!("image/{name}.png");
        rig.object("images-old", &path, &bytes).await;
        let route = rule.route(&path).unwrap();
        assert!(matches!(
            store.copy(&route).await,
            Err(StoreError::TooLarge)
        ));
        assert_eq!(store.copy_in_parts(&route).await.is_ok(), is_copied);
        let same = matches!(store.compare(&route).await.unwrap(), Destination::Same(_));
        assert_eq!(same, is_copied);
    }
}

#[tokio::test]
async fn a_run_uses_every_right_and_no_other() {
    let options = Options {
        copy_limit_bytes: LIMIT,
        ..Options::default()
    };
    let rig = Rig::with(options, CreateQueue::default()).await;
    rows_of_every_kind(&rig).await;
    // The feeder only wants to know whether the names are right, and needs no right for it.
    let denied = Effect::error(403, "AccessDenied");
    let _denied = rig
        .cloud
        .inject(Fault::new("HeadBucket", denied).caller("feeder"));
    let observed = Observed::start(&rig);
    let consumer = rig.consumer(&[]);
    let ended = rig.run("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    let log = stop(consumer).await;
    assert_eq!(
        (rig.count("moves").await, rig.count("failures").await),
        (3, 2),
        "{log}"
    );
    copies_in_parts(&rig).await;
    let requests = rig.cloud.requests();
    for operation in [
        "HeadObject",
        "GetObject",
        "GetObjectTagging",
        "DeleteObject",
    ] {
        let all = requests.count_by("consumer", operation);
        assert_eq!(
            observed.count(operation),
            all,
            "{operation} on something else"
        );
    }
    let used = |caller: &str, except: &str| -> BTreeSet<Right> {
        let asked = requests
            .snapshot_by(caller)
            .into_keys()
            .filter(|name| name != except);
        asked
            .flat_map(|operation| needed(&operation, &observed))
            .collect()
    };
    let policy = include_str!("../../../../deploy/policies/consumer.json");
    assert_eq!(used("consumer", ""), granted(policy));
    let policy = include_str!("../../../../deploy/policies/feeder.json");
    assert_eq!(used("feeder", "HeadBucket"), granted(policy));
}

#[tokio::test]
async fn the_live_page_uses_two_rights_more_and_reads_no_image_itself() {
    let rig = Rig::new().await;
    rig.images(3).await;
    let address = free_address();
    let settings = [
        ("STATUS_ADDR", address.as_str()),
        ("STATUS_THUMBNAILS", "true"),
    ];
    let consumer = rig.consumer(&[]);
    let feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let urls = async || -> Vec<String> {
        let answer = get(&address, "/status.json").await;
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
    eventually("the thumbnails", async || urls().await.len() == 3).await;
    for url in urls().await {
        let (host, path) = url
            .strip_prefix("http://")
            .and_then(|rest| rest.split_once('/'))
            .unwrap();
        assert!(path.starts_with("images-new/avatar/"), "{url}");
        let answer = get(host, &format!("/{path}")).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let requests = rig.cloud.requests();
    assert_eq!(requests.count_by("feeder", "GetObject"), 0);
    drop(feeder);
    stop(consumer).await;
    let policy = include_str!("../../../../deploy/policies/feeder-page.json");
    let used = [
        rights("sqs:GetQueueAttributes", &[DEAD_LETTER_QUEUE]),
        rights("s3:GetObject", &[DESTINATION]),
    ];
    assert_eq!(BTreeSet::from_iter(used.concat()), granted(policy));
}

/// What AWS asks for one request of an operator's command. A redrive is asked for on the dead-letter
/// queue, and moves on behalf of whoever asks.
/// Source: Amazon SQS Developer Guide, "Configure a dead-letter queue redrive".
fn needed_by_operator(operation: &str) -> Vec<Right> {
    match operation {
        "GetQueueAttributes" => rights("sqs:GetQueueAttributes", &[QUEUE, DEAD_LETTER_QUEUE]),
        "StartMessageMoveTask" => [
            rights("sqs:StartMessageMoveTask", &[DEAD_LETTER_QUEUE]),
            rights("sqs:ReceiveMessage", &[DEAD_LETTER_QUEUE]),
            rights("sqs:DeleteMessage", &[DEAD_LETTER_QUEUE]),
            rights("sqs:SendMessage", &[QUEUE]),
        ]
        .concat(),
        "HeadBucket" => rights("s3:ListBucket", &BUCKETS),
        "HeadObject" => rights("s3:GetObject", &[SOURCE, DESTINATION]),
        "GetObjectTagging" => rights("s3:GetObjectTagging", &[SOURCE]),
        "CopyObject" => [
            rights("s3:GetObject", &[SOURCE]),
            rights("s3:GetObjectTagging", &[SOURCE]),
            rights("s3:PutObject", &[PROBES]),
            rights("s3:PutObjectTagging", &[PROBES]),
        ]
        .concat(),
        "DeleteObject" => rights("s3:DeleteObject", &[PROBES]),
        other => panic!("nobody knows what right {other} needs"),
    }
}

#[tokio::test]
async fn an_operators_commands_use_every_right_and_no_other() {
    let rig = Rig::new().await;
    rig.images(3).await;
    rig.row("image/missing.png").await;
    assert_eq!(rig.feeder(&["plan"]).await.code, 0);
    let consumer = rig.consumer(&[]);
    assert_eq!(rig.run("feeder", &[]).await.code, Some(2));
    eventually("the dead letter", async || rig.dead().await == 1).await;
    for command in ["status", "pause", "resume", "failures", "retry"] {
        rig.feeder(&[command]).await;
    }
    stop(consumer).await;
    let asked = rig.cloud.requests().snapshot_by("operator").into_keys();
    let used: BTreeSet<Right> = asked
        .flat_map(|operation| needed_by_operator(&operation))
        .collect();
    let policy = include_str!("../../../../deploy/policies/operator.json");
    assert_eq!(used, granted(policy));
}
