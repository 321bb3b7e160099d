//! S3 and SQS for other processes.

use std::net::SocketAddr;

use anyhow::Result;
use clap::Args;

use crate::cloud::{Cloud, CloudOptions};
use crate::run::print_status;

#[derive(Debug, Args)]
pub(super) struct CloudArguments {
    /// Where to listen: an address that others reach only when it is given here
    #[arg(long, default_value = "127.0.0.1:4566")]
    listen: SocketAddr,
    /// The URL by which others reach it [default: http:// and the address]
    #[arg(long)]
    endpoint: Option<String>,
}

pub(super) async fn serve_cloud(arguments: CloudArguments) -> Result<bool> {
    let cloud = Cloud::start(CloudOptions {
        listen: arguments.listen,
        endpoint: arguments.endpoint,
        ..CloudOptions::default()
    })?;
    print_status(&format!("S3 and SQS answer at {}", cloud.endpoint_url()));
    std::future::pending::<()>().await;
    Ok(true)
}
