//! The real programs, run as processes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, Result, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};
use tokio::process::{Child, Command};

use crate::application::{Application, KeySpelling};
use crate::cloud::Cloud;
use bucket_brigade_private_postgres::Watchdog;

/// Where the program `name` of this workspace was built: beside the running one.
pub fn binary_path(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let mut directory = own.parent().context("this program is in no directory")?;
    // Tests are one level down.
    if directory.ends_with("deps") {
        directory = directory.parent().context("deps is in no directory")?;
    }
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} is not built; run: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}

/// The environment in which feeder and consumer serve `application`; the requests of the process
/// are counted under `caller`.
pub fn settings_env(
    application: &Application,
    cloud: &Cloud,
    queue_url: &str,
    caller: &str,
) -> Vec<(String, String)> {
    let settings = [
        ("DATABASE_URL", application.database_url.as_str()),
        ("IMAGES_TABLE", &application.table.name),
        ("ID_COLUMN", &application.table.id_column),
        ("PATH_COLUMN", &application.table.path_column),
        ("QUEUE_URL", queue_url),
        ("SOURCE_BUCKET_NAME", &application.source_bucket),
        ("DESTINATION_BUCKET_NAME", &application.destination_bucket),
        ("OLD_PREFIX", &application.old_prefix),
        ("NEW_PREFIX", &application.new_prefix),
        // The local queue's receive slows with its depth.
        ("MAX_BACKLOG", "2000"),
    ];
    let spelled = [
        ("PATH_ENCODING", application.spelling.setting()),
        ("SOURCE_KEY_PREFIX", ""),
        ("DESTINATION_KEY_PREFIX", ""),
    ];
    let spelled = spelled.into_iter();
    let spelled = spelled.filter(|_| application.spelling != KeySpelling::Literal);
    let companions = [("COMPANIONS", &*application.companions)];
    let companions = companions.into_iter().filter(|(_, text)| !text.is_empty());
    let settings = settings.into_iter().chain(spelled).chain(companions);
    settings
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .chain(cloud.sdk_env_for(caller))
        .collect()
}

/// A running program of this workspace. It is killed when this is dropped and when this process
/// ends in whatever way.
#[derive(Debug)]
pub struct ChildProcess {
    name: String,
    log: Option<PathBuf>,
    child: Child,
    watchdog: Watchdog,
}

impl ChildProcess {
    /// Starts the program `name` with these variables and none of ours but `PATH` and Rust's own. Its
    /// output goes to the end of `log`, or to our standard error where there is none.
    pub fn spawn<A: AsRef<OsStr>>(
        name: &str,
        environment: &[(String, String)],
        arguments: &[A],
        log: Option<&Path>,
    ) -> Result<Self> {
        let mut command = Command::new(binary_path(name)?);
        command.args(arguments).env_clear().stdin(Stdio::null());
        // Away from the developer's own .env file.
        command.current_dir("/");
        let kept = ["PATH", "RUST_LOG", "RUST_BACKTRACE"];
        command.envs(
            kept.iter()
                .filter_map(|name| Some((name, std::env::var_os(name)?))),
        );
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        if let Some(path) = log {
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)?;
            command.stdout(file.try_clone()?).stderr(file);
        }
        // A Ctrl-C at the terminal is for us; we decide what becomes of our children.
        let child = command.process_group(0).kill_on_drop(true).spawn();
        let child = child.with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().context("it has ended already")?.to_string();
        let watchdog = Watchdog::arm("kill -KILL \"$1\"", &[pid])?;
        Ok(Self {
            name: name.to_owned(),
            log: log.map(Path::to_owned),
            child,
            watchdog,
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id; none once it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends SIGTERM. A process that has ended is left alone.
    pub fn terminate(&self) -> Result<()> {
        self.send_signal(Signal::TERM)
    }

    /// Sends a signal. A process that has ended is left alone.
    pub fn send_signal(&self, signal: Signal) -> Result<()> {
        let id = self.child.id().map(i32::try_from).transpose()?;
        if let Some(id) = id.and_then(Pid::from_raw) {
            kill_process(id, signal)?;
        }
        Ok(())
    }

    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill().await?;
        self.watchdog.dismiss();
        Ok(())
    }

    pub async fn wait_for_exit(&mut self) -> Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.watchdog.dismiss();
        Ok(status)
    }

    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        let ended = self.child.try_wait()?;
        if ended.is_some() {
            // Its id may soon be another's.
            self.watchdog.dismiss();
        }
        Ok(ended)
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let text = self
            .log
            .as_ref()
            .and_then(|log| std::fs::read_to_string(log).ok())
            .unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        self.watchdog.dismiss();
    }
}
