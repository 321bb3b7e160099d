//! A command's output: what it writes to standard output. A list, possibly a long one, is written as its items come,
//! so that memory does not grow with them.

use std::fmt::{self, Display};
use std::io::{ErrorKind, Stdout, Write};

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
    pub fn print(self, output: &(impl Display + Serialize)) -> anyhow::Result<()> {
        self.print_to_reader(output).map(drop)
    }

    /// False once nobody reads any more.
    pub fn print_to_reader(self, output: &(impl Display + Serialize)) -> anyhow::Result<bool> {
        let text = self.render(output)?;
        write_to(&mut std::io::stdout(), format!("{text}\n").as_bytes())
    }

    fn render(self, output: &(impl Display + Serialize)) -> anyhow::Result<String> {
        match self {
            Self::Text => Ok(printable_lines(&output.to_string()).to_string()),
            Self::Json => serde_json::to_string(output).context("the output as JSON"),
        }
    }
}

/// One line each, or what holds where there is none.
pub(crate) fn write_lines(
    f: &mut fmt::Formatter<'_>,
    items: &[impl Display],
    none: &str,
) -> fmt::Result {
    if items.is_empty() {
        return f.write_str(none);
    }
    let lines: Vec<String> = items.iter().map(ToString::to_string).collect();
    f.write_str(&lines.join("\n"))
}

/// False when the reader has gone away, as `head` does.
pub(crate) fn write_to(out: &mut impl Write, text: &[u8]) -> anyhow::Result<bool> {
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("writing to standard output"),
    }
}

/// Writes lines for people; for machines one JSON object that holds the list under a name, and the summary's fields.
pub(crate) struct ListWriter<W> {
    format: OutputFormat,
    out: W,
    items: u64,
    /// The reader has gone away: what it would have seen ends with it.
    is_closed: bool,
}

impl ListWriter<Stdout> {
    pub(crate) fn begin_on_stdout(format: OutputFormat, name: &str) -> anyhow::Result<Self> {
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
            list.write(&format!("{{{}:[", serde_json::to_string(name)?))?;
        }
        Ok(list)
    }

    /// A line for people, among the items.
    pub(crate) fn write_line(&mut self, line: &impl Display) -> anyhow::Result<()> {
        match self.format {
            OutputFormat::Text => self.write(&format!("{}\n", printable_lines(&line.to_string()))),
            OutputFormat::Json => Ok(()),
        }
    }

    pub(crate) fn write_item(&mut self, item: &(impl Display + Serialize)) -> anyhow::Result<()> {
        let text = self.format.render(item)?;
        self.items += 1;
        match self.format {
            OutputFormat::Text => self.write(&format!("{text}\n")),
            OutputFormat::Json if self.items == 1 => self.write(&text),
            OutputFormat::Json => self.write(&format!(",{text}")),
        }
    }

    /// Ends with the summary, which must be a struct.
    pub(crate) fn write_summary(
        mut self,
        summary: &(impl Display + Serialize),
    ) -> anyhow::Result<()> {
        self.write_line(summary)?;
        self.write_fields(summary)
    }

    /// The same for machines alone.
    pub(crate) fn write_fields(mut self, fields: &impl Serialize) -> anyhow::Result<()> {
        if self.format == OutputFormat::Text {
            return Ok(());
        }
        let fields = serde_json::to_string(fields)?;
        self.write(&format!("],{}\n", fields.trim_start_matches('{')))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed
    }

    fn write(&mut self, text: &str) -> anyhow::Result<()> {
        self.is_closed = self.is_closed || !write_to(&mut self.out, text.as_bytes())?;
        Ok(())
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
