//! Pools whose connections log in with the password of now.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::login::DatabaseLogin;

/// A connection that does not respond to a ping by then is closed.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

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
/// fallen silent is found out and closed before that.
pub fn create_pool(login: DatabaseLogin, connections: u32) -> DatabasePool {
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(10))
        .after_release(|connection, _| {
            let ping = timeout(PING_TIMEOUT, connection.ping());
            Box::pin(async { Ok(matches!(ping.await, Ok(Ok(())))) })
        })
        .connect_lazy_with(login.options.clone());
    DatabasePool {
        pool,
        login,
        renewal: Arc::default(),
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
        let mut renewal = self.renewal.lock().unwrap_or_else(PoisonError::into_inner);
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
