//! Heartbeats, and the limits that an operator sets.

use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::ledger::fleet_control::{FleetControl, FleetLimits, Heartbeat};
use bucket_brigade_common::ledger::move_ledger::StatementError;

use super::SimulatedClient;

#[async_trait]
impl FleetControl for SimulatedClient {
    async fn heartbeat(&self, _beat: &Heartbeat) -> Result<FleetLimits, StatementError> {
        self.run_statement("beat", |things| {
            things.change_fleet_limits();
            things.fleet_limits.clone()
        })
        .await
    }

    async fn deregister(&self) -> Result<(), StatementError> {
        self.run_statement("leave", |_| ()).await
    }

    async fn replica_lag(&self) -> Result<Option<Duration>, StatementError> {
        self.run_statement("lag", |_| None).await
    }
}
