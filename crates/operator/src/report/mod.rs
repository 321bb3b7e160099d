//! `feeder report`: one line per row, page by page and with constant memory.

mod lines;

use bucket_brigade_common::exit;
use bucket_brigade_common::settings::SettingsProblems;
use clap::ValueEnum;
use tokio::task::spawn_blocking;

use super::context::CommonArgs;
use super::output::{OutputFormat, write_to};
use super::statements::Pages;
use lines::ReportLine;
pub(crate) use lines::SELECT_PAGE;

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
    let run = context.open_run().await?;
    if format == ReportFormat::Csv && !write(csv_header()?).await? {
        return Ok(exit::DONE);
    }
    // No snapshot is held from page to page.
    let mut pages = Pages::of_run(&run.pool, run.id, SELECT_PAGE);
    while let Some(page) = pages.next(|line: &ReportLine| &line.id).await? {
        if !write(render_page(format, page)?).await? {
            break;
        }
    }
    Ok(exit::DONE)
}

/// Not on this thread, where a reader that takes its time would keep signals unheard. False when it has gone away.
async fn write(text: Vec<u8>) -> anyhow::Result<bool> {
    spawn_blocking(move || write_to(&mut std::io::stdout(), &text)).await?
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

/// An empty report has it too.
fn csv_header() -> anyhow::Result<Vec<u8>> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    csv.serialize(ReportLine::default())?;
    let mut text = csv.into_inner()?;
    text.truncate(
        text.iter()
            .position(|byte| *byte == b'\n')
            .map_or(0, |end| end + 1),
    );
    Ok(text)
}

fn csv_text(records: Vec<ReportLine>) -> anyhow::Result<Vec<u8>> {
    let mut csv = csv::WriterBuilder::new()
        .has_headers(false)
        .from_writer(Vec::new());
    for record in records {
        csv.serialize(record)?;
    }
    Ok(csv.into_inner()?)
}
