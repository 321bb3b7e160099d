//! The progress line.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::postgres::PgPool;

use super::environment::RunEnvironment;
use crate::traffic::Traffic;

/// Between two lines where they cannot be written over.
const LINE_INTERVAL: Duration = Duration::from_secs(3);

pub(crate) struct ProgressPrinter {
    pool: PgPool,
    total_rows: usize,
    moved_rows: usize,
    started_at: Instant,
    last_printed: Instant,
    overwrites_line: bool,
}

impl ProgressPrinter {
    pub(crate) async fn start(environment: &RunEnvironment) -> Result<Self> {
        let (begun, overwrites_line) = (Instant::now(), std::io::stderr().is_terminal());
        let pool = environment.application.connect_pool(1).await?;
        Ok(Self {
            pool,
            total_rows: environment.rows_to_process(),
            moved_rows: 0,
            started_at: begun,
            last_printed: begun,
            overwrites_line,
        })
    }

    /// Reads the ledger and prints the progress.
    pub(crate) async fn poll_ledger(&mut self, traffic: &Traffic) -> Result<()> {
        self.moved_rows = read_moved_rows(&self.pool).await?;
        if self.overwrites_line || self.last_printed.elapsed() > LINE_INTERVAL {
            self.last_printed = Instant::now();
            self.print_line(traffic);
        }
        Ok(())
    }

    pub(crate) fn moved_rows(&self) -> usize {
        self.moved_rows
    }

    pub(crate) fn is_half_way(&self) -> bool {
        self.moved_rows * 2 >= self.total_rows
    }

    /// Prints the last line and returns the seconds since the start.
    pub(crate) async fn finish(&mut self, traffic: &Traffic) -> Result<f64> {
        let seconds = self.started_at.elapsed().as_secs_f64();
        self.moved_rows = read_moved_rows(&self.pool).await?;
        self.print_line(traffic);
        if self.overwrites_line {
            let _ = writeln!(std::io::stderr());
        }
        Ok(seconds)
    }

    fn print_line(&self, traffic: &Traffic) {
        let line = self.format_line(traffic.read_counts());
        let (start, end) = if self.overwrites_line {
            ("\r", "\x1b[K")
        } else {
            ("", "\n")
        };
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "{start}{line}{end}");
        let _ = stderr.flush();
    }

    #[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
    fn format_line(&self, (reads, broken): (u64, u64)) -> String {
        let Self {
            moved_rows: moved,
            total_rows: to_do,
            ..
        } = self;
        let seconds = self.started_at.elapsed().as_secs_f64();
        let rate = *moved as f64 / seconds.max(0.001);
        format!(
            "{moved} of {to_do} moved · {rate:.0} per second · {reads} reads, {broken} broken · {seconds:.0} s"
        )
    }
}

/// The sum of the consumers' counters; 0 before the feeder has made the ledger.
pub(crate) async fn read_moved_rows(pool: &PgPool) -> Result<usize> {
    let exists = sqlx::query_scalar("SELECT to_regclass('bucket_brigade.counters') IS NOT NULL");
    if !exists.fetch_one(pool).await? {
        return Ok(0);
    }
    let sum = "SELECT coalesce(sum(moved), 0)::bigint FROM bucket_brigade.counters";
    let moved: i64 = sqlx::query_scalar(sum).fetch_one(pool).await?;
    Ok(usize::try_from(moved)?)
}
