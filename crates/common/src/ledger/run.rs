//! One run: found by its settings, so that starting the same migration again continues it.

use std::time::Duration;

use sqlx::postgres::PgPool;

use super::errors::within_limit;
use super::first_start::{SecondRun, ensure_no_rival, insert_run};
use super::run_options::{OptionMatch, RunOptions};
use super::runs::{RunRow, RunSpec, SEVERAL_RUNS, list_runs, no_run};
use super::{
    ApplicationTable, ConnectionPurpose, DatabasePool, LedgerError, PostgresLedger, TableAccess,
    connection, lock, schema,
};
use crate::sql::quote_identifier;

/// Catalogs and single rows take no time: a connection that has fallen silent is given up, and another tried.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// A step takes the time that it takes on a large ledger: given up in the middle of an index it would begin anew, for
/// ever.
const UPGRADE_TIMEOUT: Duration = Duration::from_hours(1);

pub(super) async fn within<T>(
    pool: &DatabasePool,
    limit: Duration,
    what: &'static str,
    opening: impl Future<Output = Result<T, LedgerError>>,
) -> Result<T, LedgerError> {
    let opened = Box::pin(within_limit(limit, what, opening)).await;
    Box::pin(connection::name_pool_timeout(pool, opened)).await
}

pub(super) const OPENING_RUN: &str = "opening the run";

pub(super) const OPENING_LEDGER: &str = "opening the ledger";

impl PostgresLedger {
    /// Opens the run, creating ledger and run where they are missing: the feeder's way.
    pub async fn open(
        pool: DatabasePool,
        spec: &RunSpec,
        worker: &str,
        second: SecondRun,
    ) -> Result<Self, LedgerError> {
        let purpose = ConnectionPurpose::Feeder;
        let discover = discover_table(&pool, spec, &purpose, TableAccess::Read);
        let table = within(
            &pool,
            OPEN_TIMEOUT,
            "reading the table's definition",
            discover,
        )
        .await?;
        let is_behind = within(
            &pool,
            OPEN_TIMEOUT,
            OPENING_LEDGER,
            schema::is_behind(&pool),
        )
        .await?;
        let limit = if is_behind {
            tracing::info!("bringing the ledger up to date: on a large one an index takes minutes");
            UPGRADE_TIMEOUT
        } else {
            OPEN_TIMEOUT
        };
        within(
            &pool,
            limit,
            "bringing the ledger up to date",
            prepare_schema(&pool),
        )
        .await?;
        let run = within(&pool, OPEN_TIMEOUT, OPENING_RUN, async {
            match find_run_row(&pool, spec, &table.sql, OptionMatch::Exact).await? {
                Some(run) => Ok(run),
                None => insert_run(&pool, spec, &table, second).await,
            }
        });
        let run = run.await?;
        let ledger = Self::new(pool.clone(), &run, worker, spec.rule.clone(), table)?;
        // Paused it feeds nothing.
        if !run.is_paused {
            ensure_no_rival(&pool, run.id).await?;
        }
        Ok(ledger)
    }

    /// Finds the run that a feeder opened: the consumer's way. None when there is none yet.
    pub async fn find_run(
        pool: DatabasePool,
        spec: &RunSpec,
        worker: &str,
    ) -> Result<Option<Self>, LedgerError> {
        let purpose = ConnectionPurpose::Consumer;
        let access = TableAccess::Update;
        let find = Self::find_with_access(pool.clone(), spec, worker, &purpose, access);
        within(&pool, OPEN_TIMEOUT, OPENING_RUN, find).await
    }

    /// The same for an operator's command, which cannot wait for a feeder to come.
    pub async fn open_existing(
        pool: DatabasePool,
        spec: &RunSpec,
        worker: &str,
        purpose: &ConnectionPurpose,
        access: TableAccess,
    ) -> Result<Self, LedgerError> {
        let find = Self::find_with_access(pool.clone(), spec, worker, purpose, access);
        let found = within(&pool, OPEN_TIMEOUT, OPENING_RUN, find).await?;
        match found {
            Some(ledger) => Ok(ledger),
            None => Err(no_run_error(&pool).await?),
        }
    }

    async fn find_with_access(
        pool: DatabasePool,
        spec: &RunSpec,
        worker: &str,
        purpose: &ConnectionPurpose,
        access: TableAccess,
    ) -> Result<Option<Self>, LedgerError> {
        connection::prepare_pool(&pool, purpose, access).await?;
        if access == TableAccess::Update {
            lock::ensure_writable(&mut *pool.acquire().await?).await?;
        }
        let table = ApplicationTable::discover(&pool, &spec.table, access).await?;
        if !schema::is_ready(&pool).await? {
            return Ok(None);
        }
        // A plan finds what a feeder of these settings would.
        let matching = match purpose {
            ConnectionPurpose::Plan => OptionMatch::Exact,
            _ => OptionMatch::Given,
        };
        let Some(run) = find_run_row(&pool, spec, &table.sql, matching).await? else {
            if *purpose == ConnectionPurpose::Consumer {
                refuse_other_settings(&pool, spec, &table).await?;
            }
            return Ok(None);
        };
        let filter = run.options()?.row_filter;
        let table = table.with_filter(&pool, purpose, filter.as_deref()).await?;
        Self::new(pool, &run, worker, spec.rule.clone(), table).map(Some)
    }
}

/// A consumer would wait for ever for the run that a slip in a setting describes.
async fn refuse_other_settings(
    pool: &PgPool,
    spec: &RunSpec,
    table: &ApplicationTable,
) -> Result<(), LedgerError> {
    let runs = list_runs(pool).await?;
    let is_meant = |run: &&RunRow| match &spec.name {
        Some(name) => run.is_named(name),
        None => !run.is_finished && run.is_of_column(spec, table),
    };
    let Some(run) = runs.iter().rfind(is_meant) else {
        return Ok(());
    };
    let differences = run.differences(spec, &table.sql, OptionMatch::Given)?;
    Err(LedgerError::RunDiffers {
        name: run.name.clone(),
        differences: differences.join("\n  "),
    })
}

async fn prepare_schema(pool: &PgPool) -> Result<(), LedgerError> {
    // Before the first lock of all, that of the ledger's migrations.
    let mut session = pool.acquire().await?.detach();
    lock::ensure_own_session(&mut session, pool).await?;
    schema::ensure_schema(pool, session).await
}

pub(super) async fn no_run_error(pool: &PgPool) -> Result<LedgerError, LedgerError> {
    let runs = if schema::is_ready(pool).await? {
        list_runs(pool).await?
    } else {
        Vec::new()
    };
    Ok(no_run(" of this migration", &runs))
}

/// Finds the table and checks it, without a ledger.
pub async fn discover_table(
    pool: &DatabasePool,
    spec: &RunSpec,
    purpose: &ConnectionPurpose,
    access: TableAccess,
) -> Result<ApplicationTable, LedgerError> {
    connection::prepare_pool(pool, purpose, access).await?;
    let table = ApplicationTable::discover(pool, &spec.table, access).await?;
    let filter = spec.options.row_filter.as_deref();
    table.with_filter(pool, purpose, filter).await
}

/// The run with these settings, of the table `table`, quoted.
///
/// # Errors
/// [`LedgerError::NoRun`] where several have them, which differ in options that are not given.
pub(super) async fn find_run_row(
    pool: &PgPool,
    spec: &RunSpec,
    table: &str,
    matching: OptionMatch,
) -> Result<Option<RunRow>, LedgerError> {
    let runs = list_runs(pool).await?;
    let mut found = Vec::new();
    for run in &runs {
        if run.differences(spec, table, matching)?.is_empty() {
            found.push(run);
        }
    }
    if found.is_empty() && matching == OptionMatch::Given {
        ensure_no_other_options(&runs, spec, table)?;
    }
    let is_named = |run: &&&RunRow| spec.name.as_ref().is_none_or(|name| run.is_named(name));
    match (&*found, found.iter().find(is_named)) {
        ([], _) => Ok(None),
        ([run], Some(_)) => Ok(Some((*run).clone())),
        (_, Some(run)) if spec.name.is_some() => Ok(Some((*run).clone())),
        (_, Some(_)) => Err(no_run(SEVERAL_RUNS, &runs)),
        ([run, ..], None) => Err(other_name_error(&runs, spec, run)),
    }
}

fn other_name_error(runs: &[RunRow], spec: &RunSpec, run: &RunRow) -> LedgerError {
    let name = spec.name.as_deref().unwrap_or_default();
    let is_there = runs.iter().any(|run| run.is_named(name));
    let named = if is_there {
        format!("run '{name}' has other settings")
    } else {
        format!("there is no run '{name}'")
    };
    let problem = format!(
        "{named}; these settings are those of run '{}': name that one, or leave either out (settings come from flags, the environment and .env)",
        run.name
    );
    LedgerError::setting("RUN_NAME", problem)
}

/// A run that differs in nothing but its options is the one that is meant.
fn ensure_no_other_options(
    runs: &[RunRow],
    spec: &RunSpec,
    table: &str,
) -> Result<(), LedgerError> {
    let plain = RunSpec {
        options: RunOptions::default(),
        ..spec.clone()
    };
    for run in runs {
        if run
            .differences(&plain, table, OptionMatch::Given)?
            .is_empty()
        {
            run.options()?
                .ensure_given(&spec.options, Some(&run.name))?;
        }
    }
    Ok(())
}

/// The role we are logged in as, and the same quoted.
pub(super) async fn current_role(pool: &PgPool) -> Result<(String, String), sqlx::Error> {
    let query = sqlx::query_scalar("SELECT current_user::text");
    let user: String = query.fetch_one(pool).await?;
    let role = quote_identifier(&user);
    Ok((user, role))
}

/// The consumer's role may be another than the feeder's, which owns the ledger.
pub(super) async fn ledger_permission_error(pool: &PgPool) -> Result<LedgerError, LedgerError> {
    let (user, role) = current_role(pool).await?;
    Ok(LedgerError::NotAllowed {
        what: "use the ledger (schema 'bucket_brigade')".into(),
        sql: format!(
            "GRANT USAGE ON SCHEMA bucket_brigade TO {role};\nGRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA bucket_brigade TO {role};"
        ),
        user,
    })
}
