//! A whole life of a migration, as its operator lives it, with application traffic all the while.

use bucket_brigade_testbed::process::binary_path;
use tokio::process::Command;

/// The smaller sister of what docs/whole-life.md shows of 20,000 images.
#[tokio::test]
async fn every_command_from_the_plan_to_the_removal_of_the_sources() {
    let images = std::env::var("LIFE_IMAGES").unwrap_or_else(|_| "1000".into());
    let mut command = Command::new(binary_path("life").unwrap());
    command.args(["--images", &images, "--json"]);
    let output = command.kill_on_drop(true).output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{told}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let figures: serde_json::Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    let number = |name: &str| figures[name].as_u64().unwrap();
    for name in [
        "broken_reads",
        "lost_application_writes",
        "overwritten_objects",
        "queue_left",
        "violations",
    ] {
        assert_eq!(number(name), 0, "{name} in {figures}");
    }
    for name in ["reads", "application_writes", "failed", "rolled_back"] {
        assert!(number(name) > 0, "{name} in {figures}");
    }
    assert!(
        number("sources_removed") > number("images") / 2,
        "{figures}"
    );
    assert!(number("checks") > 60, "{figures}");
}
