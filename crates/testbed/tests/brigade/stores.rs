//! Stores that are not S3: what they ignore costs the application nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bucket_brigade_common::object_store::ObjectStore;
use bucket_brigade_common::object_store::s3::{CopyLimits, CopyMethod, S3Options};
use bucket_brigade_testbed::application::ObjectProperties;
use bucket_brigade_testbed::cloud::{
    CloudObserver, CreateQueueOptions, ObservedRequest, RAW_DISPOSITION, StoreQuirks,
};
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};
use futures::future::BoxFuture;

use crate::rig::{
    TestRig, image_properties, location, sha256, stop_consumer, wait_for_exit, wait_until,
};

pub(crate) const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

async fn rig_with(options: CloudOptions) -> TestRig {
    TestRig::with_options(options, CreateQueueOptions::default()).await
}

/// Feeds all that is in scope to a consumer with its defaults; the consumer's log.
pub(crate) async fn migrate(rig: &TestRig, settings: &[(&str, &str)]) -> String {
    let consumer = rig.spawn_consumer(settings);
    let ended = rig.run_program("feeder", settings).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await
}

async fn verify(rig: &TestRig) {
    let verify = rig.run_feeder(&["verify"]).await;
    assert_eq!(verify.code, 0, "{}{}", verify.output, verify.log);
}

async fn bytes_at(rig: &TestRig, bucket: &str, key: &str) -> String {
    let object = rig.application.get_object(&location(bucket, key)).await;
    object.unwrap().unwrap().sha256
}

/// Content that no two offsets share.
fn content(size: usize) -> Vec<u8> {
    (0..size)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

#[tokio::test]
async fn where_only_uploads_are_conditional_the_bytes_go_through_the_consumer() {
    let rig = rig_with(CloudOptions::like_ceph()).await;
    rig.add_images(3).await;
    let properties = ObjectProperties {
        content_encoding: Some("gzip".into()),
        content_disposition: Some("inline".into()),
        ..image_properties()
    };
    let large = content((2 << 20) + 17);
    let at = location("images-old", "image/large +é.png");
    let put = rig.application.put_object(&at, large.clone(), &properties);
    put.await.unwrap();
    rig.add_row("image/large +é.png").await;
    rig.put_object("images-old", "image/empty.png", b"").await;
    rig.add_row("image/empty.png").await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output.contains("bytes go through the consumers"),
        "{}",
        plan.output
    );
    assert!(
        plan.output.contains("10 GetObject and PutObject"),
        "{}",
        plan.output
    );
    let log = migrate(&rig, &[]).await;
    assert!(log.contains("stream"), "{log}");
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.count_rows("failures").await
        ),
        (5, 0)
    );
    let moved = location("images-new", "avatar/large +é.png");
    let moved = rig
        .application
        .get_tagged_object(&moved)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(moved.sha256, sha256(&large));
    assert_eq!(moved.properties, properties);
    verify(&rig).await;
    rig.put_object("images-old", "image/0.png", b"newer").await;
    let recopied = rig.run_feeder(&["verify", "--recopy"]).await;
    assert_eq!(recopied.code, 0, "{}{}", recopied.output, recopied.log);
    assert_eq!(
        bytes_at(&rig, "images-new", "avatar/0.png").await,
        sha256(b"newer")
    );
    let copies = rig.cloud.request_counts();
    assert_eq!(
        copies.count_operation_by("consumer", "CopyObject"),
        1,
        "the probe's alone"
    );
}

#[tokio::test]
async fn an_object_in_parts_is_streamed_with_all_that_it_has() {
    const PART: u64 = 5 << 20;
    for quirks in [
        StoreQuirks::default(),
        StoreQuirks {
            hides_complete_etag: true,
            ..StoreQuirks::default()
        },
    ] {
        let rig = rig_with(CloudOptions {
            quirks,
            ..CloudOptions::default()
        })
        .await;
        let bytes = content(usize::try_from(PART * 2 + 12_345).unwrap());
        let at = location("images-old", "image/large.png");
        rig.application
            .put_object(&at, bytes.clone(), &image_properties())
            .await
            .unwrap();
        let limits = CopyLimits {
            single_bytes: PART,
            part_bytes: PART,
        };
        let route = rig.run_spec().rule.route_for("image/large.png").unwrap();
        for method in [CopyMethod::Stream, CopyMethod::Server] {
            let store = rig
                .store(S3Options {
                    limits,
                    method,
                    ..S3Options::default()
                })
                .await;
            let copied = store.copy_multipart(&route).await.unwrap();
            let written = rig.cloud.list_etags("images-new")["avatar/large.png"].clone();
            assert_eq!(copied.etag, written);
            let moved = location("images-new", "avatar/large.png");
            let moved = rig
                .application
                .get_tagged_object(&moved)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(moved.sha256, sha256(&bytes));
            assert_eq!(moved.properties, image_properties());
            // Nothing is overwritten in parts either.
            let again = store.copy_multipart(&route).await.unwrap_err();
            assert_eq!(again.code(), "DestinationExists");
            let s3 = rig.cloud.s3_client();
            let delete = s3
                .delete_object()
                .bucket("images-new")
                .key("avatar/large.png");
            delete.send().await.unwrap();
        }
    }
}

/// Counts what is performed of one operation on one key.
struct Performed(AtomicUsize);

impl CloudObserver for Performed {
    fn before_request<'a>(&'a self, request: ObservedRequest<'a>) -> BoxFuture<'a, ()> {
        if request.operation == "PutObject"
            && request.key == "avatar/0.png"
            && request.caller == "consumer"
        {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Box::pin(std::future::ready(()))
    }

    fn after_response(&self, _: ObservedRequest<'_>, _: &[u8]) {}
}

#[tokio::test]
async fn a_copy_that_arrives_late_overwrites_nothing() {
    let rig = rig_with(CloudOptions::like_ceph()).await;
    let performed = Arc::new(Performed(AtomicUsize::new(0)));
    rig.cloud
        .observe_requests(Arc::clone(&performed) as _)
        .unwrap();
    let ids = rig.add_images(1).await;
    let slow = Fault::new("PutObject", FaultEffect::Slow(Duration::from_secs(6)));
    let slow = slow
        .key_contains("avatar/0.png")
        .caller("consumer")
        .times(1);
    let _slow = rig.cloud.inject_fault(slow);
    migrate(&rig, &[("COPY_TIMEOUT", "1s")]).await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    wait_until("the late copy", async || {
        performed.0.load(Ordering::Relaxed) == 2
    })
    .await;
    assert_eq!(
        bytes_at(&rig, "images-new", "avatar/0.png").await,
        sha256(b"the application's")
    );
}

#[tokio::test]
async fn a_recopy_does_not_overwrite_what_the_application_wrote_meanwhile() {
    let rig = rig_with(CloudOptions::like_ceph()).await;
    rig.add_images(1).await;
    migrate(&rig, &[]).await;
    rig.put_object("images-old", "image/0.png", b"newer").await;
    let slow = Fault::new("PutObject", FaultEffect::Delay(Duration::from_secs(2)));
    let slow = slow.key_contains("avatar/0.png").caller("feeder");
    let slow = rig.cloud.inject_fault(slow);
    let mut recopy = rig.spawn("feeder", &[], &["verify", "--recopy"]);
    wait_until("the copy", async || slow.hits() > 0).await;
    rig.put_object("images-new", "avatar/0.png", b"the application's")
        .await;
    let ended = wait_for_exit(&mut recopy).await;
    assert_eq!(
        bytes_at(&rig, "images-new", "avatar/0.png").await,
        sha256(b"the application's")
    );
    let is_left = "1 changed by the application since, 0 copied anew";
    assert!(ended.log.contains(is_left), "{}", ended.log);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn a_source_that_is_uploaded_anew_in_that_moment_is_not_removed() {
    let rig = rig_with(CloudOptions::like_ceph()).await;
    rig.add_images(3).await;
    migrate(&rig, &[]).await;
    verify(&rig).await;
    let slow = Fault::new("DeleteObject", FaultEffect::Delay(Duration::from_secs(1)));
    let slow = rig.cloud.inject_fault(slow.key_contains("image/1.png"));
    let mut clean = rig.spawn("feeder", &[], &CLEAN);
    wait_until("the removal", async || slow.hits() > 0).await;
    rig.put_object("images-old", "image/1.png", b"newer").await;
    let ended = wait_for_exit(&mut clean).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(
        bytes_at(&rig, "images-old", "image/1.png").await,
        sha256(b"newer")
    );
    assert_eq!(
        rig.cloud.count_objects("images-old"),
        1,
        "and no probe is left"
    );
}

#[tokio::test]
async fn a_store_without_any_condition_on_deletes_is_warned_of() {
    let options = CloudOptions::like_ceph();
    let quirks = StoreQuirks {
        knows_unmodified_since: false,
        ..options.quirks
    };
    let rig = rig_with(CloudOptions { quirks, ..options }).await;
    rig.add_images(3).await;
    migrate(&rig, &[]).await;
    verify(&rig).await;
    let clean = rig.run_feeder(&CLEAN).await;
    assert_eq!(clean.code, 0, "{}{}", clean.output, clean.log);
    assert!(
        clean.log.contains("removes whatever stands under a key"),
        "{}",
        clean.log
    );
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("operator", "DeleteObjects"),
        0
    );
}

#[tokio::test]
async fn what_is_brought_back_overwrites_nothing() {
    let rig = rig_with(CloudOptions::like_ceph()).await;
    let ids = rig.add_images(2).await;
    migrate(&rig, &[]).await;
    verify(&rig).await;
    let slow = |operation| {
        let slow = Fault::new(operation, FaultEffect::Delay(Duration::from_secs(2)));
        let slow = slow.key_contains("image/1.png").caller("feeder");
        rig.cloud.inject_fault(slow)
    };
    let (removal, return_) = (slow("DeleteObject"), slow("PutObject"));
    let mut clean = rig.spawn("feeder", &[], &CLEAN);
    wait_until("the removal", async || removal.hits() > 0).await;
    let id = &ids[1];
    rig.execute_sql(&format!(
        "UPDATE images SET path = 'image/1.png' WHERE id = {id}"
    ))
    .await;
    wait_until("the return", async || return_.hits() > 0).await;
    rig.put_object("images-old", "image/1.png", b"the application's")
        .await;
    let ended = wait_for_exit(&mut clean).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(
        bytes_at(&rig, "images-old", "image/1.png").await,
        sha256(b"the application's")
    );
}

#[tokio::test]
async fn a_header_that_is_not_utf8_is_one_objects_trouble() {
    let quirks = StoreQuirks {
        sends_raw_headers: true,
        ..StoreQuirks::default()
    };
    let rig = rig_with(CloudOptions {
        quirks,
        ..CloudOptions::default()
    })
    .await;
    let ids = rig.add_images(3).await;
    let raw = "attachment; filename=\"caf%E9.png\"";
    let metadata = [(RAW_DISPOSITION.to_owned(), raw.to_owned())].into();
    let properties = ObjectProperties {
        metadata,
        ..image_properties()
    };
    let at = location("images-old", "image/1.png");
    rig.application
        .put_object(&at, b"raw".to_vec(), &properties)
        .await
        .unwrap();
    migrate(&rig, &[]).await;
    // Met again at the destination, it is recognised.
    rig.execute_sql(&format!(
        "UPDATE images SET path = 'image/1.png' WHERE id = {}",
        ids[1]
    ))
    .await;
    migrate(&rig, &[]).await;
    assert_eq!(rig.count_rows("failures").await, 0);
    let verify = rig.run_json_command(&["verify"]).await;
    assert_eq!(verify.code, 1, "{}", verify.json);
    assert_eq!(verify.field_of("mismatches", &ids[1], "code"), "Unreadable");
    let clean = rig.run_json_command(&CLEAN).await;
    assert_eq!(clean.number_of("removed"), 2, "{}", clean.json);
    let back = rig
        .run_json_command(&["rollback", "--ids", &ids[1], "--yes"])
        .await;
    assert_eq!(back.code, 0, "{}", back.json);
    assert_eq!(rig.path_of(&ids[1]).await.unwrap(), "image/1.png");
}

#[tokio::test]
async fn a_header_that_could_not_be_written_as_it_is_fails_one_row() {
    let rig = rig_with(CloudOptions::like_ceph()).await;
    let ids = rig.add_images(2).await;
    let metadata = [(RAW_DISPOSITION.to_owned(), "caf%E9".to_owned())].into();
    let properties = ObjectProperties {
        metadata,
        ..image_properties()
    };
    let at = location("images-old", "image/1.png");
    rig.application
        .put_object(&at, b"raw".to_vec(), &properties)
        .await
        .unwrap();
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(rig.failure_code(&ids[1]).await.unwrap(), "Unreadable");
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
}

#[tokio::test]
async fn a_missing_right_is_named_where_the_store_says_nothing() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    migrate(&rig, &[]).await;
    verify(&rig).await;
    let silent = FaultEffect::Error {
        status: 403,
        code: "AccessDenied".into(),
        message: String::new(),
    };
    let _denied = rig.cloud.inject_fault(Fault::new("DeleteObject", silent));
    let clean = rig.run_feeder(&CLEAN).await;
    assert_eq!(clean.code, 77, "{}", clean.log);
    assert!(clean.log.contains("s3:DeleteObject"), "{}", clean.log);
}

#[tokio::test]
async fn a_store_that_overwrites_in_any_case_must_be_accepted_by_name() {
    let quirks = StoreQuirks {
        ignores_put_conditions: true,
        ..StoreQuirks::default()
    };
    let rig = rig_with(CloudOptions {
        conditional_copy: false,
        quirks,
        ..CloudOptions::default()
    })
    .await;
    rig.add_images(1).await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 1, "{}", plan.output);
    assert!(
        plan.output.contains("ACCEPT_UNCONDITIONAL"),
        "{}",
        plan.output
    );
    rig.open_run().await;
    let ended = rig.run_program("consumer", &[]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    let has_words =
        ["ACCEPT_UNCONDITIONAL", "between the look"].map(|word| ended.log.contains(word));
    assert_eq!(has_words, [true, true], "{}", ended.log);
    let accepted = [("ACCEPT_UNCONDITIONAL", "yes")];
    migrate(&rig, &accepted).await;
    assert_eq!(rig.count_rows("moves").await, 1);
    // Some refuse every condition.
    let refused = Fault::new("CopyObject", FaultEffect::error(501, "NotImplemented"));
    let _refused = rig.cloud.inject_fault(refused.with_header("if-match"));
    let newer = b"newer bytes";
    rig.put_object("images-old", "image/0.png", newer).await;
    let recopy = ["verify", "--recopy"];
    let verify = rig.run_program_with("feeder", &accepted, &recopy).await;
    assert_eq!(verify.code, Some(0), "{}", verify.log);
    let copied = rig.destination_sha256("avatar/0.png").await;
    assert_eq!(copied.unwrap(), sha256(newer));
}
