//! What can be wrong with the database before the first row is touched, and how its errors at run
//! time are sorted.

use thiserror::Error;

use crate::exit;
use crate::move_ledger::StatementError;
use crate::preflight::TransientError;

/// Why a run cannot be opened. Each names its culprit and, where there is one, the mend.
#[derive(Debug, Error)]
pub enum LedgerError {
    /// The server does not answer.
    #[error("cannot connect to the database (DATABASE_URL or PGHOST, PGUSER, …): {0}")]
    Unreachable(String),
    /// The server answers, and lets us not in: the password, the database's name, TLS.
    #[error("cannot connect to the database (DATABASE_URL or PGHOST, PGUSER, …): {0}")]
    LoginRefused(String),
    /// No such table.
    #[error("IMAGES_TABLE: there is no table '{table}'{hint}")]
    NoSuchTable {
        /// The table as the setting names it.
        table: String,
        /// Tables with a similar name, or nothing.
        hint: String,
    },
    /// A view, a sequence, a foreign table.
    #[error("IMAGES_TABLE: '{table}' is {kind}, not a table")]
    NotATable {
        /// The relation.
        table: String,
        /// What it is instead.
        kind: String,
    },
    /// No such column.
    #[error("{setting}: table '{table}' has no column '{column}' (it has {columns})")]
    NoSuchColumn {
        /// The setting that names the column.
        setting: &'static str,
        /// The table.
        table: String,
        /// The missing column.
        column: String,
        /// The columns it has.
        columns: String,
    },
    /// The id alone does not name one row.
    #[error(
        "ID_COLUMN: '{column}' of table '{table}' does not identify a row: it needs a primary key or a unique index on this column alone (composite keys are not supported)"
    )]
    IdNotUnique {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// Rows without an id would never be found.
    #[error("ID_COLUMN: '{column}' of table '{table}' may be null: it must be declared NOT NULL")]
    IdNullable {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// Not one of the supported types.
    #[error("{setting}: '{column}' of table '{table}' is of type {found}, supported: {supported}")]
    UnsupportedType {
        /// The setting that names the column.
        setting: &'static str,
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// Its type.
        found: String,
        /// What it may be.
        supported: &'static str,
    },
    /// A generated column cannot be set.
    #[error("PATH_COLUMN: '{column}' of table '{table}' is a generated column and cannot be set")]
    PathGenerated {
        /// The table.
        table: String,
        /// The column.
        column: String,
    },
    /// A right is missing; the statement grants it.
    #[error(
        "the database user '{user}' may not {what}. Have a database administrator run:\n\n{sql}\n"
    )]
    NotAllowed {
        /// The role we are logged in as.
        user: String,
        /// What it may not do.
        what: String,
        /// What grants it.
        sql: String,
    },
    /// The ledger was made by another version of this software.
    #[error("the ledger in schema bucket_brigade does not fit this version: {0}")]
    IncompatibleLedger(String),
    /// No run has these settings.
    #[error(
        "there is no run of this migration (table, columns, prefixes and buckets name it){hint}"
    )]
    NoRun {
        /// The runs there are, or what makes one.
        hint: String,
    },
    /// Another feeder of the same run holds the lock.
    #[error("another feeder of this run is at work (run {0}): only one may feed at a time")]
    AnotherFeeder(i64),
    /// Anything else the database said.
    #[error("the database failed while the run was opened: {0}")]
    Database(#[from] sqlx::Error),
}

impl LedgerError {
    /// The exit code that tells this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable(_) | Self::LoginRefused(_) | Self::Database(_) => exit::UNAVAILABLE,
            Self::NotAllowed { .. } => exit::NO_PERMISSION,
            Self::AnotherFeeder(_) => exit::ANOTHER_FEEDER,
            Self::IncompatibleLedger(_) => exit::UNEXPECTED,
            _ => exit::INVALID_SETTINGS,
        }
    }
}

impl TransientError for LedgerError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Database(error) => is_unavailable(error),
            _ => false,
        }
    }
}

/// SQLSTATE classes of a server that cannot serve at the moment: connection exceptions, resources
/// (connections above all), and shutdown, crash and start-up (57P01 to 57P03).
/// Source: PostgreSQL documentation, appendix A.
const UNAVAILABLE_CLASSES: [&str; 3] = ["08", "53", "57P"];

/// Whether the server is away, as it is while it restarts.
pub(super) fn is_unavailable(error: &sqlx::Error) -> bool {
    if let Some(code) = sqlstate_of(error) {
        return UNAVAILABLE_CLASSES
            .iter()
            .any(|class| code.starts_with(class));
    }
    // The last is a connection that breaks in the middle of an answer.
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Protocol(_)
    )
}

/// Whether the role lacks a right (SQLSTATE 42501, `insufficient_privilege`).
pub(super) fn is_permission_denied(error: &sqlx::Error) -> bool {
    sqlstate_of(error).is_some_and(|code| code == "42501")
}

/// SQLSTATE classes that are about the server, the connection or our rights, not about the rows of a
/// statement. Everything else (data, constraints, whatever a trigger raises) is about the rows.
/// Source: PostgreSQL documentation, appendix A.
const SERVER_ERROR_CLASSES: [&str; 16] = [
    "08", "0A", "25", "26", "28", "3D", "3F", "40", "42", "53", "54", "55", "57", "58", "F0", "XX",
];

/// Sorts by SQLSTATE class.
pub(super) fn statement_error(error: &sqlx::Error) -> StatementError {
    match sqlstate_of(error) {
        Some(code)
            if !SERVER_ERROR_CLASSES
                .iter()
                .any(|class| code.starts_with(class)) =>
        {
            StatementError::Rejected {
                code,
                message: error.to_string(),
            }
        }
        _ => StatementError::Unavailable(crate::aws::error_chain(error)),
    }
}

fn sqlstate_of(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
