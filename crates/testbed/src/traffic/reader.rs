//! Users who look at pictures.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use super::TrafficContext;
use crate::seed::{SeededRow, SeededRowKind};

/// Looks at a random row's picture at each tick. A late tick is caught up with, so that the rate
/// holds over time.
pub(super) async fn run_reader(mut shift: TrafficContext, pause: Duration, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut ticks = tokio::time::interval(pause);
    let seeded = std::sync::Arc::clone(&shift.seeded);
    while shift.wait_for_tick(&mut ticks).await {
        let Some(row) = random.choice(&seeded.rows) else {
            return;
        };
        if check_picture(&shift, row).await.is_err() {
            shift.journal.record_read_error();
        }
    }
}

async fn check_picture(shift: &TrafficContext, row: &SeededRow) -> Result<()> {
    let application = &shift.application;
    let Some(path) = application.read_path(&shift.pool, &row.id).await? else {
        // The user deleted it.
        return Ok(());
    };
    let never_was = row.kind == SeededRowKind::Missing && path == row.path;
    let found = application
        .get_object(&application.location_of(&path))
        .await?;
    shift.journal.record_read();
    match found {
        None if !never_was => shift
            .journal
            .record_broken_read(format!("row {}: {path:?} names no object", row.id)),
        Some(object) if !shift.journal.is_allowed_picture(&row.id, &object.sha256) => {
            shift
                .journal
                .record_broken_read(format!("row {}: {path:?} shows another picture", row.id));
        }
        _ => {}
    }
    Ok(())
}
