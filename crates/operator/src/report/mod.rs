//! `feeder report`: one line per row, out of one snapshot of the ledger and with constant memory.

mod csv;
mod html;

use std::io::{BufWriter, ErrorKind, Write};

use anyhow::Context as _;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::{PostgresLedger, ReportLine, TableAccess};
use bucket_brigade_common::settings::SettingsProblems;
use clap::ValueEnum;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::context::CommonArgs;
use super::output;

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
    format: ReportFormat,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ReportFormat {
    /// RFC 4180, with a header
    Csv,
    /// An array with one object per line
    Json,
    /// A page with a table
    Html,
}

/// Writes the lines in one format, and what stands around them.
trait ReportWriter {
    fn write_header(&mut self, out: &mut dyn Write, ledger: &PostgresLedger)
    -> std::io::Result<()>;
    fn write_line(&mut self, out: &mut dyn Write, line: &ReportLine) -> std::io::Result<()>;
    fn write_footer(&mut self, out: &mut dyn Write) -> std::io::Result<()>;
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let context = args.common.into_context(SettingsProblems::default())?;
    let format = match context.format {
        output::OutputFormat::Json => ReportFormat::Json,
        output::OutputFormat::Text => args.format,
    };
    let mut writer: Box<dyn ReportWriter> = match format {
        ReportFormat::Csv => Box::new(csv::CsvReport),
        ReportFormat::Json => Box::new(JsonReport::default()),
        ReportFormat::Html => Box::new(html::Html::default()),
    };
    let ledger = context.open_ledger(TableAccess::Read).await?;
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, std::io::stdout());
    match write_report(&ledger, &mut *writer, &mut out, &stop).await {
        Err(ReportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(exit::DONE),
        Err(ReportError::Write(error)) => Err(error).context("writing to standard output"),
        Err(ReportError::Read(error)) => Err(error),
        Ok(true) => Ok(exit::DONE),
        Ok(false) => Ok(exit::STOPPED),
    }
}

/// Which end of the pipe broke.
enum ReportError {
    Read(anyhow::Error),
    Write(std::io::Error),
}

async fn write_report(
    ledger: &PostgresLedger,
    writer: &mut dyn ReportWriter,
    out: &mut dyn Write,
    stop: &CancellationToken,
) -> Result<bool, ReportError> {
    writer
        .write_header(out, ledger)
        .map_err(ReportError::Write)?;
    let mut lines = ledger.report_lines();
    while let Some(line) = lines.next().await {
        if stop.is_cancelled() {
            return Ok(false);
        }
        let line = line.map_err(|error| ReportError::Read(error.into()))?;
        writer.write_line(out, &line).map_err(ReportError::Write)?;
    }
    let ended = writer.write_footer(out).and_then(|()| out.flush());
    ended.map_err(ReportError::Write)?;
    Ok(true)
}

#[derive(Default)]
struct JsonReport {
    has_lines: bool,
}

impl ReportWriter for JsonReport {
    fn write_header(&mut self, out: &mut dyn Write, _: &PostgresLedger) -> std::io::Result<()> {
        write!(out, "[")
    }

    fn write_line(&mut self, out: &mut dyn Write, line: &ReportLine) -> std::io::Result<()> {
        let comma = if self.has_lines { "," } else { "" };
        self.has_lines = true;
        writeln!(out, "{comma}")?;
        Ok(serde_json::to_writer(out, line)?)
    }

    fn write_footer(&mut self, out: &mut dyn Write) -> std::io::Result<()> {
        writeln!(out, "\n]")
    }
}
