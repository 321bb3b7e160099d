//! The feeder's process.

use std::process::ExitCode;

use bucket_brigade_common::{startup, telemetry};
use bucket_brigade_feeder::progress::Display;
use bucket_brigade_feeder::settings::{Args, Command};
use bucket_brigade_feeder::start::start;

fn main() -> ExitCode {
    startup::run(async |args: Args, stop| {
        if let Some(Command::Healthcheck(check)) = args.command {
            return Ok(check.run()?);
        }
        let (settings, logs) = args.parse_settings()?;
        let display = Display::on_stderr();
        telemetry::init(logs, display.log_writer());
        start(settings, display, stop).await
    })
}
