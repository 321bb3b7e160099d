//! The feeder's process.

use std::process::ExitCode;

use bucket_brigade_common::logging;
use bucket_brigade_common::startup::{self, WorkerThreads};
use bucket_brigade_common::trace::{FLUSH_TIMEOUT, Traces};
use bucket_brigade_feeder::display::ProgressDisplay;
use bucket_brigade_feeder::settings::Args;
use bucket_brigade_feeder::start::start;
use clap::CommandFactory;
use mimalloc::MiMalloc;

/// Requests are made on one thread and freed on another, which costs glibc's allocator a fifth of the
/// processor time of a row. Huge pages (its feature `no_thp` does without) would add half to the memory.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    startup::run(WorkerThreads::PerProcessor, async |mut args: Args, stop| {
        if let Some(command) = args.command.take() {
            let command = command.run(Args::command(), args.into_check(), stop);
            return Box::pin(command).await;
        }
        let (migration, settings, logs) = args.parse_settings()?;
        let display = ProgressDisplay::on_stderr();
        let name = startup::process_name("feeder");
        let traces = Traces::start(&settings.traces, "bucket-brigade-feeder", &name)?;
        logging::init_logging(logs, display.log_writer(), traces.layer());
        let ended = Box::pin(start(migration, settings, &name, display, stop)).await;
        traces.shut_down(FLUSH_TIMEOUT).await;
        ended
    })
}
