//! An output that is a list, possibly a long one, and a summary: its items are written as they come, so that
//! memory does not grow with them.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anyhow::Context;
use bucket_brigade_common::printable::printable_lines;
use serde::Serialize;

use crate::output::OutputFormat;

/// Writes to standard output: lines for people; for machines one JSON object that holds the list under a
/// name, and the summary's fields.
pub(super) struct ListWriter<W> {
    format: OutputFormat,
    out: W,
    items: u64,
    /// The reader has gone away, as `head` does.
    is_closed: bool,
}

impl ListWriter<std::io::Stdout> {
    /// Begins a list under this name.
    pub(super) fn begin_on_stdout(format: OutputFormat, name: &str) -> anyhow::Result<Self> {
        Self::begin_on_writer(std::io::stdout(), format, name)
    }
}

impl<W: Write> ListWriter<W> {
    fn begin_on_writer(out: W, format: OutputFormat, name: &str) -> anyhow::Result<Self> {
        let mut list = Self {
            format,
            out,
            items: 0,
            is_closed: false,
        };
        if format == OutputFormat::Json {
            let name = serde_json::to_string(name)?;
            list.write(&format!("{{{name}:["))?;
        }
        Ok(list)
    }

    /// A line for people, among the items.
    pub(super) fn write_line(&mut self, line: &impl Display) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Text => self.write(&format!("{}\n", printable_lines(&line.to_string()))),
            OutputFormat::Json => Ok(()),
        }
    }

    /// Adds one item.
    pub(super) fn write_item(&mut self, item: &(impl Display + Serialize)) -> anyhow::Result<()> {
        let text = match self.format {
            OutputFormat::Text => format!("{}\n", printable_lines(&item.to_string())),
            OutputFormat::Json if self.items == 0 => serde_json::to_string(item)?,
            OutputFormat::Json => format!(",{}", serde_json::to_string(item)?),
        };
        self.items += 1;
        self.write(&text)
    }

    /// Ends with the summary, which must be a struct, for machines alone.
    pub(super) fn write_fields(mut self, fields: &impl Serialize) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Text => Ok(()),
            OutputFormat::Json => self.write_json_end(fields),
        }
    }

    fn write_json_end(&mut self, fields: &impl Serialize) -> anyhow::Result<()> {
        let fields = serde_json::to_string(fields)?;
        self.write(&format!("],{}\n", fields.trim_start_matches('{')))
    }

    /// Ends with the summary, which must be a struct.
    pub(super) fn write_summary(
        mut self,
        summary: &(impl Display + Serialize),
    ) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Text => self.write_line(summary),
            OutputFormat::Json => self.write_json_end(summary),
        }
    }

    /// Whether the reader has gone away: what it would have seen ends with it.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        if self.is_closed {
            return Ok(());
        }
        let written = self.out.write_all(text.as_bytes());
        match written.and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            other => other.context("writing to standard output"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Item(&'static str);

    impl Display for Item {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    #[derive(Serialize)]
    struct Summary {
        count: u32,
    }

    impl Display for Summary {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{} in all", self.count)
        }
    }

    fn written(format: OutputFormat, items: &[&'static str]) -> String {
        let mut out = Vec::new();
        let mut list = ListWriter::begin_on_writer(&mut out, format, "items").unwrap();
        for item in items {
            list.write_item(&Item(item)).unwrap();
        }
        list.write_summary(&Summary { count: 2 }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_for_people_and_one_object_for_machines() {
        assert_eq!(written(OutputFormat::Text, &["a", "b"]), "a\nb\n2 in all\n");
        for items in [&["a", "\"b\""][..], &[]] {
            let value: serde_json::Value =
                serde_json::from_str(&written(OutputFormat::Json, items)).unwrap();
            assert_eq!(value["count"], 2);
            assert_eq!(value["items"].as_array().unwrap().len(), items.len());
        }
    }
}
