//! Whether a service listens.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::run::print_status;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct ListenerCheckArguments {
    /// Where it should listen
    #[arg(default_value = "127.0.0.1:4566")]
    address: SocketAddr,
}

#[expect(clippy::unnecessary_wraps, reason = "one of several services")]
pub(super) fn check_listener(arguments: &ListenerCheckArguments) -> Result<bool> {
    let connected = TcpStream::connect_timeout(&arguments.address, CONNECT_TIMEOUT);
    Ok(connected
        .inspect_err(|error| print_status(&format!("{}: {error}", arguments.address)))
        .is_ok())
}
