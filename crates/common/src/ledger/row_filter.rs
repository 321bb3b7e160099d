//! `ROW_FILTER`: an expression of the operator's over a row's columns, made part of statements only after the
//! server has read it by itself.

use sqlx::postgres::{PgConnection, PgDatabaseError, PgPool, PgSeverity};

use super::errors::{is_permission_denied, is_unavailable};
use super::feed_index::explain;
use super::run::current_role;
use super::{ApplicationTable, ConnectionPurpose, LedgerError};

/// An expression that the server has read, and found to be one.
#[derive(Debug, Clone)]
pub(super) struct RowFilter(String);

/// The name of a subquery that the planner keeps only around what is volatile or returns sets.
const KEPT_SUBQUERY: &str = "bucket_brigade_row_filter";

const VOLATILE: &str = "calls a function that is volatile or returns a set: it must change nothing, and say the same of a row each time";

const SUBQUERY: &str = "holds a subquery: it may name columns of the row alone";

impl RowFilter {
    pub(super) fn text(&self) -> &str {
        &self.0
    }

    /// A comment at its end closes with the line.
    pub(super) fn sql(&self) -> String {
        format!("({}\n)", self.0)
    }
}

impl ConnectionPurpose {
    /// Others neither feed rows nor say which are in scope, and may have no right to the filter's columns.
    fn needs_filter(&self) -> bool {
        match self {
            Self::Feeder | Self::Plan => true,
            Self::Consumer => false,
            Self::Command(name) => name == "verify",
        }
    }
}

impl ApplicationTable {
    /// The same table with a filter, which is checked.
    pub(super) async fn with_filter(
        self,
        pool: &PgPool,
        purpose: &ConnectionPurpose,
        filter: Option<&str>,
    ) -> Result<Self, LedgerError> {
        let filter = match filter.filter(|_| purpose.needs_filter()) {
            Some(filter) => Some(check_filter(pool, &self, filter).await?),
            None => None,
        };
        Ok(Self { filter, ..self })
    }
}

/// Nothing is executed but what the planner computes in advance, in a transaction that may not write.
async fn check_filter(
    pool: &PgPool,
    table: &ApplicationTable,
    filter: &str,
) -> Result<RowFilter, LedgerError> {
    let mut transaction = pool.begin_with("BEGIN READ ONLY").await?;
    match find_problem(&mut transaction, &table.sql, filter).await {
        Ok(None) => Ok(RowFilter(filter.to_owned())),
        Ok(Some(problem)) => Err(refused(filter, problem)),
        Err(error) if is_permission_denied(&error) => {
            transaction.rollback().await?;
            Err(missing_right(pool, table, filter).await?)
        }
        Err(error) if is_unavailable(&error) && !asks_for_parameter(&error) => Err(error.into()),
        Err(sqlx::Error::Database(error)) => {
            let problem = format!("cannot be used: {}", error.message());
            Err(refused(filter, &problem))
        }
        Err(error) => Err(error.into()),
    }
}

/// What reads as an expression both without parentheses and within them is one, and only one: without them a
/// parenthesis too many is an error, and within them whatever is more than an expression.
async fn find_problem(
    connection: &mut PgConnection,
    table: &str,
    filter: &str,
) -> Result<Option<&'static str>, sqlx::Error> {
    let selected = explain(connection, &format!("SELECT {filter}\n FROM {table} t")).await?;
    let condition = format!("SELECT 1 FROM {table} t WHERE ({filter}\n)");
    explain(connection, &condition).await?;
    let is_subquery = |line: &String| {
        let line = line.trim_start();
        line.starts_with("SubPlan ") || line.starts_with("InitPlan ")
    };
    if selected.iter().any(is_subquery) {
        return Ok(Some(SUBQUERY));
    }
    let wrapped = format!(
        "SELECT FROM (SELECT ({filter}\n) AS is_wanted FROM {table} t) {KEPT_SUBQUERY} WHERE is_wanted"
    );
    let plan = explain(connection, &wrapped).await?;
    let is_kept = |line: &String| line.contains("Subquery Scan on") && line.contains(KEPT_SUBQUERY);
    Ok(plan.iter().any(is_kept).then_some(VOLATILE))
}

/// Whether the filter asks for a parameter: a violation of the protocol (08P01) that the session survives, which
/// an outage of that code, a pooler's, is not.
fn asks_for_parameter(error: &sqlx::Error) -> bool {
    let database = error.as_database_error();
    database
        .and_then(|error| error.try_downcast_ref::<PgDatabaseError>())
        .is_some_and(|error| error.code() == "08P01" && error.severity() == PgSeverity::Error)
}

fn refused(filter: &str, problem: &str) -> LedgerError {
    LedgerError::setting("ROW_FILTER", format!("'{filter}' {problem}"))
}

async fn missing_right(
    pool: &PgPool,
    table: &ApplicationTable,
    filter: &str,
) -> Result<LedgerError, sqlx::Error> {
    let (user, role) = current_role(pool).await?;
    Ok(LedgerError::NotAllowed {
        what: format!("read what ROW_FILTER names ({filter})"),
        sql: format!("GRANT SELECT ON {} TO {role};", table.sql),
        user,
    })
}
