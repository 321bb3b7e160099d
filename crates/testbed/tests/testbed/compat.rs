//! `script/compat` on the S3 of this process, as a program.

use anyhow::Result;
use bucket_brigade_testbed::process::binary_path;
use tokio::process::Command;

/// The value of a row of the page.
fn finding<'a>(page: &'a str, question: &str) -> Option<&'a str> {
    let is_row = |line: &&str| line.starts_with('|') && line.contains(question);
    let row = page.lines().find(is_row)?;
    row.rsplit('|').nth(1).map(str::trim)
}

#[tokio::test]
async fn a_store_is_probed_and_a_migration_holds_on_it() -> Result<()> {
    let mut command = Command::new(binary_path("compat")?);
    let output = command
        .args(["--local", "--images", "60"])
        .kill_on_drop(true);
    let output = output.output().await?;
    let page = String::from_utf8(output.stderr)?;
    assert!(output.status.success(), "{page}");
    let known = [
        ("CopyObject with `If-None-Match: *`", "honoured"),
        ("eight conditional copies", "1 of 8 succeed"),
        ("DeleteObject with `If-Match`", "honoured"),
        ("keys with all kinds", "yes"),
        ("violations**", "0"),
    ];
    for (question, expected) in known {
        assert_eq!(finding(&page, question), Some(expected), "{page}");
    }
    assert_ne!(finding(&page, "sources removed"), Some("0"), "{page}");
    Ok(())
}
