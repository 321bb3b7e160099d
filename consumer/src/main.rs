//! The consumer's process.

use std::process::ExitCode;

use bucket_brigade_common::startup::{self, Threads};
use bucket_brigade_common::telemetry;
use bucket_brigade_consumer::settings::{Args, Command};
use bucket_brigade_consumer::start::start;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

fn main() -> ExitCode {
    startup::run(Threads::One, async |args: Args, stop| {
        if let Some(Command::Healthcheck(check)) = args.command {
            return Ok(check.run()?);
        }
        let (settings, logs) = args.parse_settings()?;
        telemetry::init(logs, BoxMakeWriter::new(std::io::stderr));
        start(settings, stop).await
    })
}
