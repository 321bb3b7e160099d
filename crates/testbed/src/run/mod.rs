//! What the demo and the chaos have in common: the stage they run on, the processes at work, the
//! line that tells how far they are, and the figures at the end.

mod environment;
mod processes;
mod progress;
mod report;

pub(crate) use environment::{EnvironmentOptions, RunEnvironment, allowed_writes};
pub(crate) use processes::{EXIT_SOME_FAILED, ProcessGroup};
pub(crate) use progress::{ProgressPrinter, read_moved_rows};
pub(crate) use report::{RunReport, print_report, print_status, print_violations};
