//! Trials of the real consumers: see the library's `trials` module.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    bucket_brigade_testbed::trials::main().await
}
