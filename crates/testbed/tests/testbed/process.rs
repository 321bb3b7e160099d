//! Programs of this workspace run as processes.

use anyhow::Result;
use bucket_brigade_testbed::process::{ChildProcess, binary_path};

#[tokio::test]
async fn a_program_runs_and_its_output_is_kept() -> Result<()> {
    let log = tempfile::NamedTempFile::new()?;
    let mut demo = ChildProcess::spawn("demo", &[], &["--help"], Some(log.path()))?;
    assert!(demo.wait_for_exit().await?.success());
    assert!(
        demo.log_tail(50).contains("--consumers"),
        "{}",
        demo.log_tail(50)
    );
    Ok(())
}

#[test]
fn a_program_that_is_not_built_is_named() {
    let error = binary_path("no-such-program").unwrap_err().to_string();
    assert!(
        error.contains("no-such-program is not built; run: cargo build"),
        "{error}"
    );
}
