//! `feeder report`: one line per row, page by page and with constant memory.

mod lines;

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;
use bucket_brigade_common::exit;
use bucket_brigade_common::ledger::TableAccess;
use bucket_brigade_common::settings::SettingsProblems;
use clap::ValueEnum;
use serde::Serialize;
use tokio::task::spawn_blocking;

use super::context::CommonArgs;
use super::output::OutputFormat;
use lines::{CSV_HEADER, PAGE_ROWS, ReportLine, report_page};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  feeder report > moves.csv\n  feeder report --json | jq 'select(.state == \"failed\")'\n\nOne line per row that has ended: moved, changed (by the application), failed, or rolled back. Exit\ncodes: 0 done; 3 stopped before the end; 64 wrong settings, or no such run; 69 the database cannot\nbe reached; 70 unexpected error; 77 a right is missing."
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
    /// RFC 4180, with a header; a cell that begins like a formula gets an apostrophe before it
    Csv,
    /// JSON Lines: one object per line
    Json,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let context = args
        .common
        .into_context(SettingsProblems::default())
        .await?;
    let format = match context.format {
        OutputFormat::Json => ReportFormat::Json,
        OutputFormat::Text => args.format,
    };
    let ledger = context.open_ledger(TableAccess::Read).await?;
    if format == ReportFormat::Csv && !write(csv_text([CSV_HEADER])?).await? {
        return Ok(exit::DONE);
    }
    let mut cursor: Option<String> = None;
    loop {
        let page = report_page(&ledger, cursor.as_deref()).await?;
        let is_last = page.len() < PAGE_ROWS;
        cursor = page.last().map(|line| line.id.clone());
        if !write(render_page(format, page)?).await? || is_last {
            return Ok(exit::DONE);
        }
    }
}

/// Not on this thread, where a reader that takes its time would keep signals unheard. False when the
/// reader has gone away, as `head` does.
async fn write(text: Vec<u8>) -> anyhow::Result<bool> {
    let written = spawn_blocking(move || {
        let mut out = std::io::stdout().lock();
        out.write_all(&text).and_then(|()| out.flush())
    });
    match written.await? {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("writing to standard output"),
    }
}

fn render_page(format: ReportFormat, mut page: Vec<ReportLine>) -> anyhow::Result<Vec<u8>> {
    if format == ReportFormat::Csv {
        page.iter_mut().for_each(ReportLine::disarm_formulas);
        return csv_text(page);
    }
    let mut text = Vec::new();
    for line in page {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
    }
    Ok(text)
}

fn csv_text(records: impl IntoIterator<Item = impl Serialize>) -> anyhow::Result<Vec<u8>> {
    let mut csv = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(Vec::new());
    for record in records {
        csv.serialize(record)?;
    }
    Ok(csv.into_inner()?)
}

#[cfg(test)]
pub(crate) fn plans() -> Vec<crate::statement_plans::PlannedStatement> {
    vec![lines::plan()]
}
