//! What `script/chaos` can be asked for.

use std::collections::BTreeSet;
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::cloud::CloudOptions;

/// Moves seeded images with the real feeder and consumers while everything around them fails and they
/// are killed again and again, and checks that nothing was lost and nothing overwritten.
///
/// The feeding is slowed so that there is work for as long as the faults act. Then the faults end, and
/// the feeder must finish by itself. Exit code 0 only if everything that must hold held, and every
/// image ended in exactly one state.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "script/chaos",
    after_help = "Example: script/chaos --minutes 5 --images 20000 --consumers 4 --json\n\n\
        Other ways to break it: script/chaos --simulate N, script/chaos --model,\n\
        script/chaos throttling --help, script/chaos shutdown --help"
)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct ChaosArguments {
    /// How long the faults act at least; they go on while there is work left, up to as long again and
    /// at least a minute.
    #[arg(long, default_value_t = 1.0, value_parser = parse_minutes)]
    pub minutes: f64,
    /// Images in scope of the migration.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..))]
    pub images: u32,
    /// Runs on one queue, each a column with so many images: one to three, in two tables. The application rewrites
    /// rows of the first alone, and only its table has triggers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3))]
    pub runs: u32,
    /// Consumer processes at a time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub consumers: u32,
    /// The store that the images are in.
    #[arg(long, value_enum, default_value_t = StoreKind::S3)]
    pub store: StoreKind,
    /// Only this fault; may be given several times. Without it: all of them at once.
    #[arg(long = "fault", value_name = "NAME")]
    pub faults: Vec<FaultKind>,
    /// Seed of the random numbers; random unless given. The same seed gives the same numbers, though processes
    /// and time do not repeat exactly.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Paths are percent-encoded URLs, some of which spell one key differently, and images have companions.
    #[arg(long)]
    pub companions: bool,
    /// Print the figures as one JSON object in the last line of standard output; all else goes to
    /// standard error.
    #[arg(long)]
    pub json: bool,
    /// Keep the logs of the processes and the server also when everything held.
    #[arg(long)]
    pub keep_logs: bool,
    /// Overwrite the object of one image on purpose before the check, which must find it: a test of
    /// the test.
    #[arg(long)]
    pub sabotage: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StoreKind {
    /// Copies, uploads and deletes are conditional.
    S3,
    /// As Ceph: of these only uploads are, and the bytes go through the consumers.
    Unconditional,
}

impl StoreKind {
    pub(super) fn options(self) -> CloudOptions {
        match self {
            Self::S3 => CloudOptions::default(),
            Self::Unconditional => CloudOptions::like_ceph(),
        }
    }
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum FaultKind {
    /// kill -9 of a random consumer every second; another starts at once.
    KillConsumers,
    /// kill -9 of the feeder every five seconds; another starts at once.
    KillFeeder,
    /// 5 % of the consumers' S3 requests: 503, 500, resets and timeouts before and after the effect,
    /// 200 with an error, empty 200, truncated body, errors after the effect.
    S3Errors,
    /// 2 % of the feeder's and consumers' SQS requests: 500, throttling, resets before and after the
    /// effect, batches of which a part fails.
    SqsErrors,
    /// Postgres is stopped without warning and started again every 20 s.
    PostgresRestarts,
    /// 5 % of the statements that write the ledger lose their connection after the server has committed
    /// them and before it can say so; 1 % before the server has seen them.
    CutCommits,
    /// Each message that the feeder sends is delivered one to five times.
    Duplicates,
    /// Visibility timeout of 2 s, and copies take 6 s, whether the consumer still waits or not: all
    /// copies where this is the only fault or consumers are not killed, else 5 %, because consumers
    /// then live for a few seconds only.
    SlowCopies,
    /// The application rewrites rows 50 times a second whose images are being moved at that moment, half
    /// of them under the very key of the copy, and deletes some. It leaves every other row alone, so that
    /// there is something to move.
    Rewrites,
    /// Messages that are none of ours, 1 % of the images, spread over the run.
    Poison,
    /// Every 20 s all connections to Postgres fall silent for good, without a reset, and S3 and SQS answer
    /// nothing for five seconds.
    Silent,
    /// A trigger raises 42501, 55000 or XX001 for every twentieth row, rewrites the path of every sixtieth, and
    /// is slow with others.
    Triggers,
}

impl ChaosArguments {
    /// The faults to act.
    pub(super) fn fault_kinds(&self) -> BTreeSet<FaultKind> {
        if self.faults.is_empty() {
            return FaultKind::value_variants().iter().copied().collect();
        }
        self.faults.iter().copied().collect()
    }

    pub(super) fn fault_duration(&self) -> Duration {
        Duration::from_secs_f64(self.minutes * 60.0)
    }

    /// The command that repeats this run.
    pub(super) fn repeat_command(&self, seed: u64) -> String {
        let Self {
            minutes,
            images,
            consumers,
            runs,
            ..
        } = self;
        let mut command = format!(
            "script/chaos --minutes {minutes} --images {images} --consumers {consumers} --seed {seed}"
        );
        if *runs > 1 {
            command.push_str(" --runs ");
            command.push_str(&runs.to_string());
        }
        if self.companions {
            command.push_str(" --companions");
        }
        if self.store == StoreKind::Unconditional {
            command.push_str(" --store unconditional");
        }
        for kind in &self.faults {
            let name = kind.to_possible_value();
            let name = name.as_ref().map_or("", |value| value.get_name());
            command.push_str(" --fault ");
            command.push_str(name);
        }
        command
    }
}

/// At least a few seconds, at most a day.
fn parse_minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.1..=1440.0).contains(&minutes) {
        Ok(minutes)
    } else {
        Err("not between 0.1 and 1440".to_owned())
    }
}
