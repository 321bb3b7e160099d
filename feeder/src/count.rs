//! The rows in scope are counted beside the feeding: only the ETA needs them.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::throttle::Throttle;
use tokio::time::{Instant, sleep};

const RETRY_DELAY: Duration = Duration::from_secs(15);

/// Counts whatever earlier feeders have not, half of the time; the throttle holds it as it holds the feeding.
pub async fn count_scope(ledger: PostgresLedger, throttle: Arc<Throttle>) {
    let mut is_estimated = false;
    loop {
        throttle.wait_while_held().await;
        let began = Instant::now();
        match count_stretch(&ledger, &mut is_estimated).await {
            Ok(true) => return,
            Ok(false) => sleep(began.elapsed()).await,
            Err(error @ StatementError::Rejected { .. }) => {
                tracing::warn!(%error, "the rows in scope cannot be counted, so there is no ETA: {error}");
                return;
            }
            Err(error) => {
                tracing::info!(%error, "the rows in scope are not counted yet: {error}");
                sleep(RETRY_DELAY).await;
            }
        }
    }
}

/// A table of one stretch needs no estimate.
async fn count_stretch(
    ledger: &PostgresLedger,
    is_estimated: &mut bool,
) -> Result<bool, StatementError> {
    if ledger.count_scope_stretch().await? || ledger.count_scope_stretch().await? {
        return Ok(true);
    }
    if !*is_estimated {
        ledger.estimate_scope().await?;
        *is_estimated = true;
    }
    Ok(false)
}
