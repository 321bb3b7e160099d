//! The bucket's name typed at the prompt of a clean: on a terminal.

use std::process::Stdio;

use bucket_brigade_testbed::process::binary_path;
use bucket_brigade_testbed::terminal::TerminalSession;
use tokio::io::AsyncWriteExt;

use crate::rig::{TestRig, stop_consumer, wait_until};

const CLEAN: [&str; 3] = ["clean", "--older-than", "0s"];
const PROMPT: &str = "Type the bucket's name to remove them: ";

async fn prompted(rig: &TestRig, arguments: &[&str]) -> TerminalSession {
    let environment = rig.environment("operator", &[("RUST_LOG", "off")]);
    let terminal = TerminalSession::start("feeder", &environment, arguments).unwrap();
    terminal.wait_for_text(PROMPT).await.unwrap();
    terminal
}

fn sources(rig: &TestRig) -> usize {
    rig.cloud.count_objects("images-old")
}

#[tokio::test]
async fn objects_go_once_the_right_name_is_typed() {
    let rig = TestRig::new().await;
    rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let mut terminal = prompted(&rig, &CLEAN).await;
    assert_eq!(sources(&rig), 3, "nothing before the word is given");
    terminal.type_line("images-old").await.unwrap();
    let (code, screen) = terminal.wait_for_exit().await.unwrap();
    assert_eq!((code, sources(&rig)), (0, 0), "{screen}");
    assert!(
        screen.contains("3 sources (33 bytes) may go from bucket images-old"),
        "{screen}"
    );
    assert!(
        screen.contains("3 objects removed from bucket images-old"),
        "{screen}"
    );
    // The progress bar counts the rows that there are.
    assert!(!screen.contains("/20000"), "{screen}");
}

#[tokio::test]
async fn another_name_nothing_and_ctrl_d_are_no_confirmation() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    for typed in ["images-new", "images-ol", "yes", ""] {
        let mut terminal = prompted(&rig, &CLEAN).await;
        terminal.type_line(typed).await.unwrap();
        let (code, screen) = terminal.wait_for_exit().await.unwrap();
        assert_eq!(code, 64, "{screen}");
        let refusal = format!("'{typed}' is not the bucket that objects would be removed from");
        assert!(screen.contains(&refusal), "{screen}");
    }
    let mut terminal = prompted(&rig, &CLEAN).await;
    terminal.press_ctrl_d().await.unwrap();
    assert_eq!(terminal.wait_for_exit().await.unwrap().0, 64);
    assert_eq!(sources(&rig), 2);
}

#[tokio::test]
async fn ctrl_c_at_the_prompt_ends_it_at_once() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let mut terminal = prompted(&rig, &CLEAN).await;
    // Others are kept out while the question stands, and let in when it is withdrawn.
    assert_eq!(rig.run_command(&["verify"]).await.code, Some(75));
    terminal.press_ctrl_c().await.unwrap();
    let (code, screen) = terminal.wait_for_exit().await.unwrap();
    assert_eq!((code, sources(&rig)), (3, 2), "{screen}");
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
}

/// Rows may change for as long as the question stands: what goes is decided after the answer.
#[tokio::test]
async fn what_a_row_came_to_name_during_the_prompt_stays() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(3).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let mut terminal = prompted(&rig, &CLEAN).await;
    rig.set_path(&ids[1], "image/1.png").await;
    rig.put_object("images-old", "image/2.png", b"newer").await;
    terminal.type_line("images-old").await.unwrap();
    let (code, screen) = terminal.wait_for_exit().await.unwrap();
    assert_eq!((code, sources(&rig)), (2, 2), "{screen}");
    assert!(!rig.object_exists("images-old", "image/0.png").await);
}

#[tokio::test]
async fn orphans_are_asked_about_by_their_own_bucket() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(
        rig.run_json_command(&["rollback", "--all", "--yes"])
            .await
            .code,
        0
    );
    let orphans = ["clean", "--orphans", "--older-than", "0s"];
    let mut terminal = prompted(&rig, &orphans).await;
    terminal.type_line("images-old").await.unwrap();
    assert_eq!(terminal.wait_for_exit().await.unwrap().0, 64);
    let mut terminal = prompted(&rig, &orphans).await;
    terminal.type_line("images-new").await.unwrap();
    assert_eq!(terminal.wait_for_exit().await.unwrap().0, 0);
    assert_eq!(
        (sources(&rig), rig.cloud.count_objects("images-new")),
        (2, 0)
    );
}

/// A name that comes out of a pipe is no consent, and `--json` is for machines.
#[tokio::test]
async fn away_from_a_terminal_nothing_goes_without_the_flag() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
    command.args(CLEAN).env_clear().current_dir("/");
    command.envs(rig.environment("operator", &[]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // It may have ended before it was asked to read.
    let _ = stdin.write_all(b"images-old\n").await;
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    let answer = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{answer}");
    assert!(
        answer.contains("Nothing was removed. To do it, add --confirm images-old."),
        "{answer}"
    );
    let environment = rig.environment("operator", &[("RUST_LOG", "off")]);
    let json = [&CLEAN[..], &["--json"]].concat();
    let terminal = TerminalSession::start("feeder", &environment, &json).unwrap();
    let (code, screen) = terminal.wait_for_exit().await.unwrap();
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains(r#""done":false"#), "{screen}");
    assert_eq!(sources(&rig), 2);
}

async fn asked(rig: &TestRig, arguments: &[&str]) -> TerminalSession {
    let environment = rig.environment("operator", &[("RUST_LOG", "off")]);
    let terminal = TerminalSession::start("feeder", &environment, arguments).unwrap();
    terminal.wait_for_text("Type yes to do it: ").await.unwrap();
    terminal
}

#[tokio::test]
async fn rows_go_back_once_yes_is_typed() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    let rollback = ["rollback", "--all"];
    let mut terminal = asked(&rig, &rollback).await;
    terminal.type_line("no").await.unwrap();
    assert_eq!(terminal.wait_for_exit().await.unwrap().0, 0);
    let mut terminal = asked(&rig, &rollback).await;
    terminal.press_ctrl_c().await.unwrap();
    assert_eq!(terminal.wait_for_exit().await.unwrap().0, 3);
    assert_eq!(rig.count_rows("rollbacks").await, 0);
    let mut terminal = asked(&rig, &rollback).await;
    terminal.type_line("yes").await.unwrap();
    let (code, screen) = terminal.wait_for_exit().await.unwrap();
    assert_eq!(
        (code, rig.count_rows("rollbacks").await),
        (0, 2),
        "{screen}"
    );
}

#[tokio::test]
async fn failures_are_retried_after_consent() {
    let rig = TestRig::new().await;
    rig.add_row("image/missing.png").await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(2));
    wait_until("the dead letter", async || rig.dead_letters().await == 1).await;
    stop_consumer(consumer).await;
    let preview = rig.run_feeder(&["retry"]).await;
    assert_eq!(preview.code, 0, "{}", preview.log);
    for words in [
        "1 row that failed would be fed again",
        "1 failed with NoSuchKey",
        "about 1 dead letter would go back",
        "To do it, add --yes.",
    ] {
        assert!(preview.output.contains(words), "{}", preview.output);
    }
    let json = rig
        .run_json_command(&["retry", "--code", "NoSuchKey"])
        .await;
    assert_eq!((json.code, json.number_of("rows")), (0, 1));
    assert_eq!(json.json["done"], false);
    let mut terminal = asked(&rig, &["retry"]).await;
    terminal.press_ctrl_c().await.unwrap();
    assert_eq!(terminal.wait_for_exit().await.unwrap().0, 3);
    assert_eq!(rig.count_rows("failures").await, 1);
    assert_eq!(rig.dead_letters().await, 1);
    let mut terminal = asked(&rig, &["retry"]).await;
    terminal.type_line("yes").await.unwrap();
    let (code, screen) = terminal.wait_for_exit().await.unwrap();
    assert_eq!((code, rig.count_rows("failures").await), (0, 0), "{screen}");
}

/// `status` shows ten.
#[tokio::test]
async fn a_retry_counts_rows_of_every_code() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
         SELECT 1, n, 'image/' || n, 'Code' || n, '', true FROM generate_series(1, 12) n",
    )
    .await;
    let preview = rig.run_json_command(&["retry"]).await;
    assert_eq!((preview.code, preview.number_of("rows")), (0, 12));
    let failures = rig.run_json_command(&["failures", "--limit", "3"]).await;
    assert_eq!((failures.code, failures.number_of("not_listed")), (2, 9));
    let status = rig.run_json_command(&["status"]).await;
    assert_eq!(status.json["failures"].as_array().unwrap().len(), 10);
}
