//! The consumer's process.

use std::process::ExitCode;

use bucket_brigade_common::logging;
use bucket_brigade_common::startup::{self, WorkerThreads};
use bucket_brigade_common::trace::Traces;
use bucket_brigade_consumer::settings::{Args, ConsumerCommand};
use bucket_brigade_consumer::start::start;
use clap::CommandFactory;
use mimalloc::MiMalloc;

/// As the feeder's: glibc's took a sixth of an image's processor time, this takes a tenth.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    startup::run(WorkerThreads::One, async |args: Args, stop| {
        match args.command {
            Some(ConsumerCommand::Healthcheck(check)) => return Ok(check.run().await?),
            Some(ConsumerCommand::Manual(command)) => return command.run(Args::command()),
            None => {}
        }
        let (settings, logs) = args.parse_settings()?;
        let traces = Traces::start(&settings.traces, "bucket-brigade-consumer", &settings.name)?;
        logging::init_logging(logs, logging::stderr_writer(), traces.layer());
        start(settings, traces, stop).await
    })
}
