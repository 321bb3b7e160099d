//! What the demo and the chaos have in common: the stage they run on, the processes at work, the
//! line that tells how far they are, and the figures at the end.

mod crew;
mod progress;
mod report;
mod stage;

pub(crate) use crew::{Crew, SOME_FAILED};
pub(crate) use progress::{Progress, moved};
pub(crate) use report::{Report, print, tell, tell_violations};
pub(crate) use stage::{Plan, Stage, writes_by};
