//! Pools whose connections log in with the password of now.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{Connection as _, Row as _, raw_sql};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::login::DatabaseLogin;

/// A connection that does not respond to a ping by then is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a connection that comes back is asked whether it can write.
const WRITE_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How old a password or token is that a new connection logs in with, at most. One that is refused meanwhile is an
/// outage that ends with the next.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(2);

/// A pool of sqlx's, to which it dereferences.
#[derive(Clone)]
pub struct DatabasePool {
    pool: PgPool,
    pub(crate) login: DatabaseLogin,
    /// Ends with the last clone.
    renewal: Arc<Mutex<Option<AbortOnDropHandle<()>>>>,
}

/// A pool of at most `connections`, made without connecting yet.
///
/// Consumers share the server's `max_connections` with the application: two or three each suffice. sqlx
/// pings a connection that comes back, without a time limit while it keeps its permit of the pool: one that has
/// fallen silent is found out and closed before that. So is one that cannot write, which stays so: it leads to a
/// server that has become a replica, or began while the database was read-only.
pub fn create_pool(login: DatabaseLogin, connections: u32) -> DatabasePool {
    let turn = WriteCheckTurn::default();
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .after_release(move |connection, _| {
            let turn = turn.clone();
            Box::pin(async move {
                let usable = timeout(PING_TIMEOUT, turn.is_usable(connection)).await;
                Ok(matches!(usable, Ok(Ok(true))))
            })
        })
        .connect_lazy_with(login.options.clone());
    DatabasePool {
        pool,
        login,
        renewal: Arc::default(),
    }
}

/// When the next connection is asked, of all of a pool.
#[derive(Clone, Default)]
struct WriteCheckTurn(Arc<Mutex<Option<Instant>>>);

impl WriteCheckTurn {
    async fn is_usable(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if !self.is_due() {
            return connection.ping().await.map(|()| true);
        }
        let shown = raw_sql("SHOW transaction_read_only").fetch_one(connection);
        let is_read_only = shown.await?.try_get::<String, _>(0)? == "on";
        if is_read_only {
            // The others may be like this one.
            *self.0.lock() = None;
        }
        Ok(!is_read_only)
    }

    fn is_due(&self) -> bool {
        let (now, mut next) = (Instant::now(), self.0.lock());
        let is_due = next.is_none_or(|next| next <= now);
        if is_due {
            *next = Some(now + WRITE_CHECK_INTERVAL);
        }
        is_due
    }
}

impl DatabasePool {
    /// From now on connections are made with what `adapt` makes of the login, also when that has changed.
    pub(crate) fn adopt(
        &self,
        login: PgConnectOptions,
        adapt: impl Fn(PgConnectOptions) -> PgConnectOptions + Send + Sync + 'static,
    ) {
        self.pool.set_connect_options(adapt(login));
        if self.login.is_fixed() {
            return;
        }
        let renewing = tokio::spawn(renew(self.pool.clone(), self.login.clone(), adapt));
        let mut renewal = self.renewal.lock();
        *renewal = Some(AbortOnDropHandle::new(renewing));
    }
}

async fn renew(
    pool: PgPool,
    login: DatabaseLogin,
    adapt: impl Fn(PgConnectOptions) -> PgConnectOptions + Send,
) {
    let mut has_failed = false;
    loop {
        sleep(RENEWAL_INTERVAL).await;
        let read = login.read_options().await;
        match &read {
            Err(error) if !has_failed => tracing::warn!(
                %error,
                "the database's password cannot be read again: connections are made with the old one"
            ),
            _ => {}
        }
        has_failed = read.is_err();
        if let Ok(options) = read {
            pool.set_connect_options(adapt(options));
        }
    }
}

impl Deref for DatabasePool {
    type Target = PgPool;

    fn deref(&self) -> &PgPool {
        &self.pool
    }
}

/// Without the password.
impl fmt::Debug for DatabasePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pool.fmt(f)
    }
}
