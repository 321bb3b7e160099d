//! Paths that spell their keys as URLs do: from the plan to the end of the sources.

use bucket_brigade_testbed::application::KeySpelling;

use crate::proof::CLEAN_ORPHANS;
use crate::rig::{TestRig, sha256, stop_consumer};

const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

/// A row whose path spells a key so.
async fn add_spelled(rig: &TestRig, rest: &str, key: &str) -> String {
    rig.put_object("images-old", key, key.as_bytes()).await;
    rig.add_row(&format!("https://old.example/{rest}")).await
}

async fn rig_with(spelling: KeySpelling) -> TestRig {
    let mut rig = TestRig::new().await;
    rig.application = rig.application.clone().with_url_paths(spelling);
    rig
}

/// What the rest of a path becomes.
fn moved(rest: &str) -> String {
    format!("https://new.example/i/{rest}")
}

#[tokio::test]
async fn encoded_urls_move_and_keep_their_spelling() {
    let rig = rig_with(KeySpelling::Url).await;
    let spelled = [
        ("a%20b.png?v=2", "a b.png"),
        ("a b.png", "a b.png"),
        ("u/caf%C3%A9%28x%29.png#top", "u/café(x).png"),
        ("a%2Bb+c.png", "a+b+c.png"),
        ("100%25.png", "100%.png"),
        ("%E6%BC%A2?", "漢"),
    ];
    let mut ids = Vec::new();
    for (rest, key) in spelled {
        ids.push(add_spelled(&rig, rest, key).await);
    }
    let long = "x".repeat(1025);
    let spelled_long = format!("a.png?{}", "y".repeat(4096));
    let mut refused = Vec::new();
    for (rest, code) in [
        ("100%.png", "InvalidEscape"),
        ("a%2.png", "InvalidEscape"),
        ("%ff.png", "EscapeNotUtf8"),
        ("a%00b", "NulInPath"),
        ("?v=2", "EmptyKey"),
        (&*long, "KeyTooLong"),
        (&*spelled_long, "PathTooLong"),
        ("gone%20.png", "NoSuchKey"),
    ] {
        let id = rig.add_row(&format!("https://old.example/{rest}")).await;
        refused.push((id, code));
    }
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    stop_consumer(consumer).await;
    for (id, (rest, key)) in ids.iter().zip(spelled) {
        assert_eq!(rig.path_of(id).await.unwrap(), moved(rest));
        let copy = rig.destination_sha256(key).await;
        assert_eq!(copy, Some(sha256(key.as_bytes())), "{key}");
    }
    for (id, code) in &refused {
        assert_eq!(rig.failure_code(id).await.as_deref(), Some(*code));
    }
    assert_eq!(rig.count_rows("poison").await, 0);
}

#[tokio::test]
async fn in_a_form_a_plus_is_a_space() {
    let rig = rig_with(KeySpelling::Form).await;
    let id = add_spelled(&rig, "a+b%2Bc.png?d+e", "a b+c.png").await;
    rig.run_migration().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), moved("a+b%2Bc.png?d+e"));
    assert!(rig.object_exists("images-new", "a b+c.png").await);
}

#[tokio::test]
async fn encoded_paths_are_verified_set_back_and_moved_again() {
    let rig = rig_with(KeySpelling::Url).await;
    let id = add_spelled(&rig, "a%20b.png?v=2", "a b.png").await;
    let twin = add_spelled(&rig, "%61%20b.png", "a b.png").await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert_eq!(plan.code, 0, "{}", plan.output);
    rig.run_migration().await;
    let verified = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(verified.code, 0, "{}", verified.json);
    let back = rig.run_json_command(&["rollback", "--all", "--yes"]).await;
    assert_eq!((back.code, back.number_of("rolled_back")), (0, 2));
    let path = rig.path_of(&id).await;
    assert_eq!(path.as_deref(), Some("https://old.example/a%20b.png?v=2"));
    assert_eq!(rig.count_rows("orphans").await, 1, "they share one copy");
    rig.run_migration().await;
    assert_eq!(rig.path_of(&twin).await.unwrap(), moved("%61%20b.png"));
    rig.delete_object("images-new", "a b.png").await;
    let verified = rig.run_json_command(&["verify"]).await;
    assert_eq!(
        verified.sorted_fields("mismatches", "code"),
        ["CopyGone"; 2]
    );
    rig.assert_counts_agree().await;
}

/// Signed URLs: no entry of an index holds them.
#[tokio::test]
async fn a_path_too_long_for_an_index_is_verified_and_its_source_stays() {
    let rig = rig_with(KeySpelling::Url).await;
    let signature: String = std::iter::repeat_with(fastrand::alphanumeric)
        .take(3000)
        .collect();
    let id = add_spelled(&rig, &format!("a.png?{signature}"), "a.png").await;
    add_spelled(&rig, "b.png", "b.png").await;
    rig.run_migration().await;
    let verified = rig.run_json_command(&["verify"]).await;
    assert_eq!(verified.code, 0, "{}", verified.json);
    let cleaned = rig.run_json_command(&CLEAN).await;
    let numbers = (cleaned.code, cleaned.number_of("removed"));
    assert_eq!(numbers, (0, 1), "{}", cleaned.json);
    assert!(rig.object_exists("images-old", "a.png").await);
    let back = rig
        .run_json_command(&["rollback", "--ids", &id, "--yes"])
        .await;
    assert_eq!((back.code, back.number_of("rolled_back")), (0, 1));
    let cleaned = rig.run_json_command(&CLEAN_ORPHANS).await;
    assert_eq!(cleaned.code, 0, "{}", cleaned.json);
}

#[tokio::test]
async fn clean_keeps_a_source_that_a_row_names_in_any_spelling() {
    let rig = rig_with(KeySpelling::Url).await;
    for (rest, key) in [
        ("gone%20.png?v=1", "gone .png"),
        ("gone%20.png", "gone .png"),
        ("unverified%20.png", "unverified .png"),
        ("%75nverified%20.png?v=1", "unverified .png"),
        ("named%20.png", "named .png"),
        ("late%20.png?v=1", "late .png"),
    ] {
        add_spelled(&rig, rest, key).await;
    }
    rig.run_migration().await;
    let verified = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(verified.code, 0, "{}", verified.json);
    rig.execute_sql(
        "UPDATE bucket_brigade.moves SET verified_at = NULL WHERE old_path LIKE '%/\\%75n%';
         UPDATE images SET path = replace(path, 'new.example/i', 'old.example') WHERE path LIKE '%late%';
         INSERT INTO images (path) VALUES ('https://old.example/%6Eamed%20.png?w=3')",
    )
    .await;
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(
        (cleaned.code, cleaned.number_of("removed")),
        (2, 2),
        "{}",
        cleaned.json
    );
    for (key, is_there) in [
        ("gone .png", false),
        ("unverified .png", true),
        ("named .png", true),
        ("late .png", true),
    ] {
        assert_eq!(
            rig.object_exists("images-old", key).await,
            is_there,
            "{key}"
        );
    }
    // A clean that was killed between the two paths of one object.
    rig.execute_sql(
        "DELETE FROM bucket_brigade.removals WHERE path LIKE '%gone%v=1';
         UPDATE bucket_brigade.moves SET source_settled_at = NULL WHERE old_path LIKE '%gone%v=1'",
    )
    .await;
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(cleaned.number_of("removed"), 1, "{}", cleaned.json);
    rig.execute_sql("DELETE FROM images WHERE path LIKE '%amed%' OR path LIKE '%late%'")
        .await;
    let verified = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(verified.code, 0, "{}", verified.json);
    let cleaned = rig.run_json_command(&CLEAN).await;
    assert_eq!(cleaned.code, 0, "{}", cleaned.json);
    assert!(!rig.object_exists("images-old", "unverified .png").await);
    let verified = rig.run_json_command(&["verify", "--full"]).await;
    assert_eq!(verified.code, 0, "{}", verified.json);
}

#[tokio::test]
async fn a_plan_recognises_encoded_paths() {
    let rig = rig_with(KeySpelling::Url).await;
    let id = add_spelled(&rig, "a%20b.png?v=2", "a b.png").await;
    let without = [("PATH_ENCODING", "-")];
    let plan = rig.run_program_with("feeder", &without, &["plan"]).await;
    assert_eq!(plan.code, Some(1), "{}", plan.log);
    let words = format!("but one by PATH_ENCODING=url (ids: {id})");
    assert!(plan.log.contains(&words), "{}", plan.log);
    add_spelled(&rig, "literal%2520.png", "literal%2520.png").await;
    rig.execute_sql(&format!("DELETE FROM images WHERE id = {id}"))
        .await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output.contains("set PATH_ENCODING=none"),
        "{}",
        plan.output
    );
    rig.execute_sql("DELETE FROM images").await;
    add_spelled(&rig, "a+c.png", "a c.png").await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(
        plan.output.contains("set PATH_ENCODING=form"),
        "{}",
        plan.output
    );
}

#[tokio::test]
async fn the_encoding_is_the_run_s() {
    let rig = rig_with(KeySpelling::Url).await;
    add_spelled(&rig, "a%20b.png", "a b.png").await;
    for program in ["feeder", "consumer"] {
        let ended = rig
            .run_program(program, &[("PATH_ENCODING", "percent")])
            .await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        let words = "PATH_ENCODING: 'percent' must be one of none, url, form";
        assert!(ended.log.contains(words), "{}", ended.log);
    }
    // Neither consumers nor commands need it.
    let consumer = rig.spawn_consumer(&[("PATH_ENCODING", "-")]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    stop_consumer(consumer).await;
    let without = [("PATH_ENCODING", "-")];
    let verified = rig.run_program_with("feeder", &without, &["verify"]).await;
    assert_eq!(verified.code, Some(0), "{}", verified.log);
    let other = [("PATH_ENCODING", "form")];
    let refused = rig.run_program_with("feeder", &other, &["verify"]).await;
    assert_eq!(refused.code, Some(64), "{}", refused.log);
    for other in [other, without, [("PATH_ENCODING", "none")]] {
        let refused = rig.run_program("feeder", &other).await;
        assert_eq!(refused.code, Some(64), "{}", refused.log);
        let words = "PATH_ENCODING: 'url' there";
        assert!(refused.log.contains(words), "{}", refused.log);
    }
}
