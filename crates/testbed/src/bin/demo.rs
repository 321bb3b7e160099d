//! `script/demo`: see the library's `demo` module.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    bucket_brigade_testbed::demo::main().await
}
