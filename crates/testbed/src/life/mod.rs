//! A whole life: every command of an operator, from the plan to the removal of the sources, on a migration
//! by the real programs while an application uses the images. Each step is checked by what the commands
//! answer, by the rows, by the objects and by the requests that were made; all of it is a transcript.

mod before;
mod ending;
mod failing;
mod full;
mod operator;
mod removal;
mod scene;
mod snapshot;
mod transcript;
mod undo;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::run::{print_report, print_status};
use scene::Scene;
use transcript::Heading;

/// Lives a whole life of a migration, as its operator, while an application uses the images, on a private
/// Postgres and local S3 and SQS. Succeeds only if each step did what it must.
#[derive(Debug, Clone, Parser)]
#[command(name = "script/life")]
pub struct Arguments {
    /// Images in scope of the migration.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(400..))]
    images: u32,
    /// Consumer processes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    consumers: u32,
    /// Write the transcript here, as Markdown: each command, what it printed, its exit code, what was checked.
    #[arg(long, value_name = "FILE")]
    transcript: Option<PathBuf>,
    /// Print the figures as one JSON object in the last line of standard output; all else goes to
    /// standard error.
    #[arg(long)]
    json: bool,
    /// Where the dice for images and traffic start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// What the transcript says it was made from.
    #[arg(long, hide = true, default_value = "an unknown commit")]
    commit: String,
}

/// Lives it; succeeds only if everything that must hold did.
pub async fn main() -> ExitCode {
    // Ctrl-C needs no handling: the watchdogs clean up after us.
    match run(&Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_status(&format!("script/life: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Result<bool> {
    let mut scene = Scene::set_up(arguments).await?;
    let lived = live(&mut scene).await;
    if lived.is_err() {
        print_status(&scene.transcript.tail());
    }
    lived?;
    let (report, transcript) = ending::close(scene).await?;
    if let Some(path) = &arguments.transcript {
        let heading = Heading {
            images: arguments.images,
            consumers: arguments.consumers,
            seed: arguments.seed,
            commit: &arguments.commit,
        };
        let text = transcript.markdown(&heading, &report.table());
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let holds = report.holds();
    print_report(&report.table(), holds, arguments.json.then_some(&report))?;
    Ok(holds)
}

async fn live(scene: &mut Scene) -> Result<()> {
    before::plan(scene).await?;
    before::canary(scene).await?;
    before::verify(scene).await?;
    full::run(scene).await?;
    failing::failures(scene).await?;
    failing::retry(scene).await?;
    failing::verify_and_report(scene).await?;
    let back = undo::rollback(scene).await?;
    undo::run_again(scene, &back).await?;
    removal::clean(scene, &back).await
}
