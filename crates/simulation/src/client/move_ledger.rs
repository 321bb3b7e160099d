//! The table and the ledger as a consumer reaches them.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, CurrentRow, MoveFailure, MoveLedger, PendingMove, PoisonRecord, StatementError,
};
use bucket_brigade_common::row_id::RowId;

use super::SimulatedClient;
use crate::fault_rates::CallOutcome;
use crate::sabotage::Sabotage;
use crate::shared_world::WorldState;

impl SimulatedClient {
    /// A statement: all of it, or nothing, and perhaps without an answer.
    pub(super) async fn run_statement<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut WorldState) -> T,
    ) -> Result<T, StatementError> {
        self.perform_call(name, unavailable_error, |things| Ok(act(things)))
            .await
    }
}

fn unavailable_error(outcome: CallOutcome) -> StatementError {
    StatementError::Unavailable(format!("injected: {outcome:?}"))
}

/// The moves whose rows are not locked; an error when the database refuses one of them.
fn unlocked_moves(
    things: &mut WorldState,
    moves: &[&PendingMove],
) -> Result<Vec<PendingMove>, StatementError> {
    let refused = things.fault_rates.refused_row.clone();
    if moves
        .iter()
        .any(|one| refused.as_deref() == Some(one.id.as_str()))
    {
        return Err(StatementError::Rejected {
            code: "23514".into(),
            message: "a constraint".into(),
        });
    }
    let percent = things.fault_rates.locked_rows;
    let mut free: Vec<PendingMove> = moves.iter().map(|one| (*one).clone()).collect();
    free.retain(|_| !things.roll_fault(percent));
    Ok(free)
}

fn set_paths(things: &mut WorldState, moves: &[PendingMove]) -> HashSet<RowId> {
    let all = || moves.iter().map(|one| one.id.clone()).collect();
    match things.sabotage {
        Sabotage::NoCompareAndSet => {
            for one in moves {
                things.table.set_path(one);
            }
            all()
        }
        // The message is deleted, and the commit never comes.
        Sabotage::DeleteBeforeCommit => all(),
        _ => things.table.commit(moves),
    }
}

#[async_trait]
impl MoveLedger for SimulatedClient {
    async fn read_rows(&self, ids: &[RowId]) -> Result<HashMap<RowId, CurrentRow>, StatementError> {
        self.run_statement("look", |things| things.table.read_rows(ids))
            .await
    }

    async fn commit(&self, moves: &[&PendingMove]) -> Result<HashSet<RowId>, StatementError> {
        self.perform_call("commit", unavailable_error, |things| {
            let free = unlocked_moves(things, moves)?;
            Ok(set_paths(things, &free))
        })
        .await
    }

    async fn record_changed_rows(&self, settlements: &[ChangedRow]) -> Result<(), StatementError> {
        self.run_statement("settle", |things| things.table.settle_rows(settlements))
            .await
    }

    async fn record_failures(&self, failures: &[MoveFailure]) -> Result<(), StatementError> {
        self.run_statement("fail", |things| things.table.record_failures(failures))
            .await
    }

    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), StatementError> {
        self.run_statement("poison", |things| things.table.record_poison(records))
            .await
    }
}
