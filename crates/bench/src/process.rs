//! Programs run as processes, with the operating system's account of each once it has ended.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bucket_brigade_common::exit;
use bucket_brigade_private_postgres::Watchdog;
use rustix::process::{Pid, Signal, kill_process};
use wait4::Wait4;

use crate::stats::to_f64;
use crate::stub::now_us;

#[derive(Debug, Clone, Copy)]
pub struct ProcessUsage {
    pub cpu: Duration,
    /// The most memory it had at a time. Linux also counts what we had when we started it.
    pub peak_rss_bytes: u64,
    /// When it was started, in microseconds since 1970.
    pub started_us: u64,
}

impl ProcessUsage {
    pub fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6
    }

    pub fn peak_rss_mib(&self) -> f64 {
        to_mib(self.peak_rss_bytes)
    }
}

pub fn to_mib(bytes: u64) -> f64 {
    to_f64(bytes) / f64::from(1 << 20)
}

/// A running process. It is killed when this is dropped and when we end in whatever way.
#[derive(Debug)]
pub struct RunningProcess {
    child: Child,
    name: String,
    log: PathBuf,
    watchdog: Watchdog,
    started_us: u64,
}

impl RunningProcess {
    /// Starts a command without input; what it says on standard error goes to `log`.
    pub fn start(mut command: Command, log: PathBuf) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(std::fs::File::create(&log)?);
        let started_us = now_us();
        let child = command
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        let watchdog = Watchdog::arm("kill -KILL \"$1\"", &[child.id().to_string()])?;
        Ok(Self {
            child,
            name,
            log,
            watchdog,
            started_us,
        })
    }

    pub fn terminate(&self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        Ok(())
    }

    pub fn rss_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let line = |text: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.starts_with("VmRSS:"))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        status.ok().and_then(|text| line(&text)).unwrap_or(0) * 1024
    }

    /// Of the processors so far, with the ten milliseconds' precision of the system's account.
    pub fn cpu_ms(&self) -> f64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let ticks = fields.split_whitespace().skip(11).take(2);
        ticks
            .filter_map(|ticks| ticks.parse::<f64>().ok())
            .sum::<f64>()
            * 10.0
    }

    /// Whether it has ended, without taking its account.
    pub fn ensure_alive(&self) -> Result<()> {
        let path = format!("/proc/{}/stat", self.child.id());
        let state = std::fs::read_to_string(path).unwrap_or_default();
        // A zombie waits for us to take its account.
        let is_zombie = state
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'));
        ensure!(!is_zombie, "{} ended early: {}", self.name, self.log_tail());
        Ok(())
    }

    pub async fn wait_for_exit(mut self) -> Result<ProcessUsage> {
        let (result, mut running) = tokio::task::spawn_blocking(move || {
            let result = self.child.wait4();
            (result, self)
        })
        .await?;
        running.watchdog.dismiss();
        let used = result?;
        let (name, status) = (&running.name, used.status);
        // A feeder that is asked to stop before the end says so.
        let is_fine = status.success() || status.code() == Some(i32::from(exit::STOPPED));
        ensure!(is_fine, "{name}: {status}: {}", running.log_tail());
        Ok(ProcessUsage {
            cpu: used.rusage.utime + used.rusage.stime,
            peak_rss_bytes: used.rusage.maxrss,
            started_us: running.started_us,
        })
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join("\n")
    }
}

impl Drop for RunningProcess {
    fn drop(&mut self) {
        // Where its account was taken this does nothing.
        drop(self.child.kill());
        self.watchdog.dismiss();
    }
}

pub fn built_binary(name: &str) -> Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    let file = path.display();
    ensure!(path.exists(), "{file} is not built; run script/bench");
    Ok(path)
}
