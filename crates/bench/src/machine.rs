//! Where and of what the figures were taken.

use std::process::Command;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MachineInfo {
    pub cpu: String,
    pub cores: usize,
    pub memory_gib: u64,
    pub kernel: String,
    /// The commit, marked where the tree differs from it.
    pub commit: String,
    pub date: String,
    pub rustc: String,
    pub postgres: String,
}

impl MachineInfo {
    /// Asks the system; what it does not know is `unknown`.
    pub fn detect(postgres: &str) -> Self {
        Self {
            cpu: cpu_name().unwrap_or_else(|| "unknown".into()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: memory_gib().unwrap_or(0),
            kernel: first_output_line("uname", &["-sr"]),
            commit: first_output_line("git", &["describe", "--always", "--dirty"]),
            date: first_output_line("date", &["-u", "+%Y-%m-%d"]),
            rustc: first_output_line("rustc", &["--version"]),
            postgres: postgres.to_owned(),
        }
    }
}

fn cpu_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn memory_gib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = text
        .lines()
        .next()?
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()?;
    Some(kib.div_ceil(1 << 20))
}

pub fn first_output_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let line = output
        .ok()
        .filter(|output| output.status.success())
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .and_then(|text| text.lines().next().map(|line| line.trim().to_owned()));
    line.unwrap_or_else(|| "unknown".into())
}
