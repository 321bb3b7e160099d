//! Whether a service listens.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::run::tell;

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Where it should listen
    #[arg(default_value = "127.0.0.1:4566")]
    address: SocketAddr,
}

#[expect(clippy::unnecessary_wraps, reason = "one of several services")]
pub(super) fn ask(arguments: &Arguments) -> Result<bool> {
    let connected = TcpStream::connect_timeout(&arguments.address, PATIENCE);
    Ok(connected
        .inspect_err(|error| tell(&format!("{}: {error}", arguments.address)))
        .is_ok())
}
