//! A small child process that cleans up after us, however we end.
//!
//! It waits for the end of a pipe whose other end only this process holds. The kernel closes that
//! pipe on a return, a panic, Ctrl-C and SIGKILL alike, and statics need no destructor.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A shell script that runs once this process is gone, or at [`Watchdog::bark`].
#[derive(Debug)]
pub struct Watchdog(Child);

impl Watchdog {
    /// Arms `script`, a POSIX shell script that finds `arguments` in `$1`, `$2`, …
    pub fn arm<A: AsRef<OsStr>>(script: &str, arguments: &[A]) -> std::io::Result<Self> {
        // Its own process group and no signals: a Ctrl-C meant for us must not stop the cleaning.
        let waiting = format!("trap '' INT TERM HUP; read -r _; {script}");
        Command::new("sh")
            .args(["-c", &waiting, "watchdog"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// Runs the script now and waits for its end.
    pub fn bark(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }

    /// Lets go without running the script.
    pub fn dismiss(&mut self) {
        // Killed before the pipe closes, so that it does not see the end of it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
