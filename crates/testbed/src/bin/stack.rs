//! What `docker-compose.yml` runs beside feeder and consumers: see the library's `stack` module.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    bucket_brigade_testbed::stack::main().await
}
