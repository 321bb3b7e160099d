//! `script/chaos`: see the library's `chaos` module.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    bucket_brigade_testbed::chaos::main().await
}
