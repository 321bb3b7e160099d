//! A program of this workspace on a terminal of its own, with input typed at it.

use std::ffi::OsString;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bucket_brigade_private_postgres::Watchdog;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::task::JoinHandle;

use crate::process::binary_path;

/// No text is waited for longer.
const WAIT_TIMEOUT: Duration = Duration::from_mins(2);

/// Between two looks at the screen.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What Ctrl-C sends.
const CTRL_C: &str = "\u{3}";

/// What Ctrl-D sends.
const CTRL_D: &str = "\u{4}";

/// A program on a terminal. It is killed when this is dropped.
pub struct TerminalSession {
    child: Child,
    input: ChildStdin,
    output: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    watchdog: Watchdog,
}

impl TerminalSession {
    /// Starts the program `name` with these variables and none of ours but `PATH`.
    ///
    /// The terminal is that of `script`, which every Linux and macOS has.
    pub fn start(name: &str, environment: &[(String, String)], arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new("script");
        command.args(script_arguments(
            binary_path(name)?.into_os_string(),
            arguments,
        ));
        command.env_clear().current_dir("/");
        command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let spawned = command.process_group(0).kill_on_drop(true).spawn();
        let mut child = spawned.context("cannot start script, which gives a program a terminal")?;
        let pid = child.id().context("it has ended already")?.to_string();
        let keyboard = child.stdin.take().context("there is no keyboard")?;
        let screen = child.stdout.take().context("there is no screen")?;
        let shown = Arc::<Mutex<Vec<u8>>>::default();
        Ok(Self {
            child,
            input: keyboard,
            reader: tokio::spawn(read_output(screen, Arc::clone(&shown))),
            output: shown,
            watchdog: Watchdog::arm("kill -KILL \"$1\"", &[pid])?,
        })
    }

    /// Waits until the screen has shown `text`.
    pub async fn wait_for_text(&self, text: &str) -> Result<()> {
        let deadline = Instant::now() + WAIT_TIMEOUT;
        while !self.screen_text().contains(text) {
            if self.reader.is_finished() || Instant::now() > deadline {
                bail!(
                    "the screen never shows {text:?}, but:\n{}",
                    self.screen_text()
                );
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    pub async fn type_line(&mut self, line: &str) -> Result<()> {
        self.send_keys(&format!("{line}\n")).await
    }

    pub async fn press_ctrl_c(&mut self) -> Result<()> {
        self.send_keys(CTRL_C).await
    }

    /// Presses Ctrl-D: there is nothing more to come.
    pub async fn press_ctrl_d(&mut self) -> Result<()> {
        self.send_keys(CTRL_D).await
    }

    async fn send_keys(&mut self, keys: &str) -> Result<()> {
        self.input.write_all(keys.as_bytes()).await?;
        Ok(self.input.flush().await?)
    }

    /// Waits for the program's end; its exit code, and all that was shown.
    pub async fn wait_for_exit(mut self) -> Result<(i32, String)> {
        let status = tokio::time::timeout(WAIT_TIMEOUT, self.child.wait()).await;
        let status =
            status.with_context(|| format!("it does not end:\n{}", self.screen_text()))??;
        self.watchdog.dismiss();
        (&mut self.reader).await?;
        Ok((status.code().unwrap_or(-1), self.screen_text()))
    }

    fn screen_text(&self) -> String {
        strip_control_sequences(&String::from_utf8_lossy(&self.output.lock()))
    }
}

impl Drop for TerminalSession {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        self.watchdog.dismiss();
    }
}

/// The arguments of `script`: to run a command, to write no file, and to end as the command does.
fn script_arguments(program: OsString, arguments: &[&str]) -> Vec<OsString> {
    if cfg!(target_os = "macos") {
        let words = ["-q", "/dev/null"].map(OsString::from).into_iter();
        let arguments = arguments.iter().map(OsString::from);
        return words.chain([program]).chain(arguments).collect();
    }
    let program = program.to_string_lossy();
    let words = std::iter::once(&*program).chain(arguments.iter().copied());
    let words: Vec<String> = words.map(shell_quote).collect();
    // In the shell's place: a shell would take Ctrl-C for itself too.
    let line = format!("exec {}", words.join(" "));
    ["-q", "-e", "-f", "-c", &line, "/dev/null"]
        .map(OsString::from)
        .to_vec()
}

/// A word as a shell takes it for what it is.
fn shell_quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

async fn read_output(mut screen: ChildStdout, shown: Arc<Mutex<Vec<u8>>>) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = screen.read(&mut buffer).await {
        shown.lock().extend_from_slice(&buffer[..count]);
    }
}

/// What stays on a screen: without colours, and each line as it was last written.
fn strip_control_sequences(shown: &str) -> String {
    let mut text = String::new();
    let mut rest = shown;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        rest = after.trim_start_matches(|letter: char| !letter.is_ascii_alphabetic());
        rest = rest.get(1..).unwrap_or_default();
    }
    text.push_str(rest);
    let lines = text.split('\n').map(|line| {
        let line = line.trim_end_matches('\r');
        line.rsplit('\r').next().unwrap_or_default()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_over_is_gone() {
        let shown = "one\r\n\u{1b}[2K\rbar 1\u{1b}[0m\r\u{1b}[2Ktwo\r\nend";
        assert_eq!(strip_control_sequences(shown), "one\ntwo\nend");
    }

    #[test]
    fn a_shell_takes_each_word_whole() {
        assert_eq!(shell_quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
