//! The table and the ledger as a consumer reaches them.

use std::collections::{HashMap, HashSet};

use async_trait::async_trait;
use bucket_brigade_common::catalog::{
    Catalog, CatalogError, Failure, Move, PoisonRecord, Row, Settlement,
};
use bucket_brigade_common::row_id::RowId;

use super::Client;
use crate::fate::Fate;
use crate::sabotage::Sabotage;
use crate::shared::Things;

impl Client {
    /// A statement: all of it, or nothing, and perhaps without an answer.
    pub(super) async fn statement<T>(
        &self,
        name: &'static str,
        act: impl FnOnce(&mut Things) -> T,
    ) -> Result<T, CatalogError> {
        self.call(name, unavailable, |things| Ok(act(things))).await
    }
}

fn unavailable(fate: Fate) -> CatalogError {
    CatalogError::Unavailable(format!("injected: {fate:?}"))
}

/// The moves whose rows nobody has locked; an error when the database refuses one of them.
fn allowed(things: &mut Things, moves: &[Move]) -> Result<Vec<Move>, CatalogError> {
    let refused = things.weather.refused_row.clone();
    if moves
        .iter()
        .any(|one| refused.as_deref() == Some(one.id.as_str()))
    {
        return Err(CatalogError::Rejected {
            code: "23514".into(),
            message: "a constraint".into(),
        });
    }
    let percent = things.weather.locks;
    let mut free = moves.to_vec();
    free.retain(|_| !things.happens(percent));
    Ok(free)
}

fn set_paths(things: &mut Things, moves: &[Move]) -> HashSet<RowId> {
    let all = || moves.iter().map(|one| one.id.clone()).collect();
    match things.sabotage {
        Sabotage::NoCompareAndSet => {
            for one in moves {
                things.table.set(one);
            }
            all()
        }
        // The message is deleted, and the commit never comes.
        Sabotage::DeleteBeforeCommit => all(),
        Sabotage::None | Sabotage::UnconditionalCopy => things.table.commit(moves),
    }
}

#[async_trait]
impl Catalog for Client {
    async fn look(&self, ids: &[RowId]) -> Result<HashMap<RowId, Row>, CatalogError> {
        self.statement("look", |things| things.table.look(ids))
            .await
    }

    async fn commit(&self, moves: &[Move]) -> Result<HashSet<RowId>, CatalogError> {
        self.call("commit", unavailable, |things| {
            let free = allowed(things, moves)?;
            Ok(set_paths(things, &free))
        })
        .await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<(), CatalogError> {
        self.statement("settle", |things| things.table.settle(settlements))
            .await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<(), CatalogError> {
        self.statement("fail", |things| things.table.fail(failures))
            .await
    }

    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), CatalogError> {
        self.statement("poison", |things| things.table.record_poison(records))
            .await
    }
}
