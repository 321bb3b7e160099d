//! The line that tells how far the migration is.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::postgres::PgPool;

use super::stage::Stage;
use crate::traffic::Traffic;

/// Between two lines where they cannot be written over.
const LINE_EVERY: Duration = Duration::from_secs(3);

pub(crate) struct Progress {
    pool: PgPool,
    to_do: usize,
    moved: usize,
    begun: Instant,
    told: Instant,
    in_place: bool,
}

impl Progress {
    pub(crate) async fn start(stage: &Stage) -> Result<Self> {
        let (begun, in_place) = (Instant::now(), std::io::stderr().is_terminal());
        let pool = stage.application.pool(1).await?;
        Ok(Self {
            pool,
            to_do: stage.to_do(),
            moved: 0,
            begun,
            told: begun,
            in_place,
        })
    }

    /// Looks at the ledger and tells what it says.
    pub(crate) async fn look(&mut self, traffic: &Traffic) -> Result<()> {
        self.moved = moved(&self.pool).await?;
        if self.in_place || self.told.elapsed() > LINE_EVERY {
            self.told = Instant::now();
            self.tell(traffic);
        }
        Ok(())
    }

    pub(crate) fn moved(&self) -> usize {
        self.moved
    }

    pub(crate) fn is_half_way(&self) -> bool {
        self.moved * 2 >= self.to_do
    }

    /// Tells the last line and returns the seconds since the start.
    pub(crate) async fn finish(&mut self, traffic: &Traffic) -> Result<f64> {
        let seconds = self.begun.elapsed().as_secs_f64();
        self.moved = moved(&self.pool).await?;
        self.tell(traffic);
        if self.in_place {
            let _ = writeln!(std::io::stderr());
        }
        Ok(seconds)
    }

    fn tell(&self, traffic: &Traffic) {
        let line = self.line(traffic.reads());
        let (start, end) = if self.in_place {
            ("\r", "\x1b[K")
        } else {
            ("", "\n")
        };
        let mut stderr = std::io::stderr();
        let _ = write!(stderr, "{start}{line}{end}");
        let _ = stderr.flush();
    }

    #[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
    fn line(&self, (reads, broken): (u64, u64)) -> String {
        let Self { moved, to_do, .. } = self;
        let seconds = self.begun.elapsed().as_secs_f64();
        let rate = *moved as f64 / seconds.max(0.001);
        format!(
            "{moved} of {to_do} moved · {rate:.0} per second · {reads} reads, {broken} broken · {seconds:.0} s"
        )
    }
}

/// The sum of the consumers' counters; 0 before the feeder has made the ledger.
pub(crate) async fn moved(pool: &PgPool) -> Result<usize> {
    let exists = sqlx::query_scalar("SELECT to_regclass('bucket_brigade.counters') IS NOT NULL");
    if !exists.fetch_one(pool).await? {
        return Ok(0);
    }
    let sum = "SELECT coalesce(sum(moved), 0)::bigint FROM bucket_brigade.counters";
    let moved: i64 = sqlx::query_scalar(sum).fetch_one(pool).await?;
    Ok(usize::try_from(moved)?)
}
