//! `script/life`: see the library's `life` module.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    bucket_brigade_testbed::life::main().await
}
