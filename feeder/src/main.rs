//! The feeder's process.

use std::process::ExitCode;

use bucket_brigade_common::startup::{self, Threads};
use bucket_brigade_common::telemetry;
use bucket_brigade_feeder::progress::Display;
use bucket_brigade_feeder::settings::Args;
use bucket_brigade_feeder::start::start;

fn main() -> ExitCode {
    startup::run(Threads::PerProcessor, async |args: Args, stop| {
        if let Some(command) = args.command {
            return command.run(stop).await;
        }
        let (settings, logs) = args.parse_settings()?;
        let display = Display::on_stderr();
        telemetry::init(logs, display.log_writer());
        start(settings, display, stop).await
    })
}
