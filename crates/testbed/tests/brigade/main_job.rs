//! The whole job, with application traffic and the checker, by the demo's own means.

use std::process::Command;

use bucket_brigade_testbed::process::binary_path;

/// Runs the demo and returns its last line, which it prints only for people who ask for JSON.
fn run_demo(arguments: &[&str]) -> serde_json::Value {
    let output = Command::new(binary_path("demo").unwrap())
        .args(arguments)
        .arg("--json")
        .output()
        .unwrap();
    let result = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{result}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
}

fn assert_nothing_lost(figures: &serde_json::Value) {
    for key in [
        "broken_reads",
        "lost_application_writes",
        "overwritten_objects",
        "queue_left",
    ] {
        assert_eq!(figures[key], 0, "{key} in {figures}");
    }
    let number = |key: &str| figures[key].as_u64().unwrap();
    let ended = number("moved")
        + number("changed_by_application")
        + number("failed")
        + number("already_moved");
    assert_eq!(ended, number("images"), "{figures}");
    assert!(
        number("moved") > number("images") / 2 && number("application_writes") > 0,
        "{figures}"
    );
}

#[test]
fn the_main_job() {
    let figures = run_demo(&["--images", "400", "--consumers", "2", "--seed", "7"]);
    assert_nothing_lost(&figures);
}

#[test]
fn the_main_job_with_every_process_killed_once() {
    let figures = run_demo(&[
        "--images",
        "400",
        "--consumers",
        "3",
        "--seed",
        "8",
        "--kill-each-once",
    ]);
    assert_nothing_lost(&figures);
}
