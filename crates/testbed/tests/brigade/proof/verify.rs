//! verify: what it finds, what it leaves, and what `--recopy` mends.

use std::time::Duration;

use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, eventually, sha};

#[tokio::test]
async fn a_sound_migration_is_sound() {
    let rig = Rig::new().await;
    let ids = rig.moved(4).await;
    rig.row("elsewhere/5.png").await;
    let told = rig.tell(&["verify", "--full"]).await;
    assert_eq!(
        (told.code, told.number("checked"), told.number("sound")),
        (0, 4, 4)
    );
    assert_eq!(
        (told.number("table_rows"), told.number("table_outside")),
        (5, 1)
    );
    let verified = "SELECT count(*) FROM bucket_brigade.moves
        WHERE verified_at > moved_at AND source_etag = etag AND size_bytes > 0";
    assert_eq!(rig.number(verified).await, 4);
    // A source that was written again, but is the same, has not changed.
    rig.object("images-old", "image/0.png", b"image/0.png")
        .await;
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
}

#[tokio::test]
async fn each_mismatch_is_found_and_named() {
    let rig = Rig::new().await;
    let ids = rig.moved(8).await;
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    rig.object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.remove("images-new", "avatar/1.png").await;
    rig.remove("images-old", "image/2.png").await;
    rig.object("images-old", "image/3.png", b"newer").await;
    rig.set_path(&ids[4], "elsewhere/4.png").await;
    rig.sql(&format!("DELETE FROM images WHERE id = {}", ids[5]))
        .await;
    // The copies of rows that name them no more are nobody's business.
    rig.remove("images-new", "avatar/5.png").await;
    rig.sql(&format!(
        "UPDATE bucket_brigade.moves SET size_bytes = 1 WHERE row_id = '{}'",
        ids[6]
    ))
    .await;
    let told = rig.tell(&["verify"]).await;
    assert_eq!(told.code, 1);
    let code = |number: usize| told.of("mismatches", &ids[number], "code");
    assert_eq!(code(0), "CopyReplaced");
    assert_eq!(code(1), "CopyGone");
    assert_eq!(code(2), "SourceGone");
    assert_eq!(code(3), "SourceChanged");
    assert_eq!(code(6), "SizeDiffers");
    assert_eq!(told.number("mismatched"), 5);
    assert_eq!((told.number("outdated"), told.number("sound")), (2, 2));
    // What was verified before is so no more.
    let unverified = "SELECT count(*) FROM bucket_brigade.moves WHERE verified_at IS NULL";
    assert_eq!(rig.number(unverified).await, 6);
    let seen = rig.command(&["verify"]).await.log;
    assert!(
        seen.contains(&format!(
            "CopyGone  row {}  avatar/1.png: the copy does not exist",
            ids[1]
        )),
        "{seen}"
    );
    assert!(seen.contains("5 mismatches"), "{seen}");
}

#[tokio::test]
async fn full_mode_finds_every_row_without_an_object() {
    let rig = Rig::new().await;
    rig.moved(2).await;
    let old = rig.row("image/never.png").await;
    let new = rig.row("avatar/never.png").await;
    rig.row("elsewhere/never.png").await;
    let told = rig.tell(&["verify", "--full"]).await;
    assert_eq!((told.code, told.number("mismatched")), (1, 2));
    for id in [old, new] {
        assert_eq!(told.of("mismatches", &id, "code"), "NoObject");
    }
    assert_eq!(rig.tell(&["verify"]).await.code, 0, "the moves are sound");
}

#[tokio::test]
async fn recopy_mends_copies_that_are_ours_still() {
    let rig = Rig::new().await;
    let first = rig.image("image/0.png").await;
    let second = rig.row("image/0.png").await;
    let replaced = rig.image("image/1.png").await;
    let outdated = rig.image("image/2.png").await;
    rig.migrate().await;
    for name in ["0", "1", "2"] {
        let key = format!("image/{name}.png");
        rig.object("images-old", &key, b"newer, and longer").await;
    }
    rig.object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.set_path(&outdated, "elsewhere/2.png").await;
    let told = rig.tell(&["verify", "--recopy"]).await;
    assert_eq!(
        (told.code, told.number("recopied"), told.number("outdated")),
        (1, 2, 1)
    );
    assert_eq!(told.each("mismatches", "code"), ["CopyReplaced"]);
    assert_eq!(told.of("mismatches", &replaced, "code"), "CopyReplaced");
    assert_eq!(
        rig.destination("avatar/0.png").await.unwrap(),
        sha(b"newer, and longer")
    );
    assert_eq!(
        rig.destination("avatar/1.png").await.unwrap(),
        sha(b"the application's")
    );
    assert_eq!(
        rig.destination("avatar/2.png").await.unwrap(),
        sha(b"image/2.png")
    );
    for id in [first, second] {
        let evidence = format!(
            "SELECT count(*) FROM bucket_brigade.moves WHERE row_id = '{id}' AND size_bytes = 17
              AND etag = md5('newer, and longer') AND verified_at IS NOT NULL AND recopied_at IS NOT NULL"
        );
        assert_eq!(rig.number(&evidence).await, 1);
    }
}

#[tokio::test]
async fn recopy_never_overwrites_what_the_application_writes_meanwhile() {
    let rig = Rig::new().await;
    rig.moved(1).await;
    rig.object("images-old", "image/0.png", b"newer").await;
    let slow = Effect::Delay(Duration::from_secs(1));
    let slow = rig
        .cloud
        .inject(Fault::new("CopyObject", slow).caller("feeder"));
    let mut verify = rig.begin(&["verify", "--recopy"]);
    eventually("the copy to start", async || slow.hits() > 0).await;
    rig.object("images-new", "avatar/0.png", b"the application's")
        .await;
    assert_eq!(verify.wait().await.unwrap().code(), Some(1));
    assert_eq!(
        rig.destination("avatar/0.png").await.unwrap(),
        sha(b"the application's")
    );
    let code = "SELECT count(*) FROM bucket_brigade.mismatches WHERE code = 'CopyReplaced'";
    assert_eq!(rig.number(code).await, 1);
}

/// Killed between the new copy and its evidence, the ledger has the old ETag.
#[tokio::test]
async fn a_new_copy_that_was_not_written_down_is_taken_over() {
    let rig = Rig::new().await;
    rig.moved(1).await;
    for (bucket, key) in [
        ("images-old", "image/0.png"),
        ("images-new", "avatar/0.png"),
    ] {
        rig.object(bucket, key, b"newer").await;
    }
    let told = rig.tell(&["verify"]).await;
    assert_eq!(
        (told.code, told.each("mismatches", "code")),
        (1, vec!["CopyReplaced".to_owned()])
    );
    let told = rig.tell(&["verify", "--recopy"]).await;
    assert_eq!((told.code, told.number("recopied")), (0, 1));
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    assert_eq!(rig.cloud.requests().count_by("feeder", "CopyObject"), 0);
}

#[tokio::test]
async fn a_row_that_changes_while_it_is_looked_at_is_no_mismatch() {
    let rig = Rig::new().await;
    let ids = rig.moved(1).await;
    rig.remove("images-new", "avatar/0.png").await;
    let late = Fault::new("HeadObject", Effect::LateAnswer(Duration::from_secs(1)));
    let late = rig
        .cloud
        .inject(late.caller("feeder").key_contains("avatar/"));
    let mut verify = rig.begin(&["verify"]);
    eventually("the look at the copy", async || late.hits() > 0).await;
    rig.set_path(&ids[0], "elsewhere/0.png").await;
    assert_eq!(verify.wait().await.unwrap().code(), Some(0));
    assert_eq!(rig.count("mismatches").await, 0);
}

#[tokio::test]
async fn a_run_that_does_not_exist_and_a_wrong_sample_are_refused() {
    let rig = Rig::new().await;
    let ended = rig.command(&["verify"]).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    for sample in ["0", "101", "some"] {
        let ended = rig.command(&["verify", "--sample", sample]).await;
        assert_eq!(ended.code, Some(64));
        assert!(ended.log.contains("--sample"), "{}", ended.log);
    }
}
