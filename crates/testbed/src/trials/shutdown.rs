//! Shutdown: signals to a consumer under load at random moments, and what it leaves behind.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use serde::Serialize;
use tokio::time::{sleep, timeout};

use super::environment::{TrialEnvironment, wait_for};
use super::print_status;
use crate::cloud::{Fault, FaultEffect, FaultHandle};
use crate::process::{ChildProcess, Signal};

/// Messages at hand at the beginning of each time.
const MESSAGES_PER_TRIAL: usize = 300;

/// The grace the consumer is given, in seconds; as its setting and as a number.
const GRACE_SETTING: &str = "10s";
const GRACE_SECONDS: f64 = 10.0;

/// "At once", on a machine that may be busy with other things.
const IMMEDIATE_EXIT_SECONDS: f64 = 1.0;

/// Longer than any orderly end takes.
const EXIT_TIMEOUT: Duration = Duration::from_mins(1);

/// The first signal comes within this time after the first copy, the second within the other after
/// the first.
const MAX_FIRST_SIGNAL_SECONDS: f64 = 2.5;
const MAX_SECOND_SIGNAL_SECONDS: f64 = 0.6;

/// Copies take up to this long each.
const MAX_COPY_MS: u64 = 400;

/// The exit code of a process that a second signal ended.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// The shortest there is, because messages in hand at a second signal are waited for.
const VISIBILITY_SETTING: &str = "2s";

#[derive(Debug, Clone, clap::Args)]
pub struct ShutdownArguments {
    /// How often a signal is sent
    #[arg(long, default_value_t = 200)]
    pub times: u32,
    /// How often two signals are sent
    #[arg(long, default_value_t = 50)]
    pub twice: u32,
    /// Seed of the random numbers, the first time; each further time one more
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

#[derive(Debug, Default, Serialize)]
pub struct ShutdownFigures {
    signals: u32,
    moved: usize,
    given_back: usize,
    worst_seconds_to_exit: f64,
    second_signals: u32,
    exits_at_once: u32,
    worst_seconds_to_exit_at_once: f64,
    in_hand_at_second_signals: u64,
    duplicate_moves: usize,
    dead_letters: u64,
    /// What took too long, each with its seed.
    late: Vec<String>,
    /// What does not hold however long it took, each with its seed.
    pub failures: Vec<String>,
}

impl ShutdownFigures {
    /// Whether everything held every time, and in time.
    pub fn meets_targets(&self) -> bool {
        self.failures.is_empty() && self.late.is_empty()
    }

    fn check_within(&mut self, seed: u64, seconds: f64, most: f64) {
        if seconds > most {
            self.late
                .push(format!("seed {seed}: {seconds:.2} s, not {most} s"));
        }
    }

    fn check_condition(&mut self, seed: u64, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let failure = format!("seed {seed}: {}", what());
            print_status(&failure);
            self.failures.push(failure);
        }
    }
}

/// Sends the signals, one time after the other in the same environment.
pub async fn run(arguments: &ShutdownArguments) -> Result<ShutdownFigures> {
    // A message that is given back time after time is received time after time.
    let mut environment = TrialEnvironment::set_up(arguments.times + arguments.twice + 5).await?;
    let mut figures = ShutdownFigures::default();
    for number in 0..u64::from(arguments.times) {
        signal_once(&mut environment, arguments.seed + number, &mut figures).await?;
    }
    for number in 0..u64::from(arguments.twice) {
        signal_twice(&mut environment, arguments.seed + number, &mut figures).await?;
    }
    check_final_state(&environment, &mut figures).await?;
    Ok(figures)
}

/// One signal: everything in hand is finished or given back within the grace.
async fn signal_once(
    environment: &mut TrialEnvironment,
    seed: u64,
    figures: &mut ShutdownFigures,
) -> Result<()> {
    let mut random = Rng::with_seed(seed);
    let moved_before = environment.moved_rows().await?;
    let (mut consumer, slow) = start_loaded_consumer(environment, &mut random, &[]).await?;
    let signal = Instant::now();
    consumer.terminate()?;
    let code = wait_for_exit(&mut consumer).await?;
    let seconds = signal.elapsed().as_secs_f64();
    drop(slow);
    let moved = environment.moved_rows().await?;
    let (copies, queued) = (
        environment.copied_objects(),
        environment.queue_depth().await?,
    );
    let to_move = environment.sent_images() - moved;
    figures.signals += 1;
    figures.moved += moved - moved_before;
    figures.given_back += to_move;
    figures.worst_seconds_to_exit = figures.worst_seconds_to_exit.max(seconds);
    figures.check_condition(seed, code == Some(0), || {
        format!("exit {code:?}:\n{}", consumer.log_tail(40))
    });
    figures.check_within(seed, seconds, GRACE_SECONDS);
    figures.check_condition(seed, copies == moved, || {
        format!("{copies} copies, {moved} rows moved")
    });
    figures.check_condition(seed, queued.total() == to_move as u64, || {
        format!("{queued:?}, {to_move} rows to move")
    });
    figures.check_condition(seed, queued.in_flight == 0, || {
        format!(
            "not visible at once: {queued:?}:\n{}",
            consumer.log_tail(40)
        )
    });
    Ok(())
}

/// Two signals: the process ends at once, and what was in its hand another consumer moves.
async fn signal_twice(
    environment: &mut TrialEnvironment,
    seed: u64,
    figures: &mut ShutdownFigures,
) -> Result<()> {
    let mut random = Rng::with_seed(seed);
    let settings = [("VISIBILITY_TIMEOUT", VISIBILITY_SETTING)];
    let (mut consumer, slow) = start_loaded_consumer(environment, &mut random, &settings).await?;
    consumer.terminate()?;
    sleep(Duration::from_secs_f64(
        random.f64() * MAX_SECOND_SIGNAL_SECONDS,
    ))
    .await;
    let signal = Instant::now();
    consumer.send_signal(Signal::INT)?;
    let code = wait_for_exit(&mut consumer).await?;
    let seconds = signal.elapsed().as_secs_f64();
    drop(slow);
    figures.second_signals += 1;
    figures.exits_at_once += u32::from(code == Some(EXIT_SECOND_SIGNAL));
    figures.worst_seconds_to_exit_at_once = figures.worst_seconds_to_exit_at_once.max(seconds);
    figures.in_hand_at_second_signals += environment.queue_depth().await?.in_flight;
    // It may have been done before the second signal.
    figures.check_condition(seed, matches!(code, Some(0 | EXIT_SECOND_SIGNAL)), || {
        format!("exit {code:?}:\n{}", consumer.log_tail(40))
    });
    figures.check_within(seed, seconds, IMMEDIATE_EXIT_SECONDS);
    move_remaining(environment, &settings).await?;
    let (sent, moved, copies) = (
        environment.sent_images(),
        environment.moved_rows().await?,
        environment.copied_objects(),
    );
    figures.check_condition(seed, (moved, copies) == (sent, sent), || {
        format!("of {sent} sent {moved} moved, {copies} copies")
    });
    Ok(())
}

/// A consumer at work, with all its messages at hand, at a random moment.
async fn start_loaded_consumer(
    environment: &mut TrialEnvironment,
    random: &mut Rng,
    more: &[(&str, &str)],
) -> Result<(ChildProcess, FaultHandle)> {
    let left = usize::try_from(environment.queue_depth().await?.total())?;
    let missing = MESSAGES_PER_TRIAL.saturating_sub(left);
    environment.add_images(missing).await?;
    environment.send_images(missing).await?;
    let time = Duration::from_millis(random.u64(0..MAX_COPY_MS));
    let slow = environment
        .cloud
        .inject_fault(Fault::new("CopyObject", FaultEffect::Delay(time)).key_contains("image/"));
    let settings = [&[("SHUTDOWN_GRACE", GRACE_SETTING)], more].concat();
    let before = environment.copied_objects();
    let consumer = environment.spawn_consumer(&settings)?;
    // The probe's own objects come and go before.
    wait_for("the first copies", async || {
        Ok(slow.hits() > 0 && environment.copied_objects() > before)
    })
    .await?;
    sleep(Duration::from_secs_f64(
        random.f64() * MAX_FIRST_SIGNAL_SECONDS,
    ))
    .await;
    Ok((consumer, slow))
}

async fn wait_for_exit(consumer: &mut ChildProcess) -> Result<Option<i32>> {
    let status = timeout(EXIT_TIMEOUT, consumer.wait_for_exit()).await;
    Ok(status.context("a consumer did not end")??.code())
}

/// Another consumer moves all that is left.
async fn move_remaining(environment: &TrialEnvironment, settings: &[(&str, &str)]) -> Result<()> {
    // A process that has nothing to do would get its signal before its handler is there.
    if environment.queue_depth().await?.total() == 0 {
        return Ok(());
    }
    let mut successor = environment.spawn_consumer(settings)?;
    environment.wait_until_drained().await?;
    successor.terminate()?;
    let code = wait_for_exit(&mut successor).await?;
    ensure!(code == Some(0), "exit {code:?}: {}", successor.log_tail(40));
    Ok(())
}

/// In the end everything has moved, once each.
async fn check_final_state(
    environment: &TrialEnvironment,
    figures: &mut ShutdownFigures,
) -> Result<()> {
    move_remaining(environment, &[]).await?;
    let (sent, moved) = (
        environment.sent_images(),
        environment.count_ledger_rows("moves").await?,
    );
    let counted = environment.counted_moves().await?;
    figures.duplicate_moves = counted.abs_diff(moved);
    figures.dead_letters = environment.dead_letters().await?;
    let (failed, changed) = (
        environment.count_ledger_rows("failures").await?,
        environment.count_ledger_rows("changes").await?,
    );
    let lines = figures.failures.len();
    let all = [
        (sent == moved, "rows not moved"),
        (figures.duplicate_moves == 0, "rows counted twice"),
        (figures.dead_letters == 0, "dead letters"),
        ((failed, changed) == (0, 0), "failures or changes recorded"),
    ];
    for (holds, what) in all {
        if !holds {
            figures.failures.push(format!("at the end: {what}"));
        }
    }
    figures.failures[lines..]
        .iter()
        .for_each(|line| print_status(line));
    Ok(())
}
