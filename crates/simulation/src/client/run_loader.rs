//! The runs that a consumer finds in the ledger.

use std::sync::Arc;

use async_trait::async_trait;
use bucket_brigade_consumer::runs::{HomeRun, RunLoader, RunParts};

use super::SimulatedClient;
use crate::simulate::build_run_parts;

pub struct SimulatedLoader(Vec<Arc<SimulatedClient>>);

impl SimulatedLoader {
    pub fn new(runs: Vec<Arc<SimulatedClient>>) -> Self {
        Self(runs)
    }
}

#[async_trait]
impl RunLoader for SimulatedLoader {
    async fn load(&self, run: i64) -> Result<Option<Box<RunParts>>, String> {
        let Some(client) = self.0.iter().find(|client| client.run() == run) else {
            return Ok(None);
        };
        let loaded = client.run_statement("load", |_| ()).await;
        loaded.map_err(|error| error.to_string())?;
        Ok(Some(Box::new(build_run_parts(client))))
    }

    async fn home_run(&self, _from: i64) -> Result<Option<HomeRun>, String> {
        Ok(Some(HomeRun {
            run: self.0[0].run(),
            is_only: self.0.len() == 1,
        }))
    }

    async fn list_active_runs(&self) -> Vec<i64> {
        self.0.iter().map(|client| client.run()).collect()
    }
}
