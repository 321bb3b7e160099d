//! The operator's word: the bucket's name, given as a flag or typed.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use bucket_brigade_common::settings::SettingsError;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::output::OutputFormat;

/// Whether objects may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RemovalConsent {
    Given,
    /// Nobody said so: the command only tells.
    Withheld,
    /// Ctrl-C instead of an answer.
    Interrupted,
}

/// Checks a name given as a flag, before anything is done.
///
/// # Errors
/// It is another name.
pub(super) fn check_bucket_name(given: Option<&str>, bucket: &str) -> Result<(), SettingsError> {
    match given {
        Some(name) if name != bucket => Err(SettingsError::for_setting(
            "--confirm",
            format!("'{name}' is not the bucket that objects would be removed from ('{bucket}')"),
        )),
        _ => Ok(()),
    }
}

/// Asks on a terminal; elsewhere nobody could answer. What is typed is no answer to a pipe or a file: a
/// name that happens to come out of one is nobody's word.
///
/// # Errors
/// Another name was typed, or the terminal cannot be used.
pub(super) async fn prompt_for_consent(
    format: OutputFormat,
    preview: &impl Display,
    bucket: &str,
    stop: &CancellationToken,
) -> anyhow::Result<RemovalConsent> {
    let is_attended = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if format == OutputFormat::Json || !is_attended {
        return Ok(RemovalConsent::Withheld);
    }
    write_prompt(preview)?;
    // The thread that reads outlives an interrupted question, and ends with the process.
    let typed = spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    let line = tokio::select! {
        biased;
        () = stop.cancelled() => return Ok(RemovalConsent::Interrupted),
        line = typed => line??,
    };
    check_bucket_name(Some(line.trim()), bucket)?;
    Ok(RemovalConsent::Given)
}

fn write_prompt(preview: &impl Display) -> std::io::Result<()> {
    let mut terminal = std::io::stderr().lock();
    write!(
        terminal,
        "{preview}\nType the bucket's name to remove them: "
    )?;
    terminal.flush()
}
