//! The ledger: tables of our own, schema `bucket_brigade`, in the application's database.
//!
//! The application's table is read by keyset and only its path column is ever written.

mod changes;
mod commit;
mod conditions;
mod connection;
mod counters;
mod error_context;
mod errors;
mod feed;
mod feed_index;
pub mod feed_source;
mod fence;
mod first_start;
pub mod fleet_control;
mod heap_order;
mod heartbeat;
mod id_columns;
mod ledger_run;
mod lock;
mod lock_patience;
pub mod move_ledger;
mod path_sample;
mod row_filter;
mod run;
mod run_options;
mod runs;
mod schema;
mod scope;
mod stretch;
mod table;
mod table_id;
mod unreadable;
mod update_effects;
pub mod worker_state;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgPool;
use tokio::time::timeout;

pub use commit::{
    FIRE_DEFERRED, ID_REWRITTEN, PATH_REWRITTEN, later_path_check_sql, new_rules_check,
    path_update_error, path_updates_error, rehearsal_sql, stored_row_check,
};
pub use conditions::{LocalTime, evaluate_condition, local_time};
pub use connection::ConnectionPurpose;
pub(crate) use errors::NO_CONNECTION;
pub use errors::{
    LOCK_NOT_AVAILABLE, LedgerError, STATEMENT_CANCELLED, is_row_lock_timeout,
    is_statement_timeout, is_unavailable, statement_error,
};
pub use feed_index::{
    create_concurrently_sql, create_index_sql, find_index_with, find_partial_index, has_path_index,
};
pub use fence::{COPIES, IS_REQUEST_ALIVE, REMOVAL_WINDOW, THIS_RUN, in_removal_sql};
pub use first_start::{SecondRun, check_first_start, ensure_no_rival};
pub use heap_order::{HeapAccess, find_random_ids};
pub use heartbeat::{check_replica_lag, pause_description};
pub use id_columns::IdColumns;
pub use ledger_run::LedgerRun;
pub use lock::{AdvisoryLock, LockClaims, LockHolder, LockSession, holds_locks_sql};
use path_sample::copyable_paths_sql;
pub use path_sample::sample_paths;
pub use run::discover_table;
pub use run_options::RunOptions;
pub use runs::{
    RunRow, RunSelection, RunSpec, connect_to_ledger, find_selected_run, list_runs, list_runs_in,
    no_run, only_run, require_selected_run,
};
pub use table::{
    ApplicationTable, TABLE_NAME_PROBLEM, TableAccess, TableSpec, ensure_all_rows_visible,
};
pub use table_id::find_id_columns;

use self::counters::CounterRows;
use self::errors::batch_error;
use self::feed_index::FeedIndex;
use self::stretch::StretchLength;
pub use crate::database::{DatabasePool, create_pool};
use crate::ledger::move_ledger::{
    ChangedRow, CurrentRow, MoveFailure, MoveLedger, PendingMove, PoisonRecord, StatementError,
};
use crate::message::RunKey;
use crate::path_rule::PathRule;
use crate::queue::MAX_BATCH_ENTRIES;
use crate::row_id::{IdType, RowId};
use crate::throttle::Throttle;

/// A statement without a result by then is given up; its effect is found by reading the rows.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);

/// The longest id that the ledger's indexes hold beside the run's number, however little it compresses: a third of
/// a page, less headers. Source: `BTMaxItemSize` in Postgres's `nbtree.h`.
pub const MAX_ID_BYTES: usize = 2684;

/// One run's ledger, and the table it is about.
#[derive(Debug, Clone)]
pub struct PostgresLedger {
    pool: PgPool,
    /// Keeps the pool's password up to date as long as it lives.
    database: DatabasePool,
    run_id: i64,
    opened_at: i64,
    worker: Arc<str>,
    rule: PathRule,
    options: Arc<RunOptions>,
    table: ApplicationTable,
    statements: Arc<TableStatements>,
    stretch_length: Arc<StretchLength>,
    /// Whether that of replicas is read as Aurora has it.
    has_aurora_lag: Arc<AtomicBool>,
    counter_rows: Arc<CounterRows>,
    feed_index: Arc<FeedIndex>,
    /// Whether triggers have come that fire after an update.
    new_triggers: Arc<AtomicBool>,
    lock_patience: Arc<lock_patience::LockPatience>,
    throttle: Option<Arc<Throttle>>,
}

/// The statements of a message's way that name the application's table, written once.
#[derive(Debug)]
struct TableStatements {
    read_rows: Arc<str>,
    commit: Arc<str>,
    check_later: Arc<str>,
    insert_changes: Arc<str>,
    insert_failures: Arc<str>,
}

impl PostgresLedger {
    /// The ledger of an existing run. `worker` names this process in the evidence and the counters.
    fn new(
        pool: DatabasePool,
        run: &RunRow,
        worker: &str,
        rule: PathRule,
        table: ApplicationTable,
    ) -> Result<Self, LedgerError> {
        let options = run.options()?;
        // They may not be given.
        let rule = options
            .complete_rule(rule)
            .map_err(|error| LedgerError::IncompatibleLedger(error.to_string()))?;
        let statements = TableStatements {
            read_rows: commit::read_rows_sql(&table).into(),
            commit: commit::commit_sql(&table, &rule, run.opened_at).into(),
            check_later: commit::later_path_check_sql(&table).into(),
            insert_changes: changes::insert_changes_sql(&table, run.opened_at).into(),
            insert_failures: changes::insert_failures_sql(&table, run.opened_at).into(),
        };
        Ok(Self {
            pool: PgPool::clone(&pool),
            database: pool,
            run_id: run.id,
            opened_at: run.opened_at,
            worker: worker.into(),
            rule,
            options: Arc::new(options),
            table,
            statements: Arc::new(statements),
            stretch_length: Arc::default(),
            has_aurora_lag: Arc::default(),
            counter_rows: Arc::default(),
            feed_index: Arc::default(),
            new_triggers: Arc::default(),
            lock_patience: Arc::default(),
            throttle: None,
        })
    }

    /// What reads page after page obeys this: a page counts as a batch of rows.
    #[must_use]
    pub fn with_throttle(self, throttle: Arc<Throttle>) -> Self {
        Self {
            throttle: Some(throttle),
            ..self
        }
    }

    async fn wait_for_page(&self) {
        if let Some(throttle) = &self.throttle {
            throttle.acquire_rows(MAX_BATCH_ENTRIES).await;
        }
    }

    /// The type of the table's ids.
    pub fn id_type(&self) -> IdType {
        self.table.id.id_type()
    }

    /// The table as `schema.table`.
    pub fn table_name(&self) -> String {
        self.table.name.clone()
    }

    pub fn run_id(&self) -> i64 {
        self.run_id
    }

    /// What its messages carry.
    pub fn run_key(&self) -> RunKey {
        RunKey::new(self.run_id, self.opened_at)
    }

    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// The same with what connections log in by.
    pub fn database(&self) -> &DatabasePool {
        &self.database
    }

    pub fn table(&self) -> &ApplicationTable {
        &self.table
    }

    pub fn rule(&self) -> &PathRule {
        &self.rule
    }

    /// As the feeder wrote them.
    pub fn options(&self) -> &RunOptions {
        &self.options
    }

    /// The name of this process in the evidence.
    pub fn worker(&self) -> &str {
        &self.worker
    }
}

/// Runs a statement under [`STATEMENT_TIMEOUT`] and sorts its error.
pub async fn with_timeout<T>(
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StatementError> {
    with_timeout_or_else(statement, |error| Err(statement_error(&error))).await
}

/// The same for a statement about this many rows.
async fn with_batch_timeout<T>(
    rows: usize,
    statement: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StatementError> {
    with_timeout_or_else(statement, |error| Err(batch_error(&error, rows))).await
}

/// The same where the caller sorts the error otherwise, or makes a result of it.
pub async fn with_timeout_or_else<T, E>(
    statement: impl Future<Output = Result<T, E>>,
    handle: impl FnOnce(E) -> Result<T, StatementError>,
) -> Result<T, StatementError> {
    match timeout(STATEMENT_TIMEOUT, statement).await {
        Ok(result) => result.or_else(handle),
        Err(_) => Err(no_response()),
    }
}

pub async fn before_timeout<T>(statement: impl Future<Output = T>) -> Option<T> {
    timeout(STATEMENT_TIMEOUT, statement).await.ok()
}

fn no_response() -> StatementError {
    StatementError::Unavailable(format!("no response within {STATEMENT_TIMEOUT:?}"))
}

#[async_trait]
impl MoveLedger for PostgresLedger {
    async fn read_rows(&self, ids: &[RowId]) -> Result<HashMap<RowId, CurrentRow>, StatementError> {
        let found = with_batch_timeout(ids.len(), self.fetch_rows(ids)).await?;
        let count = found.len();
        let rows: HashMap<RowId, CurrentRow> = found.into_iter().collect();
        if rows.len() < count {
            // It was unique when the run was taken on.
            let (code, message) = ("IdNotUnique".into(), "several rows have the id".into());
            return Err(StatementError::Rejected { code, message });
        }
        if rows.len() < ids.len() {
            self.ensure_none_hidden().await?;
        }
        Ok(rows)
    }

    async fn list_sample_paths(&self) -> Result<Vec<String>, StatementError> {
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(copyable_paths_sql(&self.table)));
        let query = query.bind(self.run_id).bind(self.rule.old_prefix());
        with_timeout(query.fetch_all(&self.pool)).await
    }

    async fn commit(&self, moves: &[&PendingMove]) -> Result<HashSet<RowId>, StatementError> {
        self.commit_batch(moves).await
    }

    async fn record_changed_rows(&self, settlements: &[ChangedRow]) -> Result<(), StatementError> {
        with_batch_timeout(settlements.len(), self.write_changed_rows(settlements)).await
    }

    async fn record_failures(&self, failures: &[MoveFailure]) -> Result<(), StatementError> {
        self.record_failures_in_full(failures).await
    }

    async fn record_poison(&self, records: &[PoisonRecord]) -> Result<(), StatementError> {
        with_batch_timeout(records.len(), self.write_poison(records)).await
    }
}
