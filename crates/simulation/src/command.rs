//! The command line of model and simulation.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;

use crate::model::{
    ExplorationResult, explore_model, model_configurations, sabotaged_model, shortest_violation,
};
use crate::sabotage::Sabotage;
use crate::simulate::{SimulationReport, simulate_seed};

/// How many seeds between two lines of progress.
const PROGRESS_INTERVAL_SEEDS: u64 = 20_000;

/// Proves what must hold without a machine: simulates migrations by seed, or explores the model.
///
/// Example: script/chaos --simulate 100000
#[derive(Debug, Parser)]
#[command(name = "script/chaos", group(clap::ArgGroup::new("what").required(true)))]
struct SimulationArguments {
    /// Simulate so many seeds: whole feeders and consumers over a world in memory, with faults at every
    /// call and deaths at every await
    #[arg(long, value_name = "N", group = "what")]
    simulate: Option<u64>,
    /// The first seed; with --simulate 1 and RUST_LOG=debug it shows all that happens
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Explore the model: every state of small but complete configurations, and the counterexample to each
    /// of three sabotages
    #[arg(long, group = "what")]
    model: bool,
}

/// Runs it; succeeds only if everything held.
pub fn main() -> ExitCode {
    let arguments = SimulationArguments::parse();
    let holds = match arguments.simulate {
        Some(count) => simulate_all(arguments.seed, count),
        None => explore_all(),
    };
    if holds {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// A line on standard output; who reads it may have gone.
fn print_line(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// What the seeds came to.
#[derive(Default)]
struct SimulationTotals {
    done: AtomicU64,
    moved: AtomicU64,
    changed: AtomicU64,
    failed: AtomicU64,
    crashes: AtomicU64,
    faults: AtomicU64,
    violated: AtomicBool,
}

impl SimulationTotals {
    fn add_report(&self, seed: u64, report: &SimulationReport) {
        let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        for (sum, number) in [
            (&self.moved, count(report.moved)),
            (&self.changed, count(report.changed)),
            (&self.failed, count(report.failed)),
            (&self.crashes, report.crashes),
            (&self.faults, report.faults),
        ] {
            sum.fetch_add(number, Ordering::Relaxed);
        }
        if !report.violations.is_empty() {
            self.violated.store(true, Ordering::Relaxed);
            print_line(&format!(
                "VIOLATION  seed {seed}: {:#?}\nagain with: script/chaos --simulate 1 --seed {seed}",
                report.violations
            ));
        }
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        if done.is_multiple_of(PROGRESS_INTERVAL_SEEDS) {
            print_line(&format!("{done} seeds …"));
        }
    }

    fn render_summary(&self, seconds: f64) -> String {
        let number = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = number(&self.done) as f64 / seconds;
        format!(
            "{} seeds in {seconds:.1} s, {rate:.0} a second: {} rows moved, {} changed, {} failed; {} faults, {} processes died; {}",
            number(&self.done),
            number(&self.moved),
            number(&self.changed),
            number(&self.failed),
            number(&self.faults),
            number(&self.crashes),
            if self.violated.load(Ordering::Relaxed) {
                "NOT everything that must hold held"
            } else {
                "everything that must hold held"
            }
        )
    }
}

/// Each seed has a runtime of its own, and the threads take turns.
fn simulate_all(first: u64, count: u64) -> bool {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let log = tracing_subscriber::fmt().with_env_filter(filter);
        log.with_writer(std::io::stderr).init();
    }
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, sums, started) = (
        AtomicU64::new(first),
        SimulationTotals::default(),
        Instant::now(),
    );
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first.saturating_add(count) {
                        return;
                    }
                    sums.add_report(seed, &simulate_seed(seed));
                }
            });
        }
    });
    print_line(&sums.render_summary(started.elapsed().as_secs_f64()));
    !sums.violated.load(Ordering::Relaxed)
}

fn explore_all() -> bool {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut states, mut holds) = (0, true);
    for (name, brigade) in model_configurations() {
        let explored = explore_model(brigade, threads);
        states += explored.states;
        holds &= explored.violations.is_empty();
        print_line(&render_exploration(name, &explored));
    }
    print_line(&format!("{states:>10}  states in all"));
    for sabotage in [
        Sabotage::NoCompareAndSet,
        Sabotage::UnconditionalCopy,
        Sabotage::DeleteBeforeCommit,
        Sabotage::UncheckedPath,
        Sabotage::UnsentDeadLetter,
        Sabotage::UntestedSuspicion,
    ] {
        holds &= has_counterexample(sabotage);
    }
    holds
}

fn has_counterexample(sabotage: Sabotage) -> bool {
    let Some(found) = sabotaged_model(sabotage).and_then(|brigade| shortest_violation(&brigade))
    else {
        return false;
    };
    print_line(&render_exploration(
        &format!("sabotaged: {sabotage:?}"),
        &found,
    ));
    true
}

fn render_exploration(name: &str, explored: &ExplorationResult) -> String {
    let mut text = format!(
        "{:>10}  states, depth {:>2}, {:>5.1} s: {name}",
        explored.states,
        explored.depth,
        explored.elapsed.as_secs_f64()
    );
    for (violated, steps) in &explored.violations {
        let _ = write!(text, "\n            VIOLATED {violated}");
        for step in steps {
            let _ = write!(text, "\n                {step}");
        }
    }
    text
}
