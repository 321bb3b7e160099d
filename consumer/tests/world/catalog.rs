//! The rows of the world, and what is on record of them.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bucket_brigade_common::catalog::{
    Catalog, CatalogError, Failure, Move, PoisonRecord, Row, Settlement,
};
use bucket_brigade_common::row_id::RowId;

use super::{Fault, State, World};

impl World {
    /// Runs a statement under its fate: not at all, or with its answer lost.
    async fn statement<T>(&self, run: impl FnOnce(&mut State) -> T) -> Result<T, CatalogError> {
        let fate = self.fate().await;
        if fate == Fault::Before {
            return Err(CatalogError::Unavailable("fault".into()));
        }
        let answer = run(&mut self.lock());
        match fate {
            Fault::After => Err(CatalogError::Unavailable("the answer was lost".into())),
            _ => Ok(answer),
        }
    }
}

#[async_trait]
impl Catalog for World {
    async fn look(&self, ids: &[RowId]) -> Result<HashMap<RowId, Row>, CatalogError> {
        self.statement(|state| {
            let row = |id: &RowId| {
                let path = state.rows.get(id.as_str())?.clone();
                let failed_for_good = state.failed.contains(id.as_str());
                Some((
                    id.clone(),
                    Row {
                        path,
                        failed_for_good,
                    },
                ))
            };
            ids.iter().filter_map(row).collect()
        })
        .await
    }

    async fn commit(&self, moves: &[Move]) -> Result<HashSet<RowId>, CatalogError> {
        self.statement(|state| {
            let mut moved = HashSet::new();
            for one in moves {
                let id = one.id.as_str();
                if state.rows.get(id) != Some(&one.old_path) {
                    continue;
                }
                if !state.destination.contains_key(&one.destination_key) {
                    state
                        .violations
                        .push(format!("row {id}: committed without a copy"));
                }
                state.rows.insert(id.to_owned(), one.new_path.clone());
                state.moved.insert(id.to_owned());
                state.failed.remove(id);
                state.changed.remove(id);
                moved.insert(one.id.clone());
            }
            moved
        })
        .await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<(), CatalogError> {
        self.statement(|state| {
            for one in settlements {
                let id = one.id.as_str();
                state.failed.remove(id);
                if one.is_final && !state.moved.contains(id) {
                    state.changed.insert(id.to_owned());
                }
            }
        })
        .await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<(), CatalogError> {
        self.statement(|state| {
            for one in failures {
                let id = one.id.as_str();
                if state.rows.get(id) != Some(&one.path) {
                    continue;
                }
                state.moved.remove(id);
                state.changed.remove(id);
                state.failed.insert(id.to_owned());
            }
        })
        .await
    }

    async fn record_poison(&self, _: &[PoisonRecord]) -> Result<(), CatalogError> {
        self.statement(|_| ()).await
    }
}
