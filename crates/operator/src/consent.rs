//! The operator's word for what cannot be taken back: given by a flag, or typed on a terminal. Without it a
//! command prints what it would do.

use std::fmt::Display;
use std::io::{IsTerminal, Write};

use bucket_brigade_common::printable::printable_lines;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::output::OutputFormat;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ConsentReply {
    Typed(String),
    /// There is no terminal to ask on.
    Unattended,
    /// Ctrl-C instead of a reply.
    Interrupted,
}

impl ConsentReply {
    pub(crate) fn is_yes(&self) -> bool {
        matches!(self, Self::Typed(word) if word == "yes")
    }
}

/// Whether there is a terminal to ask on. What comes out of a pipe or a file is no consent.
pub(crate) fn can_ask(format: OutputFormat) -> bool {
    let is_attended = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    is_attended && format == OutputFormat::Text
}

/// Asks on a terminal, where there is one.
pub(crate) async fn ask(
    format: OutputFormat,
    question: &impl Display,
    stop: &CancellationToken,
) -> anyhow::Result<ConsentReply> {
    if !can_ask(format) {
        return Ok(ConsentReply::Unattended);
    }
    write_question(&question.to_string())?;
    // The thread that reads outlives an interrupted question, and ends with the process.
    let typed = spawn_blocking(|| {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map(|_| line)
    });
    tokio::select! {
        biased;
        () = stop.cancelled() => Ok(ConsentReply::Interrupted),
        line = typed => Ok(ConsentReply::Typed(line??.trim().to_owned())),
    }
}

fn write_question(question: &str) -> std::io::Result<()> {
    let mut terminal = std::io::stderr().lock();
    write!(terminal, "{}", printable_lines(question))?;
    terminal.flush()
}
