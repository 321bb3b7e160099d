//! `feeder report`: one line per row, out of one snapshot of the ledger and with constant memory.

mod csv;
mod html;

use std::io::{BufWriter, ErrorKind, Write};

use anyhow::Context as _;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{Access, Ledger, ReportLine};
use bucket_brigade_common::settings::Problems;
use clap::ValueEnum;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::answer;
use super::context::CommonArgs;

/// How often the reader's pace is waited for: enough to make few system calls.
const BUFFER_BYTES: usize = 1 << 16;

/// Its flags and settings.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder report > moves.csv\n  feeder report --format html > moves.html\n  feeder report --json | jq '.[] | select(.state == \"failed\")'\n\nOne line per row that has ended: moved, changed (by the application), failed, or rolled back. Exit codes: 0 done; 1\nunexpected error; 3 stopped before the end; 64 wrong settings, or no such run; 69 the database cannot be reached;\n77 a right is missing."
)]
pub struct Args {
    /// How to write it
    #[arg(long, value_name = "FORMAT", default_value = "csv")]
    format: Format,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// RFC 4180, with a header
    Csv,
    /// An array with one object per line
    Json,
    /// A page with a table
    Html,
}

/// Writes the lines in one format, and what stands around them.
trait Writer {
    fn begin(&mut self, out: &mut dyn Write, ledger: &Ledger) -> std::io::Result<()>;
    fn line(&mut self, out: &mut dyn Write, line: &ReportLine) -> std::io::Result<()>;
    fn end(&mut self, out: &mut dyn Write) -> std::io::Result<()>;
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let context = args.common.context(Problems::default())?;
    let format = match context.format {
        answer::Format::Json => Format::Json,
        answer::Format::Text => args.format,
    };
    let mut writer: Box<dyn Writer> = match format {
        Format::Csv => Box::new(csv::Csv),
        Format::Json => Box::new(Json::default()),
        Format::Html => Box::new(html::Html::default()),
    };
    let ledger = context.ledger(Access::Read).await?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout());
    match write(&ledger, &mut *writer, &mut out, &stop).await {
        Err(Failed::Written(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(exit::DONE),
        Err(Failed::Written(error)) => Err(error).context("writing to standard output"),
        Err(Failed::Read(error)) => Err(error),
        Ok(true) => Ok(exit::DONE),
        Ok(false) => Ok(exit::STOPPED),
    }
}

/// Which end of the pipe broke.
enum Failed {
    Read(anyhow::Error),
    Written(std::io::Error),
}

async fn write(
    ledger: &Ledger,
    writer: &mut dyn Writer,
    out: &mut dyn Write,
    stop: &CancellationToken,
) -> Result<bool, Failed> {
    writer.begin(out, ledger).map_err(Failed::Written)?;
    let mut lines = ledger.report();
    while let Some(line) = lines.next().await {
        if stop.is_cancelled() {
            return Ok(false);
        }
        let line = line.map_err(|error| Failed::Read(error.into()))?;
        writer.line(out, &line).map_err(Failed::Written)?;
    }
    let ended = writer.end(out).and_then(|()| out.flush());
    ended.map_err(Failed::Written)?;
    Ok(true)
}

#[derive(Default)]
struct Json {
    has_lines: bool,
}

impl Writer for Json {
    fn begin(&mut self, out: &mut dyn Write, _: &Ledger) -> std::io::Result<()> {
        write!(out, "[")
    }

    fn line(&mut self, out: &mut dyn Write, line: &ReportLine) -> std::io::Result<()> {
        let comma = if self.has_lines { "," } else { "" };
        self.has_lines = true;
        writeln!(out, "{comma}")?;
        Ok(serde_json::to_writer(out, line)?)
    }

    fn end(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "\n]")
    }
}
