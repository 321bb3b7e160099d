//! `feeder dashboard`: the live page without a feeder, with the database's address alone.

use std::future::pending;

use bucket_brigade_common::ledger::no_run;
use bucket_brigade_common::settings::SettingsProblems;

use super::{Dashboard, DashboardArgs, DashboardContext};
use crate::context::CommonArgs;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  feeder dashboard --status-addr 127.0.0.1:9101\n\nNeeds the database alone, and shows the queue where QUEUE_URL names it. Images are shown by feeders.\nExit codes: 0 stopped by a signal; 64 wrong settings, or no run yet; 69 the database cannot be\nreached; 70 unexpected error; 77 a right is missing."
)]
pub struct Args {
    #[command(flatten)]
    dashboard: DashboardArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Returns an error alone: a signal ends it.
pub(crate) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut problems = SettingsProblems::default();
    let dashboard = args.dashboard.parse(&mut problems);
    if dashboard.address.is_none() && !problems.names("STATUS_ADDR") {
        problems.add(
            "STATUS_ADDR",
            "is missing: the address to serve the page on",
        );
    }
    let settings = args.common.parse(problems)?;
    let dashboard = Dashboard::bind_listener(&dashboard).await?;
    let pool = settings.connect_to_ledger().await?;
    let context = DashboardContext {
        pool: pool.ok_or_else(|| no_run("", &[]))?,
        queue: settings.sqs_queue().await,
        own_run: None,
    };
    if let Some(dashboard) = dashboard {
        dashboard.spawn_server(context).await;
    }
    pending().await
}
