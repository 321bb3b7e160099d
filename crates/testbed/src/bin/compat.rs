//! `script/compat`: see the library's `compat` module.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    bucket_brigade_testbed::compat::main().await
}
