//! What the commands that write ask of S3 beyond those that look is what `operator-write.json` grants, each
//! right and not one more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bucket_brigade_testbed::{Fault, FaultEffect};
use serde_json::Value;

use super::CLEAN_ORPHANS;
use crate::rig::{TestRig, wait_until};

const SOURCE: &str = "arn:aws:s3:::SOURCE_BUCKET/SOURCE_KEY_PREFIX*";
const DESTINATION: &str = "arn:aws:s3:::DESTINATION_BUCKET/DESTINATION_KEY_PREFIX*";
const BUCKETS: [&str; 2] = [
    "arn:aws:s3:::SOURCE_BUCKET",
    "arn:aws:s3:::DESTINATION_BUCKET",
];

/// An action on a resource.
type WriteRight = (String, String);

/// Which side a command writes to, and copies to.
#[derive(Clone, Copy)]
enum WriteSide {
    Source,
    Destination,
}

fn write_right(action: &str, resource: &str) -> WriteRight {
    (format!("s3:{action}"), resource.to_owned())
}

/// Source: Amazon S3 User Guide, "Required permissions for Amazon S3 API operations"; a condition on an
/// ETag needs `s3:GetObject` too, which every reader has.
fn needed_rights(operation: &str, writes: WriteSide) -> Vec<WriteRight> {
    let (to, from, bucket) = match writes {
        WriteSide::Source => (SOURCE, DESTINATION, BUCKETS[0]),
        WriteSide::Destination => (DESTINATION, SOURCE, BUCKETS[1]),
    };
    match operation {
        "HeadBucket" => BUCKETS
            .map(|bucket| write_right("ListBucket", bucket))
            .to_vec(),
        "HeadObject" | "GetObject" => {
            vec![
                write_right("GetObject", SOURCE),
                write_right("GetObject", DESTINATION),
            ]
        }
        "GetObjectTagging" => vec![
            write_right("GetObjectTagging", SOURCE),
            write_right("GetObjectTagging", DESTINATION),
        ],
        "GetBucketVersioning" => vec![write_right("GetBucketVersioning", bucket)],
        // Objects of the command's own, which show what the store honours.
        "PutObject" => vec![write_right("PutObject", to)],
        "DeleteObjects" | "DeleteObject" => vec![write_right("DeleteObject", to)],
        "CopyObject" => vec![
            write_right("GetObject", from),
            write_right("GetObjectTagging", from),
            write_right("PutObject", to),
            write_right("PutObjectTagging", to),
        ],
        other => panic!("no right is listed for {other}"),
    }
}

fn granted_rights(policy: &str) -> BTreeSet<WriteRight> {
    let policy: Value = serde_json::from_str(policy).unwrap();
    let list = |value: &Value| match value {
        Value::Array(many) => many
            .iter()
            .map(|one| one.as_str().unwrap().to_owned())
            .collect(),
        one => vec![one.as_str().unwrap().to_owned()],
    };
    let mut granted = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        for action in list(&statement["Action"]) {
            for resource in list(&statement["Resource"]) {
                assert!(
                    granted.insert((action.clone(), resource)),
                    "granted twice: {action}"
                );
            }
        }
    }
    granted
}

/// The operations on S3 that a command adds to those counted before.
struct RequestBaseline(BTreeMap<String, u64>);

impl RequestBaseline {
    fn now(rig: &TestRig) -> Self {
        Self(rig.cloud.request_counts().snapshot_by("feeder"))
    }

    fn rights(&self, rig: &TestRig, writes: WriteSide) -> Vec<WriteRight> {
        let now = rig.cloud.request_counts().snapshot_by("feeder").into_iter();
        let new = now.filter(|(name, count)| self.0.get(name) != Some(count));
        let new = new.filter(|(name, _)| !name.contains("Queue") && !name.contains("Message"));
        new.flat_map(|(name, _)| needed_rights(&name, writes))
            .collect()
    }
}

/// Each command ends with the right that it lacks, also where the store says not a word.
#[tokio::test]
async fn a_command_names_the_right_that_is_missing_and_what_on() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    rig.put_object("images-old", "image/0.png", b"newer").await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 1);
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let probes = "arn:aws:s3:::images-new/avatar/.bucket-brigade-probe-*";
    let beside = "arn:aws:s3:::images-old/image/1.png.bucket-brigade-probe-*";
    for (operation, arguments, code, named) in [
        (
            "HeadBucket",
            &clean[..],
            77,
            "s3:ListBucket on arn:aws:s3:::images-old",
        ),
        (
            "DeleteObject",
            &clean,
            77,
            &format!("s3:DeleteObject on {beside}"),
        ),
        (
            "HeadObject",
            &["verify"],
            1,
            "s3:GetObject on arn:aws:s3:::images-new/avatar/",
        ),
        (
            "CopyObject",
            &["verify", "--recopy"],
            77,
            &format!(
                "s3:PutObject and s3:PutObjectTagging on {probes}, and s3:GetObject and s3:GetObjectTagging on {probes}"
            ),
        ),
    ] {
        let wordless = FaultEffect::Error {
            status: 403,
            code: "AccessDenied".into(),
            message: String::new(),
        };
        let denied = rig.cloud.inject_fault(Fault::new(operation, wordless));
        let ended = rig.run_feeder(arguments).await;
        let printed = format!("{}{}", ended.output, ended.log);
        assert!(printed.contains(named), "{operation}: {printed}");
        assert_eq!(ended.code, code, "{operation}: {printed}");
        drop(denied);
    }
    let denied = FaultEffect::error(403, "AccessDenied");
    let denied = Fault::new("GetQueueAttributes", denied);
    let _denied = rig.cloud.inject_fault(denied);
    let ended = rig.run_feeder(&["plan"]).await;
    let named = format!(
        "(GetQueueAttributes needs sqs:GetQueueAttributes on {}",
        rig.queue.url
    );
    assert!(ended.output.contains(&named), "{}", ended.output);
}

#[tokio::test]
async fn the_commands_that_write_use_every_right_and_no_other() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    let mut used = BTreeSet::new();

    rig.put_object("images-old", "image/0.png", b"newer").await;
    let before = RequestBaseline::now(&rig);
    assert_eq!(rig.run_json_command(&["verify", "--recopy"]).await.code, 0);
    used.extend(before.rights(&rig, WriteSide::Destination));

    let slow = Fault::new("DeleteObjects", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow);
    let before = RequestBaseline::now(&rig);
    let mut clean =
        rig.spawn_json_command(&["clean", "--older-than", "0s", "--confirm", "images-old"]);
    wait_until("the removal", async || slow.hits() > 0).await;
    rig.set_path(&ids[0], "image/0.png").await;
    assert_eq!(clean.wait_for_exit().await.unwrap().code(), Some(2));
    used.extend(before.rights(&rig, WriteSide::Source));
    drop(slow);

    rig.execute_sql("INSERT INTO bucket_brigade.orphans (run_id, destination_key, new_path, etag, row_id)
             SELECT 1, new_path, new_path, etag, row_id FROM bucket_brigade.moves WHERE row_id <> '';
             DELETE FROM images").await;
    let before = RequestBaseline::now(&rig);
    assert_eq!(rig.run_json_command(&CLEAN_ORPHANS).await.code, 0);
    used.extend(before.rights(&rig, WriteSide::Destination));

    let looks = granted_rights(include_str!("../../../../../deploy/policies/operator.json"));
    let mut writes = granted_rights(include_str!(
        "../../../../../deploy/policies/operator-write.json"
    ));
    // Objects above 5 GiB alone are copied in parts, which may have to be given up.
    for resource in [SOURCE, DESTINATION] {
        assert!(writes.remove(&write_right("AbortMultipartUpload", resource)));
    }
    let beyond: BTreeSet<WriteRight> = used.difference(&looks).cloned().collect();
    assert_eq!(beyond, writes);
}
