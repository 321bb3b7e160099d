//! What others write into paths reaches neither the terminal nor a spreadsheet as a command, no folder above is
//! read, and output that cannot be written is no finding.

use std::process::Stdio;

use bucket_brigade_testbed::process::binary_path;
use tempfile::TempDir;

use crate::rig::{TestRig, stop_consumer};

/// A title, a line break, a C1 control, and text from right to left.
const HOSTILE_NAME: &str = "\x1b]0;owned\x07\nrow 1 is fine\u{9b}2J\u{202e}gnp.exe";

fn assert_harmless(output: &str) {
    assert!(output.contains(r"\u{1b}]0;owned\u{7}\nrow 1"), "{output}");
    let steers = |character: char| character.is_control() && character != '\n';
    assert!(!output.contains(steers), "{output:?}");
    assert!(!output.contains('\u{202e}'), "{output:?}");
}

#[tokio::test]
async fn paths_are_text_on_a_terminal() {
    let rig = TestRig::new().await;
    let id = rig.add_row(&format!("image/{HOSTILE_NAME}")).await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert_harmless(&plan.output);
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(2));
    stop_consumer(consumer).await;
    assert_eq!(rig.failure_code(&id).await.unwrap(), "NoSuchKey");
    assert_harmless(&rig.run_feeder(&["failures"]).await.output);
    let json = rig.feeder_json(&["failures", "--json"]).await;
    let path = json["failures"][0]["path"].as_str().unwrap();
    assert_eq!(path, format!("image/{HOSTILE_NAME}"));
    // A row of the table that verify finds nothing for, and one that rollback leaves alone.
    rig.execute_sql("UPDATE images SET path = replace(path, 'image/', 'avatar/')")
        .await;
    let verify = rig.run_feeder(&["verify", "--full"]).await;
    assert_eq!(verify.code, 1, "{}", verify.log);
    assert_harmless(&verify.output);
}

#[tokio::test]
async fn cells_are_no_formulas() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.changes (run_id, row_id, old_path, found_path)
         VALUES (1, '-7', 'image/x', '=HYPERLINK(\"http://evil\")')",
    )
    .await;
    let csv = rig.run_feeder(&["report"]).await.output;
    let cells = "-7,changed,image/x,\"'=HYPERLINK(\"\"http://evil\"\")\"";
    assert!(csv.contains(cells), "{csv}");
    let json = rig.run_feeder(&["report", "--json"]).await.output;
    assert!(json.contains(r#":"=HYPERLINK("#), "{json}");
}

#[tokio::test]
async fn a_dotenv_of_a_folder_above_is_not_read() {
    let project = TempDir::new().unwrap();
    let folder = project.path().join("below/it");
    std::fs::create_dir_all(&folder).unwrap();
    let settings = "QUEUE_URL=https://sqs.example/1/of-another-project\n";
    std::fs::write(project.path().join(".env"), settings).unwrap();
    for program in ["feeder", "consumer"] {
        let mut command = tokio::process::Command::new(binary_path(program).unwrap());
        command.env_clear().current_dir(&folder);
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().await.unwrap();
        assert_eq!(output.status.code(), Some(64));
        let log = String::from_utf8(output.stderr).unwrap();
        assert!(log.contains("QUEUE_URL"), "{log}");
    }
    std::fs::write(folder.join(".env"), settings).unwrap();
    let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
    command.env_clear().current_dir(&folder);
    let output = command.output().await.unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(!log.contains("QUEUE_URL"), "{log}");
}

#[tokio::test]
async fn a_misspelt_name_in_a_dotenv_is_named_once() {
    let folder = TempDir::new().unwrap();
    let settings = "OLD_PREFX=image/\nMAX_CONCURENCY=7\nSECRET_KEY_BASE=x\nPAGE_SIZE=7\n";
    std::fs::write(folder.path().join(".env"), settings).unwrap();
    for program in ["feeder", "consumer"] {
        let mut command = tokio::process::Command::new(binary_path(program).unwrap());
        // The environment is others', too: only a setting that is missing is looked for in it.
        command.env_clear().env("NEW_PREFX", "avatar/");
        let output = command.current_dir(&folder).output().await.unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        let warnings: Vec<&str> = log.lines().filter(|l| l.starts_with("warning")).collect();
        let expected = [
            "warning: .env: MAX_CONCURENCY is not a setting; did you mean MAX_CONCURRENCY?",
            "warning: .env: OLD_PREFX is not a setting; did you mean OLD_PREFIX?",
        ];
        assert_eq!(warnings, expected, "{log}");
        let hint = "NEW_PREFIX: is missing; is NEW_PREFX, which is set, misspelt?";
        assert_eq!(log.contains(hint), program == "feeder", "{log}");
    }
}

#[tokio::test]
async fn a_dumb_terminal_gets_lines_alone() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let consumer = rig.spawn_consumer(&[]);
    for (term, has_escapes) in [("dumb", false), ("xterm", true)] {
        let mut command = tokio::process::Command::new("script");
        command.args(["-qec", binary_path("feeder").unwrap().to_str().unwrap()]);
        command.arg("/dev/null").env_clear().current_dir("/");
        command.envs(rig.environment("feeder", &[("TERM", term)]));
        let output = command.output().await.unwrap();
        let screen = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{screen}");
        assert!(screen.contains("done: 1 moved"), "{screen}");
        assert_eq!(screen.contains('\x1b'), has_escapes, "{screen:?}");
    }
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn output_that_cannot_be_written_is_no_finding() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    for arguments in [
        &["plan"][..],
        &["verify"],
        &["failures"],
        &["report"],
        &["runs"],
        &["rollback", "--all"],
    ] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full");
        let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
        command.args(arguments).env_clear().current_dir("/");
        command.envs(rig.environment("operator", &[]));
        command.stdout(full.unwrap()).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(70), "{arguments:?}: {log}");
    }
}

/// As `feeder status --watch | head` leaves it.
#[tokio::test]
async fn a_watch_ends_with_its_reader() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    for arguments in [&["status", "--watch"][..], &["status", "--watch", "--json"]] {
        let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
        command.args(arguments).env_clear().current_dir("/");
        command.envs(rig.environment("operator", &[]));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        assert_eq!(child.wait().await.unwrap().code(), Some(0), "{arguments:?}");
    }
}

/// As `feeder man | head` leaves it.
#[tokio::test]
async fn a_reader_of_the_manual_that_goes_away_is_no_error() {
    for arguments in [["completions", "bash"], ["man", "plan"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
        command.args(arguments).env_clear().current_dir("/");
        command.stdout(writer).stderr(Stdio::piped());
        let output = command.spawn().unwrap().wait_with_output().await.unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {log}");
    }
}

/// The output of a program that has nothing but a secret in its environment.
async fn print_manual(program: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = tokio::process::Command::new(binary_path(program).unwrap());
    command.args(arguments).env_clear().current_dir("/");
    command.env("DATABASE_URL", "postgres://app:hunter2@db/app");
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[tokio::test]
async fn completions_and_manual_pages_are_printed() {
    for (program, flag) in [
        ("feeder", "--max-backlog"),
        ("consumer", "--max-concurrency"),
    ] {
        for shell in ["bash", "zsh", "fish"] {
            let (code, output, log) = print_manual(program, &["completions", shell]).await;
            assert_eq!(code, Some(0), "{log}");
            // fish's have no dashes.
            assert!(output.contains(&flag[2..]), "{shell}: {output}");
            assert!(output.contains("healthcheck") && !output.contains("hunter2"));
        }
        let (code, page, log) = print_manual(program, &["man"]).await;
        assert_eq!(code, Some(0), "{log}");
        assert!(page.contains(&format!(".TH {program} 1")), "{page}");
        assert!(
            page.contains(&flag.replace('-', r"\-")) && !page.contains("hunter2"),
            "{page}"
        );
    }
    let (_, page, _) = print_manual("feeder", &["man", "verify"]).await;
    assert!(
        page.contains(r"feeder\-verify") && page.contains(r"\-\-recopy"),
        "{page}"
    );
    let (code, _, log) = print_manual("feeder", &["man", "verfy"]).await;
    assert_eq!(code, Some(64));
    assert!(log.contains("'verfy' is not a command: plan, "), "{log}");
}
