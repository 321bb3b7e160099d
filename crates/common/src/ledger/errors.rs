//! What can be wrong with the database before the first row is touched, and how its errors at run
//! time are sorted.

use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};
use thiserror::Error;
use tokio::time::timeout;

use super::connection::OLDEST_MAJOR;
use super::error_context::{is_application_lock, is_in_function};
use super::lock::LockHolder;
use crate::exit;
use crate::ledger::move_ledger::StatementError;
use crate::retry::TransientError;

/// Why a run cannot be opened. Each names what is at fault and, where there is one, the remedy.
#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("cannot connect to the database (DATABASE_URL or PGHOST, PGUSER, …): {0}")]
    Unreachable(String),
    #[error("{what} took longer than {limit:?}: the database responds slowly, or no more")]
    TimedOut { what: &'static str, limit: Duration },
    /// The server refuses the login: the password, the database's name, TLS.
    #[error("cannot connect to the database (DATABASE_URL or PGHOST, PGUSER, …): {0}")]
    LoginRefused(String),
    #[error("the database is Postgres {0}: version {OLDEST_MAJOR} or newer is needed")]
    OldServer(u32),
    /// It speaks the protocol, and knows no advisory locks.
    #[error("the database is {0}: Postgres is needed")]
    OtherServer(String),
    /// It names something that is not there, or cannot be used.
    #[error("{setting}: {problem}")]
    Setting {
        setting: &'static str,
        problem: String,
    },
    #[error(
        "the database user '{user}' may not {what}. Have a database administrator run:\n\n{sql}\n"
    )]
    NotAllowed {
        /// The role we are logged in as.
        user: String,
        what: String,
        sql: String,
    },
    /// Session locks do not stay with the session.
    #[error(
        "DATABASE_URL leads to a pooler in transaction mode, where the lock that keeps others out would be shared with other clients: connect to Postgres itself, or to a pool in session mode (consumers may stay)"
    )]
    TransactionPooler,
    #[error(
        "the database takes no writes (transaction_read_only is on): DATABASE_URL leads to a standby, or the database or the role is closed (default_transaction_read_only)"
    )]
    ReadOnly,
    #[error("the ledger in schema bucket_brigade does not fit this version: {0}")]
    IncompatibleLedger(String),
    #[error("there is no run{hint}")]
    NoRun {
        /// The runs there are, or what makes one.
        hint: String,
    },
    #[error("these settings differ from those of run '{name}' in the ledger:\n  {differences}")]
    RunDiffers { name: String, differences: String },
    /// Most likely a slip in a setting.
    #[error(
        "column {column} has a run already, '{run}', with other settings:\n  {differences}\nTo begin another migration of this column, start the feeder once with --new-run"
    )]
    SecondRun {
        column: String,
        run: String,
        differences: String,
    },
    #[error(
        "paths under '{prefix}' mean objects in {location} by run '{run}', and would mean others by these settings. {remedy} first, or name another NEW_PREFIX"
    )]
    SplitPaths {
        run: String,
        prefix: String,
        location: String,
        remedy: &'static str,
    },
    #[error(
        "run '{other}' is unfinished and has the same rows: let it finish, or pause it (feeder pause --run {other})"
    )]
    SharedRows { other: String },
    #[error(
        "another feeder of this run is at work (run {run}): only one may feed at a time{holder}"
    )]
    AnotherFeeder { run: i64, holder: LockHolder },
    #[error(
        "requests of a clean (of sources, or --orphans) of run {run} had no response, or it was cut off: until {until} UTC they may still remove objects that rows would name. Start again then"
    )]
    InRemoval { run: i64, until: String },
    #[error(
        "a transaction that writes to the ledger does not end (server process {pid}, '{application}'): end it, and try again"
    )]
    OpenTransaction { pid: i32, application: String },
    /// What this feeder has sent since its lock was lost is not carried out.
    #[error(
        "a rollback or a clean has shut out what this feeder of run {0} sends: start it again if its rows are to move"
    )]
    FenceRaised(i64),
    #[error("the database failed while the run was opened: {}", message_of(.0))]
    Database(#[from] sqlx::Error),
}

impl LedgerError {
    /// A ledger that was made anew or restored has another run, though it may have the same number.
    pub fn run_gone() -> Self {
        let hint = " any more that this process began with: the ledger was made anew, or restored; start it again";
        Self::NoRun { hint: hint.into() }
    }

    pub(super) fn setting(setting: &'static str, problem: String) -> Self {
        Self::Setting { setting, problem }
    }

    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable(_)
            | Self::TimedOut { .. }
            | Self::LoginRefused(_)
            | Self::Database(_)
            | Self::ReadOnly => exit::UNAVAILABLE,
            Self::NotAllowed { .. } => exit::NO_PERMISSION,
            Self::AnotherFeeder { .. }
            | Self::InRemoval { .. }
            | Self::SharedRows { .. }
            | Self::OpenTransaction { .. }
            | Self::FenceRaised(_) => exit::ANOTHER_FEEDER,
            Self::IncompatibleLedger(_) => exit::UNEXPECTED,
            _ => exit::INVALID_SETTINGS,
        }
    }
}

impl TransientError for LedgerError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::TimedOut { .. } | Self::ReadOnly => true,
            Self::Database(error) => is_unavailable(error),
            _ => false,
        }
    }
}

/// `what` names the work where it takes longer.
pub(super) async fn within_limit<T, E>(
    limit: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, LedgerError>
where
    LedgerError: From<E>,
{
    match timeout(limit, work).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(LedgerError::TimedOut { what, limit }),
    }
}

/// SQLSTATE classes of a server that cannot serve at the moment: connection exceptions, resources
/// (connections above all), shutdown, crash and start-up (57P01 to 57P03), a session that it has ended for a pause
/// in a transaction, and a table that another holds while the ledger is brought up to date.
/// Source: PostgreSQL documentation, appendix A.
const UNAVAILABLE_CLASSES: [&str; 5] = ["08", "53", "57P", SESSION_ENDED, LOCK_NOT_AVAILABLE];

/// Whether the server is away, as it is while it restarts.
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    // The last is a connection that breaks in the middle of a response.
    has_sqlstate(error, &UNAVAILABLE_CLASSES)
        || matches!(
            error,
            sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::Protocol(_)
        )
}

/// Whether the server, or a pooler in front of it, refuses settings that come with a connection: it does not
/// know one (42704), its value (22023), or takes none (08P01 of `PgBouncer`, 0A000; XX000 of Neon's proxy).
pub(super) fn refuses_settings(error: &sqlx::Error) -> bool {
    has_sqlstate(error, &["42704", "22023", "08P01", "0A000"])
        || is_unsorted_login_error(error) && message_of(error).contains("startup parameter")
}

/// What some poolers say of everything that goes wrong at a login: Neon's while its server wakes, Supavisor of too many
/// clients.
pub(super) fn is_unsorted_login_error(error: &sqlx::Error) -> bool {
    has_sqlstate(error, &[INTERNAL_ERROR]) && ends_session(error)
}

/// What one row may end a session with: its transaction took longer than `transaction_timeout`, or it is damaged.
const ROW_ENDS_SESSION: [&str; 3] = ["25P04", "XX001", "XX002"];

/// Whether the session, or the login, ended with it.
fn ends_session(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    let error = error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
    error.is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the server refuses the password, the token or the role (SQLSTATE class 28).
pub(super) fn is_login_refused(error: &sqlx::Error) -> bool {
    has_sqlstate(error, &["28"])
}

/// Whether the role lacks a right (SQLSTATE 42501, `insufficient_privilege`).
pub(super) fn is_permission_denied(error: &sqlx::Error) -> bool {
    has_sqlstate(error, &["42501"])
}

/// SQLSTATEs of a server that cannot carry out any statement now, and of statements to repeat as they are:
/// deadlock, serialization, `statement_timeout`, an error inside the server.
/// Source: PostgreSQL documentation, appendix A.
const SERVER_STATES: [&str; 10] = [
    "08",
    "28",
    "3D",
    "40",
    "53",
    "57P",
    "57014",
    "58",
    "F0",
    INTERNAL_ERROR,
];

const INTERNAL_ERROR: &str = "XX000";

/// Classes that mean the statement, our rights or the server's state when the statement itself raises them
/// (a table that was dropped, a standby that takes no writes), and one row when a trigger does.
const STATEMENT_CLASSES: [&str; 6] = ["0A", "25", "26", "3F", "42", "55"];

/// A prepared statement that is not there, or there already: a pooler's trouble.
const PREPARED_STATEMENT_CODES: [&str; 2] = ["26000", "42P05"];

/// A statement that `statement_timeout` ended, or an administrator.
pub const STATEMENT_CANCELLED: &str = "57014";

/// A lock that was not granted within `lock_timeout`.
pub const LOCK_NOT_AVAILABLE: &str = "55P03";

/// A session that `idle_in_transaction_session_timeout` ended: this process stood still, or was not heard.
const SESSION_ENDED: &str = "25P03";

/// A server, or a connection, that takes no writes: others of the pool may do.
const READ_ONLY: &str = "25006";

/// Sorts by SQLSTATE: what is not about the server may be about one row of the batch.
pub fn statement_error(error: &sqlx::Error) -> StatementError {
    let (code, message) = (sqlstate_of(error), message_of(error));
    if ends_session(error) && !has_sqlstate(error, &ROW_ENDS_SESSION) {
        return StatementError::Unavailable(message);
    }
    let blame = code
        .as_deref()
        .map(|code| blame_for(code, context_of(error)));
    match (code, blame) {
        (Some(code), Some(Blame::Row)) => StatementError::Rejected { code, message },
        (Some(code), Some(Blame::RowPerhaps)) => StatementError::Suspect { code, message },
        _ if matches!(error, sqlx::Error::RowNotFound) => StatementError::Unavailable(
            "the run is in the ledger (bucket_brigade.run) no more".into(),
        ),
        _ => StatementError::Unavailable(message),
    }
}

/// What is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    Row,
    /// What is else the server's or the statement's trouble: a damaged value, a row that may not change its
    /// partition, whatever a function of the application's raises or runs into.
    RowPerhaps,
    Server,
}

fn blame_for(code: &str, context: Option<&str>) -> Blame {
    let is_in = |states: &[&str]| states.iter().any(|state| code.starts_with(state));
    let is_of_statement = is_in(&STATEMENT_CLASSES);
    let is_in_function = is_in_function(context);
    let from_statement = is_of_statement && !is_in_function;
    let is_of_session = [READ_ONLY, SESSION_ENDED].contains(&code) && !is_in_function;
    if is_of_session || code == LOCK_NOT_AVAILABLE {
        Blame::Server
    } else if !is_in(&SERVER_STATES) && !from_statement {
        Blame::Row
    } else if PREPARED_STATEMENT_CODES.contains(&code) {
        Blame::Server
    } else if code == INTERNAL_ERROR || is_of_statement || is_in_function {
        Blame::RowPerhaps
    } else {
        Blame::Server
    }
}

/// Whether `lock_timeout` ended a wait of the application's: for a row, an index entry, or within a trigger.
pub fn is_row_lock_timeout(error: &sqlx::Error) -> bool {
    has_sqlstate(error, &[LOCK_NOT_AVAILABLE]) && is_application_lock(context_of(error))
}

/// Whether the server ended the statement because it took too long; a smaller batch may not.
pub fn is_statement_timeout(error: &sqlx::Error) -> bool {
    has_sqlstate(error, &[STATEMENT_CANCELLED])
}

/// Sorts the error of a statement about this many rows. Of one that took too long each row is tried
/// alone, whose fault it is where a function, a trigger's above all, took the time.
pub(super) fn batch_error(error: &sqlx::Error, rows: usize) -> StatementError {
    if is_statement_timeout(error) && (rows > 1 || is_in_function(context_of(error))) {
        return StatementError::Rejected {
            code: STATEMENT_CANCELLED.into(),
            message: message_of(error),
        };
    }
    statement_error(error)
}

fn context_of(error: &sqlx::Error) -> Option<&str> {
    let error = error.as_database_error()?;
    error.try_downcast_ref::<PgDatabaseError>()?.r#where()
}

pub(crate) const NO_CONNECTION: &str =
    "no connection in time: it refuses them or does not respond, or all of this process are in use";

/// With what the server advises, and without the line of its source at which it was raised.
pub(super) fn message_of(error: &sqlx::Error) -> String {
    let Some(database) = error.as_database_error() else {
        return match error {
            // The pool retries in silence.
            sqlx::Error::PoolTimedOut => NO_CONNECTION.into(),
            _ => crate::aws::error_chain(error),
        };
    };
    let postgres = database.try_downcast_ref::<PgDatabaseError>();
    let hint = postgres.and_then(PgDatabaseError::hint);
    let is_ours = !is_in_function(context_of(error)) && !database.message().contains("row-level");
    let code = database.code().filter(|_| is_ours);
    // The server's own, to add casts, is for those who write its SQL.
    let hint = hint.filter(|_| code.as_deref() != Some(UNDEFINED_FUNCTION));
    let hint = hint.or_else(|| our_hint(&code?));
    // Of rows it would show values.
    let is_of_table = database.code().is_some_and(|code| code.starts_with("42"));
    let detail = postgres.and_then(PgDatabaseError::detail);
    let parts = [Some(database.message()), detail.filter(|_| is_of_table)];
    let mut message = parts.into_iter().flatten().collect::<Vec<_>>().join(": ");
    // A trigger may say as much as it likes.
    message.truncate(message.floor_char_boundary(MAX_MESSAGE_BYTES));
    match hint {
        Some(hint) => format!("{message} ({hint})"),
        None => message,
    }
}

const POOLER_HINT: &str = "a pooler in transaction mode needs prepared statements: PgBouncer 1.21 or newer with max_prepared_statements above 0";

const MAX_MESSAGE_BYTES: usize = 1000;

const UNDEFINED_FUNCTION: &str = "42883";

fn our_hint(code: &str) -> Option<&'static str> {
    match code {
        LOCK_NOT_AVAILABLE => Some("another session holds the lock: pg_locks names it"),
        "42501" => Some("`feeder plan` prints the GRANT"),
        UNDEFINED_FUNCTION => {
            Some("where a column's type was changed, restart feeder and consumers")
        }
        "26000" | "42P05" => Some(POOLER_HINT),
        "42P10" => Some("give the table a REPLICA IDENTITY with all columns of the publication"),
        "42P01" | "42703" => Some("a table or a column that the run needs was renamed or dropped"),
        _ => None,
    }
}

/// Whether it has one of these SQLSTATEs, or is of one of these classes.
pub(super) fn has_sqlstate(error: &sqlx::Error, states: &[&str]) -> bool {
    let begins = |code: String| states.iter().any(|state| code.starts_with(state));
    sqlstate_of(error).is_some_and(begins)
}

pub(super) fn sqlstate_of(error: &sqlx::Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::create_pool;
    use crate::ledger::run::within;

    /// It is connected, and each response takes a second or two.
    #[tokio::test(start_paused = true)]
    async fn a_slow_database_is_no_failed_connection() {
        let limit = Duration::from_secs(30);
        let pool = create_pool("postgres://postgres@127.0.0.1/a".parse().unwrap(), 1);
        let opened = within(
            &pool,
            limit,
            "opening the run",
            std::future::pending::<Result<(), _>>(),
        );
        let error = opened.await.unwrap_err();
        let words = "opening the run took longer than 30s: the database responds slowly";
        assert!(error.to_string().starts_with(words), "{error}");
        assert_eq!(error.exit_code(), exit::UNAVAILABLE);
        assert!(error.is_transient());
    }

    #[test]
    fn only_the_server_and_the_statement_are_an_outage() {
        let trigger = Some("PL/pgSQL-Funktion refuse() Zeile 2 bei RAISE");
        let parameters = Some("Unbenanntes Portal mit Parametern: $1 = '{7}'");
        let row = Some("while updating tuple (0,7) in relation \"images\"");
        for (codes, context, blame) in [
            (
                "42501 55000 0A000 25006 54001 XX001 P0001",
                trigger,
                Blame::Row,
            ),
            ("23505 22001 54000 XX001 XX002", None, Blame::Row),
            ("42501 42P01 55000 0A000 XX000", None, Blame::RowPerhaps),
            ("42501 42P01 XX000", parameters, Blame::RowPerhaps),
            ("08006 57014 25006", parameters, Blame::Server),
            (
                "08001 08006 40001 40P01 53300 53400 57P01 57014 58030 XX000",
                trigger,
                Blame::RowPerhaps,
            ),
            ("08006 40P01 53300 57P01 57014 58030", None, Blame::Server),
            ("08006 40P01 53100 57P01 57014", row, Blame::Server),
            ("26000 42P05", None, Blame::Server),
            ("55P03", trigger, Blame::Server),
            ("25P03 25006", None, Blame::Server),
        ] {
            for code in codes.split(' ') {
                assert_eq!(blame_for(code, context), blame, "{code} {context:?}");
            }
        }
    }
}
