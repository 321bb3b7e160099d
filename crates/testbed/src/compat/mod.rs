//! What a store that speaks S3 honours, and whether a migration holds on it: asked of real stores, and
//! written down for `docs/compatibility.md`.

mod migration;
mod page;
mod probes;
mod store;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use crate::run::print_status;
use migration::{MigrationResult, run_migration};
use page::render_page;
use probes::{ProbeResult, probe_store};
use store::Store;

/// Probes stores that speak S3 and moves images on each with the real feeder and consumers, while an
/// application uses them.
#[derive(Debug, Parser)]
#[command(name = "compat")]
pub struct CompatArguments {
    /// A store that runs: NAME=ENDPOINT,ACCESS_KEY,SECRET; may be given more than once.
    #[arg(long = "store", value_parser = store::parse_store)]
    stores: Vec<Store>,
    /// The S3 that this program holds, too.
    #[arg(long)]
    local: bool,
    /// Images to move on each.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(10..))]
    images: u32,
    /// Write what was found to this file, as a page.
    #[arg(long)]
    output: Option<PathBuf>,
}

/// What was found on one store.
struct StoreReport {
    name: String,
    probes: Vec<ProbeResult>,
    migration: MigrationResult,
}

/// Succeeds only if the migration held on every store.
pub async fn main() -> ExitCode {
    match run(CompatArguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_status(&format!("compat: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: CompatArguments) -> Result<bool> {
    let mut reports = Vec::new();
    let local = arguments.local.then(store::start_local).transpose()?;
    let local = local.iter().map(|(_, store)| store);
    for store in arguments.stores.iter().chain(local) {
        print_status(&format!("{}: asking what it honours …", store.name));
        let probes = probe_store(store).await?;
        let migration = run_migration(store, &probes, arguments.images).await;
        print_status(&format!("{}: {migration}", store.name));
        reports.push(StoreReport {
            name: store.name.clone(),
            probes,
            migration,
        });
    }
    let page = render_page(&reports);
    match arguments.output {
        Some(path) => std::fs::write(path, page)?,
        None => print_status(&page),
    }
    Ok(reports.iter().all(|report| report.migration.has_held()))
}
