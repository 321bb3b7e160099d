//! Users who look at pictures.

use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use super::Shift;
use crate::seed::{Kind, Row};

/// Looks at a random row's picture at each tick. A late tick is caught up with, so that the rate
/// holds over time.
pub(super) async fn read(mut shift: Shift, pause: Duration, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut ticks = tokio::time::interval(pause);
    let seeded = std::sync::Arc::clone(&shift.seeded);
    while shift.goes_on(&mut ticks).await {
        let Some(row) = random.choice(&seeded.rows) else {
            return;
        };
        if look(&shift, row).await.is_err() {
            shift.journal.read_failed();
        }
    }
}

async fn look(shift: &Shift, row: &Row) -> Result<()> {
    let application = &shift.application;
    let Some(path) = application.path_of(&shift.pool, &row.id).await? else {
        // The user deleted it.
        return Ok(());
    };
    let never_was = row.kind == Kind::Missing && path == row.path;
    let found = application.get_object(&application.locate(&path)).await?;
    shift.journal.read();
    match found {
        None if !never_was => shift
            .journal
            .broken(format!("row {}: {path:?} names no object", row.id)),
        Some(object) if !shift.journal.may_show(&row.id, &object.sha256) => {
            shift
                .journal
                .broken(format!("row {}: {path:?} shows another picture", row.id));
        }
        _ => {}
    }
    Ok(())
}
