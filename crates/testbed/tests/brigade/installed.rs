//! What `script/setup --tests` installs beside the build.

use std::path::PathBuf;

use bucket_brigade_testbed::process::binary_path;

/// Where a file of it is, or would be.
pub(crate) fn installed_path(file: &str) -> PathBuf {
    let feeder = binary_path("feeder").unwrap();
    let target = feeder.ancestors().nth(2).unwrap();
    target.join(file)
}

/// `prometheus` or `promtool`, of these or of the system's.
pub(crate) fn prometheus_tool(name: &str) -> PathBuf {
    let own = installed_path("prometheus/usr/bin").join(name);
    if own.exists() { own } else { name.into() }
}

/// Prints that a test is skipped. Where `REQUIRE_ALL_TESTS` is set, as in CI, none may be.
#[expect(clippy::print_stderr, reason = "a check left out is printed")]
pub(crate) fn skip_test(why: &str) {
    let all = std::env::var_os("REQUIRE_ALL_TESTS").is_some();
    assert!(!all, "{why}");
    eprintln!("skipped: {why}; script/setup --tests installs it");
}
