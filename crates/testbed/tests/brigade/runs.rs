//! Several runs in one database: each message, process and command is about its own.

use std::time::Duration;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// The settings of a run, left out: the ledger has them.
const FROM_LEDGER: [(&str, &str); 7] = [
    ("IMAGES_TABLE", "-"),
    ("ID_COLUMN", "-"),
    ("PATH_COLUMN", "-"),
    ("SOURCE_BUCKET_NAME", "-"),
    ("DESTINATION_BUCKET_NAME", "-"),
    ("OLD_PREFIX", "-"),
    ("NEW_PREFIX", "-"),
];

/// A second table, whose images go elsewhere in the bucket.
const AVATARS: [(&str, &str); 2] = [("IMAGES_TABLE", "avatars"), ("NEW_PREFIX", "faces/")];

async fn add_avatars(rig: &TestRig, count: usize) {
    rig.execute_sql("CREATE TABLE avatars (id bigint PRIMARY KEY, path text NOT NULL)")
        .await;
    for number in 0..count {
        let path = format!("image/face-{number}.png");
        rig.put_object("images-old", &path, path.as_bytes()).await;
        rig.execute_sql(&format!("INSERT INTO avatars VALUES ({number}, '{path}')"))
            .await;
    }
}

async fn command(rig: &TestRig, more: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let ended = wait_for_exit(&mut rig.spawn("feeder", more, arguments)).await;
    (ended.code.unwrap_or(-1), ended.log)
}

#[tokio::test]
async fn a_consumer_left_over_from_another_run_touches_no_row_of_this_one() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    add_avatars(&rig, 20).await;
    let left_over = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let mut feeder = rig.spawn("feeder", &AVATARS, &[]);
    wait_until("a message to be given back", async || {
        left_over.log_tail(50).contains("message is of run 2")
    })
    .await;
    let consumer = rig.spawn_consumer(&AVATARS);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let moved = "SELECT count(*) FROM avatars WHERE path LIKE 'faces/%'";
    assert_eq!(rig.query_number(moved).await, 20);
    let by_run = "SELECT count(*) FROM bucket_brigade.moves WHERE run_id = ";
    assert_eq!(rig.query_number(&format!("{by_run} 1")).await, 5);
    assert_eq!(rig.query_number(&format!("{by_run} 2")).await, 20);
    assert_eq!(
        rig.count_rows("changes").await + rig.count_rows("poison").await,
        0
    );
    stop_consumer(left_over).await;
    stop_consumer(consumer).await;
}

/// New ones all the time stand for dead letters, by which the queue's count changes for hours.
#[tokio::test]
async fn messages_of_a_ledger_that_was_dropped_hold_neither_new_rows_nor_the_end_up() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    let late = async {
        wait_until("the first moves", async || {
            rig.count_rows("moves").await == 3
        })
        .await;
        rig.add_image("image/late.png").await;
    };
    let send = async {
        let mut ticks = tokio::time::interval(Duration::from_secs(3));
        loop {
            ticks.tick().await;
            let body =
                serde_json::json!({ "run": (77 << 20) + 1, "id": "1", "path": "image/0.png" });
            rig.send_message(&body.to_string()).await;
        }
    };
    let ended = tokio::select! {
        () = send => unreachable!("it goes on"),
        (ended, ()) = async { tokio::join!(wait_for_exit(&mut feeder), late) } => ended,
    };
    assert_eq!(rig.count_rows("moves").await, 4);
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(rig.queued_messages().await > 0);
    let log = stop_consumer(consumer).await;
    assert!(log.contains("purge the queue"), "{log}");
}

#[tokio::test]
async fn consumers_and_commands_find_the_run_in_the_ledger() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let consumer = rig.spawn_consumer(&FROM_LEDGER);
    wait_until("the consumer to wait", async || {
        consumer.log_tail(50).contains("waiting for the feeder")
    })
    .await;
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 5);
    stop_consumer(consumer).await;
    let mut database_alone = FROM_LEDGER.to_vec();
    database_alone.push(("QUEUE_URL", "-"));
    for (arguments, answer) in [
        (&["runs"][..], "images.path (run 1): finished, 5 of 5 moved"),
        (&["pause", "--reason", "release"], "run 1 is paused"),
        (&["limit", "--rate", "5"], "5"),
        (&["resume"], "run 1 is resumed"),
        (&["failures"], "no row failed"),
        (&["report", "--run", "images.path"], "avatar/0.png"),
        (&["verify", "--run", "1"], "5"),
    ] {
        let (code, output) = command(&rig, &database_alone, arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {output}");
        assert!(output.contains(answer), "{arguments:?}: {output}");
    }
    let (code, output) = command(&rig, &database_alone, &["status"]).await;
    assert_eq!(code, 64);
    assert!(output.contains("QUEUE_URL: is missing"), "{output}");
    let (code, output) = command(&rig, &database_alone, &["pause", "--run", "other"]).await;
    assert_eq!(code, 64);
    assert!(output.contains("images.path (run 1)"), "{output}");
}

#[tokio::test]
async fn among_several_unfinished_runs_one_must_be_named() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    add_avatars(&rig, 1).await;
    let mut feeder = rig.spawn("feeder", &AVATARS, &["--run", "faces"]);
    wait_until("the second run", async || rig.count_rows("run").await == 2).await;
    let (code, output) = command(&rig, &FROM_LEDGER, &["pause"]).await;
    assert_eq!(code, 64);
    for word in ["--run", "images.path (run 1)", "faces (run 2)"] {
        assert!(output.contains(word), "{word}: {output}");
    }
    let mut named = FROM_LEDGER.to_vec();
    named.push(("RUN_NAME", "faces"));
    let consumer = rig.spawn_consumer(&named);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_slip_in_a_setting_opens_no_second_run() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    // A first slip that matches nothing does not stand in the way.
    let (code, output) = command(&rig, &[("OLD_PREFIX", "images/")], &[]).await;
    assert_eq!(code, 66, "{output}");
    let consumer = rig.spawn_consumer(&[]);
    let (code, output) = command(&rig, &[], &["--run", "mine"]).await;
    assert_eq!(code, 0, "{output}");
    stop_consumer(consumer).await;
    let slip = [("OLD_PREFIX", "imag")];
    let (code, output) = command(&rig, &slip, &[]).await;
    assert_eq!(code, 64);
    for word in ["'image/' there, 'imag' here", "--new-run", "'mine'"] {
        assert!(output.contains(word), "{word}: {output}");
    }
    let (code, output) = command(&rig, &slip, &["--new-run", "--run", "mine"]).await;
    assert_eq!(code, 64, "{output}");
    assert!(
        output.contains("differ from those of run 'mine'"),
        "{output}"
    );
    let (code, output) = command(&rig, &[], &["--run", "another"]).await;
    assert_eq!(code, 64, "{output}");
    assert!(output.contains("there is no run 'another'"), "{output}");
    assert_eq!(rig.count_rows("run").await, 2);
    let other = [("OLD_PREFIX", "other/")];
    let (code, output) = command(&rig, &other, &["--new-run"]).await;
    assert_eq!(code, 0, "{output}");
    let name = "SELECT count(*) FROM bucket_brigade.run WHERE name = 'images.path-2'";
    assert_eq!(rig.query_number(name).await, 1);
}

/// Messages of the run before are still in the queue, and consumers know it.
#[tokio::test]
async fn a_run_with_a_corrected_prefix_is_not_moved_by_the_rule_before() {
    let rig = TestRig::new().await;
    rig.add_images(20).await;
    let mut slip = rig.spawn("feeder", &[], &[]);
    wait_until("all to be fed", async || rig.queued_messages().await >= 20).await;
    slip.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut slip).await.code, Some(3));
    let corrected = [("NEW_PREFIX", "pics/")];
    let mut feeder = rig.spawn("feeder", &corrected, &["--new-run"]);
    wait_until("the second run", async || rig.count_rows("run").await == 2).await;
    let consumer = rig.spawn_consumer(&FROM_LEDGER);
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("it is paused"), "{}", ended.log);
    let moved = "SELECT count(*) FROM images WHERE path LIKE 'pics/%'";
    assert_eq!(rig.query_number(moved).await, 20);
    stop_consumer(consumer).await;
    let database_alone = [&FROM_LEDGER[..], &[("QUEUE_URL", "-")]].concat();
    let (code, history) = command(&rig, &database_alone, &["runs", "--history"]).await;
    assert_eq!(code, 0, "{history}");
    assert!(history.contains("feeder --new-run"), "{history}");
}

/// Where paths of one prefix meant two places, the application would miss the images of one.
#[tokio::test]
async fn a_new_run_gives_no_other_meaning_to_paths_that_are_set() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    rig.add_image("image/last.png").await;
    let elsewhere = [("DESTINATION_KEY_PREFIX", "other/")];
    for (code, arguments) in [(64, &["--new-run"][..]), (1, &["plan", "--new-run"])] {
        let (ended, output) = command(&rig, &elsewhere, arguments).await;
        assert_eq!(ended, code, "{output}");
        assert!(output.contains("Roll that run back first"), "{output}");
    }
    // A move that cannot be undone is no obstacle: no row names its copy.
    rig.execute_sql("DELETE FROM images WHERE path = 'avatar/0.png'")
        .await;
    let (code, output) = command(&rig, &[], &["rollback", "--all", "--yes"]).await;
    assert_eq!(code, 2, "{output}");
    assert_eq!(rig.ledger_counter("moved").await, 1);
    let (code, output) = command(&rig, &elsewhere, &["plan", "--new-run"]).await;
    assert_eq!(code, 0, "{output}");
    // Nor does the earlier one, started again.
    let consumer = rig.spawn_consumer(&FROM_LEDGER);
    let (code, output) = command(&rig, &elsewhere, &["--new-run"]).await;
    assert_eq!(code, 0, "{output}");
    stop_consumer(consumer).await;
    for arguments in [&["resume"][..], &[]] {
        rig.execute_sql(&format!(
            "UPDATE bucket_brigade.run SET paused = {} WHERE id = 1",
            !arguments.is_empty()
        ))
        .await;
        let (code, output) = command(&rig, &[], arguments).await;
        assert!(
            code == 64 && output.contains("Roll that run back first"),
            "{output}"
        );
    }
}

#[tokio::test]
async fn a_new_run_gives_no_other_meaning_to_old_paths_of_one_under_way() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    rig.open_run().await;
    rig.execute_sql("UPDATE bucket_brigade.feed_cursors SET fed = 1")
        .await;
    let back = [
        ("OLD_PREFIX", "avatar/"),
        ("NEW_PREFIX", "image/"),
        ("DESTINATION_KEY_PREFIX", "third/"),
    ];
    let (code, output) = command(&rig, &back, &["plan", "--new-run"]).await;
    assert!(
        code == 1 && output.contains("Let that run finish first"),
        "{output}"
    );
}

#[tokio::test]
async fn a_partition_has_the_rows_of_its_table() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    rig.add_image("image/last.png").await;
    rig.execute_sql(
        "ALTER TABLE images ALTER id DROP IDENTITY;
         CREATE TABLE parts (LIKE images) PARTITION BY RANGE (id);
         ALTER TABLE parts ATTACH PARTITION images FOR VALUES FROM (MINVALUE) TO (MAXVALUE);
         ALTER TABLE parts ADD PRIMARY KEY (id)",
    )
    .await;
    let (code, output) = command(&rig, &[("IMAGES_TABLE", "parts")], &[]).await;
    assert!(code == 64 && output.contains("--new-run"), "{output}");
}

#[tokio::test]
async fn a_run_that_is_watched_is_paused_for_another_of_its_rows() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    let watching = rig.spawn("feeder", &[], &["--watch"]);
    let watches = "SELECT count(*) FROM bucket_brigade.workers WHERE role = 'feeder' AND state LIKE 'watching%'";
    wait_until("the watch", async || rig.query_number(watches).await == 1).await;
    let (_, output) = command(&rig, &FROM_LEDGER, &["pause", "--all"]).await;
    assert!(output.contains("run 1 is paused"), "{output}");
    let (_, output) = command(&rig, &FROM_LEDGER, &["resume", "--all"]).await;
    assert!(output.contains("run 1 is resumed"), "{output}");
    wait_until("the watch", async || rig.query_number(watches).await == 1).await;
    let (_, output) = command(&rig, &[("NEW_PREFIX", "pics/")], &["--new-run"]).await;
    assert!(output.contains("it is paused"), "{output}");
    let (code, output) = command(&rig, &[], &["resume"]).await;
    assert_eq!(code, 0, "{output}");
    // One that moves its rows back has them, too.
    let back = rig.spawn("feeder", &MOVED_BACK, &["--new-run", "--watch"]);
    wait_until("the pause", async || {
        back.log_tail(50).contains("it is paused")
    })
    .await;
    let (code, output) = command(&rig, &[], &["resume"]).await;
    assert!(
        code == 75 && output.contains("has the same rows"),
        "{output}"
    );
    let (code, output) = command(&rig, &FROM_LEDGER, &["resume", "--all"]).await;
    assert!(code == 0 && output.contains("is not resumed"), "{output}");
    for mut feeder in [watching, back] {
        feeder.terminate().unwrap();
        assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    }
}

/// A folder less each time: no path goes round.
#[tokio::test]
async fn runs_that_shorten_paths_into_one_prefix_go_on_side_by_side() {
    let rig = TestRig::new().await;
    for path in ["media/image/1.png", "media/video/1.png"] {
        rig.add_image(path).await;
    }
    let mut feeders = Vec::new();
    for (old_prefix, messages) in [("media/image/", 1), ("media/video/", 2)] {
        let rule = [("OLD_PREFIX", old_prefix), ("NEW_PREFIX", "media/")];
        feeders.push(rig.spawn("feeder", &rule, &["--new-run"]));
        wait_until("its message", async || {
            rig.queued_messages().await == messages
        })
        .await;
    }
    let paused = "SELECT count(*) FROM bucket_brigade.run WHERE paused";
    assert_eq!(rig.query_number(paused).await, 0);
    for mut feeder in feeders {
        feeder.terminate().unwrap();
        assert_eq!(wait_for_exit(&mut feeder).await.code, Some(3));
    }
}

const MOVED_BACK: [(&str, &str); 4] = [
    ("OLD_PREFIX", "avatar/"),
    ("NEW_PREFIX", "image/"),
    ("SOURCE_BUCKET_NAME", "images-new"),
    ("DESTINATION_BUCKET_NAME", "images-old"),
];

#[tokio::test]
async fn two_unfinished_runs_do_not_feed_the_same_rows() {
    let rig = TestRig::new().await;
    rig.add_moved_images(1).await;
    rig.add_image("image/last.png").await;
    let mut second = rig.spawn("feeder", &[("NEW_PREFIX", "pics/")], &["--new-run"]);
    wait_until("its message", async || rig.queued_messages().await > 0).await;
    second.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut second).await.code, Some(3));
    for (code, arguments) in [(75, &[][..]), (1, &["plan"])] {
        let (ended, output) = command(&rig, &[], arguments).await;
        assert_eq!(ended, code, "{output}");
        assert!(output.contains("(feeder pause --run "), "{output}");
    }
    let (code, output) = command(&rig, &[("NEW_PREFIX", "pics/")], &["pause"]).await;
    assert_eq!(code, 0, "{output}");
    let (code, output) = command(&rig, &[], &["plan"]).await;
    assert_eq!(code, 0, "{output}");
    rig.execute_sql("UPDATE bucket_brigade.run SET finished_at = NULL WHERE id = 1")
        .await;
    let (code, output) = command(&rig, &[("NEW_PREFIX", "pics/")], &["resume"]).await;
    assert!(
        code == 75 && output.contains("has the same rows"),
        "{output}"
    );
}

/// They are what an operator reaches for then, while consumers go on.
#[tokio::test]
async fn commands_of_the_ledger_need_no_sound_table() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    assert_controls_work(&rig).await;
    rig.execute_sql(
        "CREATE TABLE kid () INHERITS (images);
         CREATE RULE r AS ON UPDATE TO images WHERE false DO ALSO NOTHING;
         ALTER TABLE images DROP CONSTRAINT images_pkey",
    )
    .await;
    assert_controls_work(&rig).await;
    rig.execute_sql("ALTER TABLE images RENAME TO pictures")
        .await;
    assert_controls_work(&rig).await;
    let (code, log) = command(&rig, &[("IMAGES_TABLE", "other.images")], &["pause"]).await;
    assert_eq!(code, 64);
    assert!(log.contains("there is no run of this migration"), "{log}");
    let (code, log) = command(&rig, &[("IMAGES_TABLE", "\"images")], &["pause"]).await;
    assert_eq!(code, 64);
    assert!(log.contains("IMAGES_TABLE"), "{log}");
}

/// By the run's settings, and without them.
async fn assert_controls_work(rig: &TestRig) {
    for settings in [&[][..], &FROM_LEDGER, &[("IMAGES_TABLE", "public.images")]] {
        for arguments in [
            &["pause"][..],
            &["limit", "--rate", "5"],
            &["resume"],
            &["status"],
            &["failures"],
            &["report"],
            &["runs"],
        ] {
            let (code, log) = command(rig, settings, arguments).await;
            assert_eq!(code, 0, "{arguments:?}: {log}");
        }
    }
}

#[tokio::test]
async fn a_run_is_not_named_like_the_number_of_another() {
    let rig = TestRig::new().await;
    for (arguments, expected) in [(&["plan"][..], 1), (&[][..], 64)] {
        let (code, log) = command(&rig, &[("RUN_NAME", "2")], arguments).await;
        assert_eq!(code, expected, "{log}");
        assert!(log.contains("RUN_NAME: is a number"), "{log}");
    }
    rig.open_run().await;
    let (code, log) = command(&rig, &[("RUN_NAME", "1")], &["status"]).await;
    assert_eq!(code, 0, "{log}");
}
