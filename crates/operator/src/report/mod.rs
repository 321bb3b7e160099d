//! `feeder report`: one line per row, out of one snapshot of the ledger and with constant memory.

mod lines;

use std::io::{BufWriter, ErrorKind, Stdout, Write};

use anyhow::Context as _;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, TableAccess};
use bucket_brigade_common::settings::SettingsProblems;
use clap::ValueEnum;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use super::context::CommonArgs;
use super::output::OutputFormat;
use lines::{CSV_HEADER, ReportLine, report_lines};

/// Enough to make few system calls.
const BUFFER_BYTES: usize = 1 << 16;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder report > moves.csv\n  feeder report --json | jq 'select(.state == \"failed\")'\n\nOne line per row that has ended: moved, changed (by the application), failed, or rolled back. Exit codes: 0 done; 1\nunexpected error; 3 stopped before the end; 64 wrong settings, or no such run; 69 the database cannot be reached;\n77 a right is missing."
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
    /// JSON Lines: one object per line
    Json,
}

pub(super) async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<u8> {
    let context = args
        .common
        .into_context(SettingsProblems::default())
        .await?;
    let format = match context.format {
        OutputFormat::Json => ReportFormat::Json,
        OutputFormat::Text => args.format,
    };
    let ledger = context.open_ledger(TableAccess::Read).await?;
    match write_report(&ledger, format, &stop).await {
        Err(ReportError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(exit::DONE),
        Err(ReportError::Write(error)) => Err(error).context("writing to standard output"),
        Err(ReportError::Read(error)) => Err(error.into()),
        Ok(true) => Ok(exit::DONE),
        Ok(false) => Ok(exit::STOPPED),
    }
}

/// Which end of the pipe broke.
enum ReportError {
    Read(StatementError),
    Write(std::io::Error),
}

impl From<std::io::Error> for ReportError {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

/// False when it was stopped before the end.
async fn write_report(
    ledger: &PostgresLedger,
    format: ReportFormat,
    stop: &CancellationToken,
) -> Result<bool, ReportError> {
    let mut writer = ReportWriter::begin(format)?;
    let mut lines = report_lines(ledger);
    while let Some(line) = lines.next().await {
        if stop.is_cancelled() {
            return Ok(false);
        }
        writer.write_line(&line.map_err(ReportError::Read)?)?;
    }
    writer.flush()?;
    Ok(true)
}

enum ReportWriter {
    Csv(Box<csv::Writer<Stdout>>),
    Json(BufWriter<Stdout>),
}

impl ReportWriter {
    fn begin(format: ReportFormat) -> std::io::Result<Self> {
        let out = std::io::stdout();
        if format == ReportFormat::Json {
            return Ok(Self::Json(BufWriter::with_capacity(BUFFER_BYTES, out)));
        }
        let mut builder = csv::WriterBuilder::new();
        builder.has_headers(false).buffer_capacity(BUFFER_BYTES);
        let mut csv = builder.from_writer(out);
        csv.write_record(CSV_HEADER)?;
        Ok(Self::Csv(Box::new(csv)))
    }

    fn write_line(&mut self, line: &ReportLine) -> std::io::Result<()> {
        match self {
            Self::Csv(csv) => Ok(csv.serialize(line)?),
            Self::Json(out) => {
                serde_json::to_writer(&mut *out, line)?;
                writeln!(out)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Self::Csv(csv) => csv.flush(),
            Self::Json(out) => out.flush(),
        }
    }
}
