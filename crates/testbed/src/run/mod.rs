//! What demo and chaos have in common: the environment, the processes, the progress line and the report.

mod environment;
mod output;
mod processes;
mod progress;
mod report;
mod side_runs;

pub(crate) use environment::{EnvironmentOptions, RunEnvironment, allowed_writes};
pub(crate) use output::{print_report, print_status, print_violations};
pub(crate) use processes::{EXIT_SOME_FAILED, ProcessGroup};
pub(crate) use progress::{ProgressPrinter, read_moved_rows};
pub(crate) use report::RunReport;
pub(crate) use side_runs::is_of_side_run;
