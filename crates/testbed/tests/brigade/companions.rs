//! Objects that belong to an image and that no row names: copied and verified with it.

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, location, sha256, stop_consumer, wait_until};

pub(crate) const PATTERNS: &str = "{key}.200x200.jpg, {dir}/thumb_{name},!{stem}@2x.{ext}";
pub(crate) const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

pub(crate) async fn rig_with(patterns: &str) -> TestRig {
    let mut rig = TestRig::new().await;
    rig.application.companions = patterns.into();
    rig
}

/// What belongs to `image/u/NAME.png` by the patterns.
pub(crate) fn companions(name: &str) -> [String; 3] {
    [
        format!("u/{name}.png.200x200.jpg"),
        format!("u/thumb_{name}.png"),
        format!("u/{name}@2x.png"),
    ]
}

/// An image with all its companions.
pub(crate) async fn add_whole(rig: &TestRig, name: &str) -> String {
    for key in companions(name) {
        rig.put_object("images-old", &format!("image/{key}"), key.as_bytes())
            .await;
    }
    rig.add_image(&format!("image/u/{name}.png")).await
}

pub(crate) async fn assert_moved(rig: &TestRig, id: &str, name: &str) {
    let path = rig.path_of(id).await.unwrap();
    assert_eq!(path, format!("avatar/u/{name}.png"));
    for key in companions(name) {
        let copy = location("images-new", &format!("avatar/{key}"));
        let copy = rig.application.get_tagged_object(&copy).await.unwrap();
        let copy = copy.unwrap_or_else(|| panic!("no copy of {key}"));
        assert_eq!(copy.sha256, sha256(key.as_bytes()));
        assert_eq!(copy.properties, crate::rig::image_properties());
    }
}

#[tokio::test]
async fn companions_move_with_their_image() {
    let rig = rig_with(PATTERNS).await;
    let whole = add_whole(&rig, "1").await;
    // Copied at an earlier delivery.
    rig.put_object("images-new", "avatar/u/thumb_1.png", b"u/thumb_1.png")
        .await;
    let plain = rig.add_image("image/2.png").await;
    rig.put_object("images-old", "image/2@2x.png", b"required")
        .await;
    let lacking = rig.add_image("image/3.png").await;
    let before = rig.cloud.request_counts().count_operation("CopyObject");
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on"), ("COMPANIONS", "-")]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_moved(&rig, &whole, "1").await;
    assert_eq!(rig.path_of(&plain).await.unwrap(), "avatar/2.png");
    assert!(rig.object_exists("images-new", "avatar/2@2x.png").await);
    assert_eq!(rig.path_of(&lacking).await.unwrap(), "image/3.png");
    let code = rig.failure_code(&lacking).await;
    assert_eq!(code.as_deref(), Some("CompanionMissing"));
    let recorded = "SELECT count(*) FROM bucket_brigade.moves WHERE companions IS NOT NULL
        AND (companions ? '{stem}@2x.{ext}') AND (companions ? '{dir}/thumb_{name}') = (row_id = ";
    let recorded = format!("{recorded}'{whole}')");
    assert_eq!(rig.query_number(&recorded).await, 2);
    let after = rig.cloud.request_counts().count_operation("CopyObject");
    assert!(
        after - before >= 12,
        "three images, each with three patterns"
    );
    let verified = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(verified.code, 0, "{}", verified.json);
}

#[tokio::test]
async fn an_image_whose_companion_cannot_be_copied_stays() {
    let rig = rig_with(PATTERNS).await;
    let taken = add_whole(&rig, "taken").await;
    rig.put_object(
        "images-new",
        "avatar/u/thumb_taken.png",
        b"the application's",
    )
    .await;
    let refused = add_whole(&rig, "refused").await;
    let archived = FaultEffect::error(403, "InvalidObjectState");
    let fault = Fault::new("CopyObject", archived).key_contains("refused@2x");
    let fault = rig.cloud.inject_fault(fault);
    let whole = add_whole(&rig, "whole").await;
    let busy = Fault::new("CopyObject", FaultEffect::error(503, "SlowDown"));
    let _busy = rig
        .cloud
        .inject_fault(busy.key_contains("whole@2x").times(2));
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_moved(&rig, &whole, "whole").await;
    for (id, name, code) in [
        (&taken, "taken", "DestinationConflict"),
        (&refused, "refused", "InvalidObjectState"),
    ] {
        let path = rig.path_of(id).await.unwrap();
        assert_eq!(path, format!("image/u/{name}.png"));
        assert_eq!(rig.failure_code(id).await.as_deref(), Some(code));
    }
    let named = "SELECT count(*) FROM bucket_brigade.failures WHERE message LIKE 'its companion ''image/u/%'";
    assert_eq!(rig.query_number(named).await, 2);
    let thumb = rig.destination_sha256("avatar/u/thumb_taken.png").await;
    assert_eq!(thumb, Some(sha256(b"the application's")));
    drop(fault);
    rig.delete_object("images-new", "avatar/u/thumb_taken.png")
        .await;
    let retried = rig.run_command(&["retry", "--yes"]).await;
    assert_eq!(retried.code, Some(0), "{}", retried.log);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_moved(&rig, &taken, "taken").await;
    assert_moved(&rig, &refused, "refused").await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_lost_or_differing_companion_is_a_mismatch_of_its_row() {
    let rig = rig_with(PATTERNS).await;
    let mut ids = Vec::new();
    for name in ["sound", "lost", "replaced", "changed", "unsourced"] {
        ids.push(add_whole(&rig, name).await);
    }
    rig.run_migration().await;
    rig.delete_object("images-new", "avatar/u/lost@2x.png")
        .await;
    rig.put_object("images-new", "avatar/u/thumb_replaced.png", b"another")
        .await;
    rig.put_object("images-old", "image/u/thumb_changed.png", b"a newer one")
        .await;
    rig.delete_object("images-old", "image/u/unsourced.png.200x200.jpg")
        .await;
    let verified = rig.run_json_command(&["verify"]).await;
    assert_eq!(verified.code, 1, "{}", verified.json);
    let code = |number: usize| verified.field_of("mismatches", &ids[number], "code");
    assert_eq!(code(0), "not listed");
    assert_eq!(code(1), "CopyGone");
    assert_eq!(code(2), "CopyReplaced");
    assert_eq!(code(3), "SourceChanged");
    assert_eq!(code(4), "SourceGone");
    let message = verified.field_of("mismatches", &ids[1], "message");
    assert!(
        message.contains("its companion 'avatar/u/lost@2x.png'"),
        "{message}"
    );
    let verified = rig.run_json_command(&["verify", "--recopy"]).await;
    let code = |number: usize| verified.field_of("mismatches", &ids[number], "code");
    assert_eq!(
        [code(1), code(2), code(3)],
        ["not listed", "CopyReplaced", "not listed"]
    );
    let copy = rig.destination_sha256("avatar/u/thumb_changed.png").await;
    assert_eq!(copy, Some(sha256(b"a newer one")));
    let lost = "avatar/u/lost@2x.png";
    assert!(rig.object_exists("images-new", lost).await, "made anew");
    // Only the sound ones may lose their sources.
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(cleaned.number_of("removed"), 12, "{}", cleaned.json);
    let back = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!(
        (back.code, back.number_of("rolled_back")),
        (2, 0),
        "{}",
        back.json
    );
    let reason = |number: usize| back.field_of("left_alone", &ids[number], "reason");
    for number in [0, 1, 3] {
        assert_eq!(reason(number), "source_removed");
    }
    assert_eq!(reason(2), "companion_replaced");
    assert_eq!(reason(4), "companion_gone");
}

#[tokio::test]
async fn a_kill_between_companions_and_row_leaves_the_row_as_it_was() {
    let rig = rig_with(PATTERNS).await;
    let id = add_whole(&rig, "1").await;
    let stuck = FaultEffect::DelayedResponse(std::time::Duration::from_mins(1));
    let stuck = Fault::new("CopyObject", stuck)
        .key_contains("1@2x")
        .times(1);
    let stuck = rig.cloud.inject_fault(stuck);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    let settings = [("CONDITIONAL_COPY", "on"), ("VISIBILITY_TIMEOUT", "2s")];
    let mut consumer = rig.spawn_consumer(&settings);
    wait_until("the last companion", async || stuck.hits() > 0).await;
    consumer.kill().await.unwrap();
    assert_eq!(rig.path_of(&id).await.unwrap(), "image/u/1.png");
    let consumer = rig.spawn_consumer(&settings);
    let ended = crate::rig::wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_moved(&rig, &id, "1").await;
}

#[tokio::test]
async fn bad_patterns_are_refused_at_the_start() {
    let rig = TestRig::new().await;
    rig.add_image("image/1.png").await;
    for (patterns, words) in [
        ("{file}.jpg", "'{file}.jpg' has the field {file}"),
        ("{key}.a,{dir}/{name}", "'{dir}/{name}' is the image itself"),
        ("{key}.a,,{key}.b", "a pattern is empty"),
        ("{key}.a,!{key}.a", "are the same object"),
        ("../{name}", "leaves the key prefix"),
        ("{key", "a brace without its other half"),
        ("'{key}.jpg'", "is in quotes"),
        ("logo.png", "would be one object for many images"),
    ] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run_program(program, &[("COMPANIONS", patterns)]).await;
            assert_eq!(ended.code, Some(64), "{}", ended.log);
            let is_named = ended.log.contains("COMPANIONS: ") && ended.log.contains(words);
            assert!(is_named, "no '{words}': {}", ended.log);
        }
    }
    let schema = "SELECT count(*) FROM pg_namespace WHERE nspname = 'bucket_brigade'";
    assert_eq!(rig.query_number(schema).await, 0);
}

#[tokio::test]
async fn a_plan_finds_what_would_stay_behind() {
    let rig = TestRig::new().await;
    for name in ["1", "2"] {
        add_whole(&rig, name).await;
        let small = format!("image/u/small/{name}.png");
        rig.put_object("images-old", &small, b"small").await;
    }
    // Named by a row, and nobody's neighbour.
    rig.add_image("image/u/1.jpg").await;
    rig.put_object("images-old", "image/u/12.png", b"of no row")
        .await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    assert!(plan.output.contains("WARN  companions"), "{}", plan.output);
    for pattern in [
        "{key}.200x200.jpg",
        "{dir}/thumb_{name}",
        "{stem}@2x.{ext}",
        "{dir}/small/{name}",
    ] {
        assert!(plan.output.contains(pattern), "{pattern}: {}", plan.output);
    }
    assert!(!plan.output.contains("{stem}.jpg"), "{}", plan.output);
    let all = "{key}.200x200.jpg,{dir}/thumb_{name},{stem}@2x.{ext},{dir}/small/{name}";
    let given = [("COMPANIONS", all)];
    let plan = rig.run_program_with("feeder", &given, &["plan"]).await;
    assert_eq!(plan.code, Some(0), "{}", plan.log);
    assert!(!plan.log.contains("WARN  companions"), "{}", plan.log);
}

/// Images come before folders in a listing.
#[tokio::test]
async fn a_plan_finds_folders_behind_many_images() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    for number in 0..30 {
        for folder in ["thumb", "zoomed"] {
            let key = format!("image/{folder}/{number}.png");
            rig.put_object("images-old", &key, b"small").await;
        }
    }
    let plan = rig.run_feeder(&["plan"]).await;
    for pattern in ["{dir}/thumb/{name}", "{dir}/zoomed/{name}"] {
        assert!(plan.output.contains(pattern), "{pattern}: {}", plan.output);
    }
}
