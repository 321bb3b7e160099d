//! A command's output: the one thing it writes to standard output.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::Context;
use bucket_brigade_common::printable::printable_lines;
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputFormat {
    Text,
    /// One JSON object on one line, for machines.
    Json,
}

impl OutputFormat {
    /// A reader that has gone away, as `head` does, is no error.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(self, output: &(impl Display + Serialize)) -> anyhow::Result<()> {
        let text = match self {
            Self::Text => printable_lines(&output.to_string()).to_string(),
            Self::Json => serde_json::to_string(output).context("the output as JSON")?,
        };
        let mut out = std::io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() != ErrorKind::BrokenPipe => {
                Err(error).context("writing to standard output")
            }
            _ => Ok(()),
        }
    }
}
