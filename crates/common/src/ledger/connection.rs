//! What each connection asks of the server, by what it is for.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{Connection as _, PgConnection};
use tokio::time::timeout;

use super::errors::{is_unavailable, refuses_settings};
use super::{LedgerError, TableAccess};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whose connections these are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConnectionPurpose {
    Feeder,
    Consumer,
    /// The plan's, none of whose statements may take long.
    Plan,
    /// An operator's command's, with its name.
    Command(String),
}

/// A session setting and its value.
type ServerSetting = (&'static str, &'static str);

/// The server notices within seconds that its client is gone: `client_connection_check_interval` ends the
/// statement of a killed one, keepalives find out a host that vanished, and with the session go its locks.
/// The statements are written for READ COMMITTED, whatever the role's default.
const COMMON_SETTINGS: [ServerSetting; 5] = [
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("tcp_keepalives_idle", "10"),
    ("tcp_keepalives_interval", "5"),
    ("tcp_keepalives_count", "3"),
];

/// Known since Postgres 14, the first only where the system supports it. The session that holds a lock is idle.
const NEWER_SETTINGS: [ServerSetting; 2] = [
    ("client_connection_check_interval", "2s"),
    ("idle_session_timeout", "0"),
];

impl ConnectionPurpose {
    /// What `pg_stat_activity` shows.
    fn application_name(&self) -> String {
        let of = match self {
            Self::Feeder => "feeder",
            Self::Consumer => "consumer",
            Self::Plan => "plan",
            Self::Command(name) => name,
        };
        format!("bucket-brigade {of}")
    }

    fn settings(&self, access: TableAccess) -> Vec<ServerSetting> {
        // At most `deadlock_timeout`, and we waited first: in a deadlock with us the application goes on.
        let lock_timeout = match access {
            TableAccess::Update => "1s",
            TableAccess::Read => "5s",
        };
        // Less than our own.
        let statement_timeout = match self {
            Self::Feeder | Self::Consumer | Self::Command(_) => "28s",
            Self::Plan => "20s",
        };
        let mut settings = COMMON_SETTINGS.to_vec();
        settings.push(("lock_timeout", lock_timeout));
        settings.push(("statement_timeout", statement_timeout));
        // Rows that a policy hides from a reader are an error, also once it has begun, and a backslash is one. Not
        // for those that set paths: the application's triggers would have it so, too.
        if access == TableAccess::Read {
            settings.push(("row_security", "off"));
            settings.push(("standard_conforming_strings", "on"));
        }
        settings
    }
}

/// Connects once outside the pool, which would retry in silence and then only report a timeout, and
/// has the pool's connections ask for what this one was granted.
///
/// As startup options: a SET after connecting would stay, behind a pooler in transaction mode, with a session
/// of the server that serves the application next.
pub(super) async fn prepare_pool(
    pool: &PgPool,
    purpose: &ConnectionPurpose,
    access: TableAccess,
) -> Result<(), LedgerError> {
    let name = purpose.application_name();
    let options = PgConnectOptions::clone(&pool.connect_options());
    if options.get_application_name() == Some(&*name) {
        let connected = connect_once(&options).await;
        return connected.map_err(|error| connect_error(&options, &error));
    }
    let plain = options.application_name(&name);
    let limited = plain.clone().options(purpose.settings(access));
    for options in [limited.clone().options(NEWER_SETTINGS), limited] {
        match connect_once(&options).await {
            Err(error) if refuses_settings(&error) => tracing::debug!(%error, "settings refused"),
            connected => {
                connected.map_err(|error| connect_error(&options, &error))?;
                pool.set_connect_options(options);
                return Ok(());
            }
        }
    }
    connect_once(&plain)
        .await
        .map_err(|error| connect_error(&plain, &error))?;
    tracing::warn!(
        "the database, or a pooler before it, takes no settings with a connection: lock_timeout and others are those of the role (ALTER ROLE … SET lock_timeout = '1s')"
    );
    pool.set_connect_options(plain);
    Ok(())
}

async fn connect_once(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let connect = timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options));
    match connect.await {
        Ok(connection) => connection?.close().await,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no response within {CONNECT_TIMEOUT:?}"),
        ))),
    }
}

fn connect_error(options: &PgConnectOptions, error: &sqlx::Error) -> LedgerError {
    let (host, port) = (options.get_host(), options.get_port());
    let why = format!("{host}:{port}: {}", describe_connect_error(error));
    if is_unavailable(error) {
        LedgerError::Unreachable(why)
    } else {
        LedgerError::LoginRefused(why)
    }
}

/// Why no connection came about, and what to do where TLS is the reason. sqlx reports a failed handshake
/// as an I/O error.
fn describe_connect_error(error: &sqlx::Error) -> String {
    let why = crate::aws::error_chain(error);
    match error {
        sqlx::Error::Io(io) if io.kind() == std::io::ErrorKind::NotFound => {
            return format!(
                "{why} (the certificates of sslrootcert (PGSSLROOTCERT), or the server's socket)"
            );
        }
        sqlx::Error::Tls(_) => {}
        _ if why.contains("certificate") => {}
        _ => return why,
    }
    format!(
        "{why}. Nothing was sent in plain. sslmode (PGSSLMODE) require and above need a server with TLS, verify-ca and \
         verify-full a certificate signed by one of sslrootcert (PGSSLROOTCERT), verify-full the host's name in it"
    )
}
