//! What each connection asks of the server, by what it is for.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, Executor as _, PgConnection, Row as _};
use tokio::time::timeout;

use super::errors::{is_login_refused, is_unavailable, is_unsorted_login_error, refuses_settings};
use super::{LedgerError, TableAccess};
use crate::database::{DatabasePool, LoginError};

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
/// The statements are written for READ COMMITTED, whatever the role's default. No transaction of ours pauses: one
/// that does has lost its client, and holds locks of rows.
const COMMON_SETTINGS: [ServerSetting; 5] = [
    ("default_transaction_isolation", "read committed"),
    ("idle_in_transaction_session_timeout", "5s"),
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

const NO_SETTINGS: &str = "the database, or a pooler before it, takes no settings with a connection: lock_timeout and others are those of the role (ALTER ROLE … SET lock_timeout = '1s')";

/// Connects once outside the pool, which would retry in silence and then only report a timeout, and
/// has the pool's connections ask for what this one was granted. A pool that has a connection is prepared.
///
/// As startup options: a SET after connecting would stay, behind a pooler in transaction mode, with a session
/// of the server that serves the application next.
pub(super) async fn prepare_pool(
    pool: &DatabasePool,
    purpose: &ConnectionPurpose,
    access: TableAccess,
) -> Result<(), LedgerError> {
    let name = purpose.application_name();
    let known = pool.connect_options();
    if known.get_application_name() == Some(&*name) {
        if pool.num_idle() > 0 {
            return Ok(());
        }
        return match connect_once(&known).await {
            Ok(_) => Ok(()),
            Err(error) => Err(connect_error(pool, &error)),
        };
    }
    let login = Box::pin(pool.login.read_options()).await?;
    let limited = purpose.settings(access);
    let checked = [&*limited, &NEWER_SETTINGS].concat();
    for settings in [checked, limited, Vec::new()] {
        let is_plain = settings.is_empty();
        let session = match connect_once(&adapt(login.clone(), &name, &settings)).await {
            Err(error) if !is_plain && refuses_settings(&error) => {
                tracing::debug!(%error, "settings refused");
                continue;
            }
            Err(error) => return Err(connect_error(pool, &error)),
            Ok(session) => session,
        };
        session.check_server()?;
        if !session.has_taken(&settings) {
            tracing::debug!(session.lock_timeout, "settings dropped");
            continue;
        }
        if is_plain {
            tracing::warn!("{NO_SETTINGS}");
        }
        let newest = [&*settings, session.newest_settings(is_plain)].concat();
        let takes_newest = newest.len() > settings.len()
            && connect_once(&adapt(login.clone(), &name, &newest))
                .await
                .is_ok();
        let settings = if takes_newest { newest } else { settings };
        pool.adopt(login, move |login| adapt(login, &name, &settings));
        break;
    }
    Ok(())
}

fn adapt(login: PgConnectOptions, name: &str, settings: &[ServerSetting]) -> PgConnectOptions {
    let login = login.application_name(name);
    // An empty list is one, which a pooler may refuse.
    if settings.is_empty() {
        login
    } else {
        login.options(settings.iter().copied())
    }
}

/// Why a pool had no connection in time: it retries in silence, and one outside it tells.
pub(super) async fn name_pool_timeout<T>(
    pool: &DatabasePool,
    result: Result<T, LedgerError>,
) -> Result<T, LedgerError> {
    let Err(LedgerError::Database(sqlx::Error::PoolTimedOut)) = result else {
        return result;
    };
    Err(explain_pool_timeout(pool).await)
}

pub(super) async fn explain_pool_timeout(pool: &DatabasePool) -> LedgerError {
    match connect_once(&pool.connect_options()).await {
        Err(error) => connect_error(pool, &error),
        Ok(_) => LedgerError::Unreachable(format!(
            "no connection came free: all {} of this process are in use",
            pool.size()
        )),
    }
}

/// What a first session tells of the server, and of a pooler before it.
struct FirstSession {
    /// Where the server says it.
    version: Option<u32>,
    server: String,
    lock_timeout: String,
}

impl FirstSession {
    async fn open(options: &PgConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = PgConnection::connect_with(options).await?;
        let version = connection.server_version_num();
        // Not prepared: a pooler may know no prepared statements.
        let query = sqlx::raw_sql("SELECT version(), current_setting('lock_timeout')");
        let row = connection.fetch_one(query).await?;
        connection.close().await?;
        Ok(Self {
            version,
            server: row.try_get(0)?,
            lock_timeout: row.try_get(1)?,
        })
    }

    /// Some poolers drop settings without a word: Supavisor, and `PgBouncer` where it ignores `options`.
    fn has_taken(&self, settings: &[ServerSetting]) -> bool {
        let mut lock_timeouts = settings.iter().filter(|(name, _)| *name == "lock_timeout");
        lock_timeouts.all(|(_, asked)| self.lock_timeout == *asked)
    }

    /// What the version knows beyond the settings that are tried first, which a pooler may refuse all the same.
    fn newest_settings(&self, is_plain: bool) -> &'static [ServerSetting] {
        if !is_plain && self.version >= Some(TRANSACTION_TIMEOUT_SINCE) {
            &[("transaction_timeout", "0")]
        } else {
            &[]
        }
    }

    fn check_server(&self) -> Result<(), LedgerError> {
        if self.server.starts_with("CockroachDB") {
            let name = self.server.split(" (").next().unwrap_or_default();
            return Err(LedgerError::OtherServer(name.to_owned()));
        }
        match self.version.map(|version| version / 10_000) {
            Some(major) if major < OLDEST_MAJOR => Err(LedgerError::OldServer(major)),
            _ => Ok(()),
        }
    }
}

async fn connect_once(options: &PgConnectOptions) -> Result<FirstSession, sqlx::Error> {
    let connect = timeout(CONNECT_TIMEOUT, Box::pin(FirstSession::open(options)));
    match connect.await {
        Ok(session) => session,
        Err(_) => Err(sqlx::Error::Io(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            format!("no response within {CONNECT_TIMEOUT:?}"),
        ))),
    }
}

/// `clean` pages by `WITH TIES`.
pub(super) const OLDEST_MAJOR: u32 = 13;

/// A limit of the role's would end what takes as long as it takes, such as an upgrade of the ledger.
const TRANSACTION_TIMEOUT_SINCE: u32 = 170_000;

impl From<LoginError> for LedgerError {
    fn from(error: LoginError) -> Self {
        if error.is_transient {
            Self::Unreachable(error.problem)
        } else {
            Self::LoginRefused(error.problem)
        }
    }
}

fn connect_error(pool: &DatabasePool, error: &sqlx::Error) -> LedgerError {
    let options = pool.connect_options();
    let (host, port) = (options.get_host(), options.get_port());
    let mut why = format!("{host}:{port}: {}", describe_connect_error(error));
    if pool.login.is_iam() && is_login_refused(error) {
        why += IAM_HINT;
    }
    if is_unavailable(error) || is_unsorted_login_error(error) {
        LedgerError::Unreachable(why)
    } else {
        LedgerError::LoginRefused(why)
    }
}

const IAM_HINT: &str = " (DATABASE_AUTH=iam: the host must be RDS's own name, the user needs GRANT rds_iam, and this process the right rds-db:connect for it)";

/// Why no connection came about, and what to do where TLS is the reason. sqlx reports a failed handshake
/// as an I/O error.
fn describe_connect_error(error: &sqlx::Error) -> String {
    let why = match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        error => crate::aws::error_chain(error),
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn session(server: &str, version: Option<u32>) -> FirstSession {
        FirstSession {
            version,
            server: server.into(),
            lock_timeout: "1s".into(),
        }
    }

    #[test]
    fn another_server_and_an_older_one_are_refused_by_name() {
        for (server, version, named) in [
            ("PostgreSQL 12.22", Some(120_022), "Postgres 12: version 13"),
            (
                "CockroachDB CCL v24.1.0 (x86_64)",
                Some(130_000),
                "is CockroachDB CCL v24.1.0: Postgres is needed",
            ),
        ] {
            let error = session(server, version).check_server().unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        for version in [Some(130_000), Some(180_004), None] {
            let checked = session("PostgreSQL", version).check_server();
            assert!(checked.is_ok(), "{version:?}");
        }
    }

    #[test]
    fn settings_that_a_pooler_drops_are_not_taken_for_granted() {
        let session = session("PostgreSQL 17.2", Some(170_002));
        let asked = [("row_security", "off"), ("lock_timeout", "5s")];
        assert!(!session.has_taken(&asked));
        assert!(session.has_taken(&[("lock_timeout", "1s")]) && session.has_taken(&[]));
        let newest = [("transaction_timeout", "0")];
        assert_eq!(session.newest_settings(false), newest);
        assert!(session.newest_settings(true).is_empty());
    }
}
