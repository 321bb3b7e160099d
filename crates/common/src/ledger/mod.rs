//! The ledger: tables of our own, schema `bucket_brigade`, in the application's database.
//!
//! The application's table is read by keyset and only its path column is ever written.

mod changes;
mod commit;
mod control;
mod counters;
mod errors;
mod failures;
mod feed;
mod moved;
mod naming;
mod newest;
mod removals;
mod report;
mod rollback;
mod run;
mod schema;
mod status;
mod steer;
mod survey;
mod table;
mod verification;
mod verify;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

pub use errors::LedgerError;
pub use failures::FailedRow;
pub use moved::{MovedRow, SourceState};
pub use naming::Namer;
pub use removals::{Eligible, Ending, Removal};
pub use report::ReportLine;
pub use rollback::{Selection, Undo};
pub use run::{FeederLock, RunSpec};
pub use status::{CodeCount, RunOverview, Worker};
pub use steer::Limits;
pub use survey::{Index, RowCounts, Server, Survey};
pub use table::{Access, Table, TableSpec};
pub use verification::{
    Finding, Mismatch, TableRow, Verification, VerificationNumbers, VerificationSpec,
};

use crate::catalog::{Catalog, CatalogError, Failure, Move, PoisonRecord, Row, Settlement};
use crate::path_rule::PathRule;
use crate::row_id::{IdType, RowId};
use errors::catalog_error;

/// A statement that has not answered by then is given up; its effect is found out by looking.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

const SOME_MOVE: &str = "SELECT old_path FROM bucket_brigade.moves WHERE run_id = $1 LIMIT 1";

/// One run's ledger, and the table it is about.
#[derive(Debug, Clone)]
pub struct Ledger {
    pool: PgPool,
    run_id: i64,
    worker: Arc<str>,
    rule: PathRule,
    table: Table,
    statements: Arc<Statements>,
}

/// The statements that name the application's table, written once.
#[derive(Debug)]
struct Statements {
    look: Arc<str>,
    commit: Arc<str>,
    fail: Arc<str>,
    first_page: Arc<str>,
    page_after: Arc<str>,
    count: Arc<str>,
    anything_left: Arc<str>,
    settle_stale: Arc<str>,
}

/// A pool of at most `connections`, made without connecting yet.
///
/// Consumers share the server's `max_connections` with the application: two or three each suffice.
pub fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .connect_lazy_with(options)
}

impl Ledger {
    /// The ledger of an existing run. `worker` names this process in the evidence and the counters.
    fn new(pool: PgPool, run_id: i64, worker: &str, rule: PathRule, table: Table) -> Self {
        let statements = Statements {
            look: commit::look_sql(&table).into(),
            commit: commit::commit_sql(&table).into(),
            fail: changes::fail_sql(&table).into(),
            first_page: feed::page_sql(&table, true).into(),
            page_after: feed::page_sql(&table, false).into(),
            count: feed::count_sql(&table).into(),
            anything_left: feed::anything_left_sql(&table).into(),
            settle_stale: feed::settle_stale_sql(&table).into(),
        };
        Self {
            pool,
            run_id,
            worker: worker.into(),
            rule,
            table,
            statements: Arc::new(statements),
        }
    }

    /// The type of the table's ids.
    pub fn id_type(&self) -> IdType {
        self.table.id_type
    }

    /// The table as `schema.table`.
    pub fn table_name(&self) -> String {
        self.table.name.to_string()
    }

    /// The old path of any row that was moved.
    ///
    /// # Errors
    /// [`LedgerError::Database`]
    pub async fn some_moved_path(&self) -> Result<Option<String>, LedgerError> {
        let query = sqlx::query_scalar(SOME_MOVE).bind(self.run_id);
        Ok(query.fetch_optional(&self.pool).await?)
    }

    /// The run's number in the ledger.
    pub fn run_id(&self) -> i64 {
        self.run_id
    }
}

/// Runs a statement under [`STATEMENT_TIMEOUT`] and sorts its error.
async fn within<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, CatalogError> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, statement).await {
        Ok(answer) => answer.map_err(|error| catalog_error(&error)),
        Err(_) => Err(CatalogError::Unavailable(format!(
            "no answer within {STATEMENT_TIMEOUT:?}"
        ))),
    }
}

/// Sorts the error of a statement that may take its time: one that reads all moves, or the whole table.
async fn patiently<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, CatalogError> {
    statement.await.map_err(|error| catalog_error(&error))
}

#[async_trait]
impl Catalog for Ledger {
    async fn look(&self, ids: &[RowId]) -> Result<HashMap<RowId, Row>, CatalogError> {
        within(self.look_rows(ids)).await
    }

    async fn commit(&self, moves: &[Move]) -> Result<HashSet<RowId>, CatalogError> {
        within(self.commit_moves(moves)).await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<(), CatalogError> {
        within(self.write_settlements(settlements)).await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<(), CatalogError> {
        within(self.write_failures(failures)).await
    }

    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), CatalogError> {
        within(self.write_poison(records)).await
    }
}
