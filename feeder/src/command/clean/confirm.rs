//! The operator's word: the bucket's name, given as a flag or typed.

use std::fmt::Display;
use std::io::{BufRead, IsTerminal, Write};

use bucket_brigade_common::settings::SettingsError;

use crate::command::answer::Format;

/// Whether objects may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consent {
    /// Yes.
    Given,
    /// Nobody said so: the command only tells.
    Withheld,
}

/// Checks a name given as a flag, before anything is done.
///
/// # Errors
/// It is another name.
pub(super) fn check(given: Option<&str>, bucket: &str) -> Result<(), SettingsError> {
    match given {
        Some(name) if name != bucket => Err(SettingsError::one(
            "--confirm",
            format!("'{name}' is not the bucket that objects would be removed from ('{bucket}')"),
        )),
        _ => Ok(()),
    }
}

/// Asks on a terminal; elsewhere nobody could answer.
///
/// # Errors
/// Another name was typed, or the terminal cannot be used.
pub(super) fn ask(format: Format, preview: &impl Display, bucket: &str) -> anyhow::Result<Consent> {
    let is_attended = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    if format == Format::Json || !is_attended {
        return Ok(Consent::Withheld);
    }
    let mut terminal = std::io::stderr().lock();
    write!(
        terminal,
        "{preview}\nType the bucket's name to remove them: "
    )?;
    terminal.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    check(Some(line.trim()), bucket)?;
    Ok(Consent::Given)
}
