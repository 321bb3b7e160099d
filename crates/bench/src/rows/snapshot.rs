//! Commits a second once half a million rows have moved under a snapshot that stays open, as `pg_dump`'s does.

use anyhow::Result;

use super::Bench;
use crate::results::TargetBound;
use crate::rig::{BenchRig, WorkloadSpec};

const MOVED_BEFORE: u64 = 500_000;
const MEASURED: u64 = 50_000;
const ROUNDS: usize = 2;

pub(super) async fn measure(bench: &mut Bench) -> Result<()> {
    // A rollback has shut out what the stub sends.
    bench.rig.reset_tables().await?;
    let before = bench.scaled_rows(MOVED_BEFORE);
    let (mut held, mut free) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds.min(ROUNDS) {
        free.push(commit_rate(&mut bench.rig, before).await?);
        let mut snapshot = bench.rig.pool.begin().await?;
        sqlx::raw_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM bucket_brigade.run")
            .execute(&mut *snapshot)
            .await?;
        held.push(commit_rate(&mut bench.rig, before).await?);
        snapshot.rollback().await?;
    }
    let what = format!("commits/s after {before} moves, a snapshot held open");
    let (label, target) = (("snapshot", &*what, "/s"), TargetBound::AtLeast(0.9));
    let results = &mut bench.results;
    results.add_ratio(label, &held, ("without", &free), Some(target))?;
    Ok(())
}

/// By the messages that were deleted, each after its row's commit.
async fn commit_rate(rig: &mut BenchRig, before: u64) -> Result<f64> {
    let work = WorkloadSpec::of(before + MEASURED);
    let done = rig.consume_new_rows(work).await?;
    let deleted = done.counts.meter_for("DeleteMessageBatch");
    Ok(deleted.sustained_rate(before))
}
