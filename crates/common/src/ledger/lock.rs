//! Advisory locks, which keep others out of a run for as long as a session lives.

use std::fmt;
use std::time::Duration;

use sqlx::postgres::{PgPool, Postgres};
use sqlx::{Decode, FromRow as _, PgConnection, Row as _, Type};
use tokio::time::timeout;

use super::connection::name_pool_timeout;
use super::errors::within_limit;
use super::{LedgerError, PostgresLedger};

/// Advisory locks are numbers; this one is ours, paired with the run's. ("bb" in ASCII.)
const FEEDER_LOCK_SPACE: i32 = 0x6262;

/// The same for the commands that prove, undo and clean. ("bo")
const OPERATOR_LOCK_SPACE: i32 = 0x626f;

/// No run has this number.
const ALL_RUNS: i64 = 0;

const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

const TAKING_LOCK: &str = "taking the lock";

/// A connection that has not confirmed its lock by then does not hold it.
const LOCK_CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// `$1` space, `$2` run. The lock belongs to a session.
const HOLDS_LOCK: &str = "SELECT EXISTS (SELECT 1 FROM pg_locks
    WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid() AND objsubid = 2
      AND classid::bigint = $1 AND objid::bigint = $2)";

/// Holds the run's advisory lock for as long as it lives. It has a connection of its own, because
/// the lock ends with the connection.
#[derive(Debug)]
pub struct AdvisoryLock {
    connection: PgConnection,
    session: LockSession,
    space: i32,
    run: i32,
}

/// Locks that a process holds, by the sessions that took them: for statements that are right only while it does.
pub type LockClaims = Vec<String>;

/// In SQL, whether the locks of [`LockClaims`] are still held; of none they are.
pub fn holds_locks_sql(claims: &str) -> String {
    format!(
        "(SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
           WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.database = a.datid
             AND concat_ws(':', l.classid, l.objid, l.pid, (extract(epoch FROM a.backend_start) * 1000000)::bigint)
                 = ANY ({claims}::text[])) = cardinality({claims}::text[])"
    )
}

/// A session of the server's. Its process id alone may be another's later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, sqlx::FromRow)]
pub struct LockSession {
    pid: i32,
    /// When it began; none of a session that this role may not look at.
    began_micros: Option<i64>,
}

/// `$1` space, `$2` run.
const TRY_LOCK: &str = "SELECT pg_try_advisory_lock($1, $2) AS is_locked, pid,
        (extract(epoch FROM backend_start) * 1000000)::bigint AS began_micros
    FROM pg_stat_activity WHERE pid = pg_backend_pid()";

/// `$1` process id, `$2` when it began. A role may end its own sessions.
const END_SESSION: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
    WHERE pid = $1 AND (extract(epoch FROM backend_start) * 1000000)::bigint = $2";

impl AdvisoryLock {
    pub fn session(&self) -> LockSession {
        self.session
    }

    /// For [`LockClaims`].
    pub fn claim(&self) -> String {
        let Self {
            space,
            run,
            session: LockSession { pid, began_micros },
            ..
        } = self;
        let began = began_micros.map_or_else(String::new, |began| format!(":{began}"));
        format!("{space}:{run}:{pid}{began}")
    }

    /// The run's fence, read by the session that holds the lock: whoever raises it later has taken the lock after that
    /// session's end. None where the lock is lost.
    pub async fn read_fence(&mut self) -> Option<i64> {
        if self.is_held().await {
            self.query_fence().await
        } else {
            None
        }
    }

    /// The same of a lock that is known to be held; none where it cannot be read.
    pub async fn query_fence(&mut self) -> Option<i64> {
        let query = sqlx::query_scalar("SELECT fence FROM bucket_brigade.run WHERE id = $1");
        let fence = query
            .bind(i64::from(self.run))
            .fetch_one(&mut self.connection);
        timeout(LOCK_CHECK_TIMEOUT, fence).await.ok()?.ok()
    }

    /// Whether the connection responds, and its session holds the lock.
    pub async fn is_held(&mut self) -> bool {
        let query = sqlx::query_scalar(HOLDS_LOCK).bind(i64::from(self.space));
        let query = query.bind(i64::from(self.run));
        let is_held = query.fetch_one(&mut self.connection);
        matches!(timeout(LOCK_CHECK_TIMEOUT, is_held).await, Ok(Ok(true)))
    }
}

/// `$1` space, `$2` run. Of other roles' sessions no more than the name may be visible.
const SELECT_HOLDER: &str = r#"SELECT a.application_name AS application, coalesce(host(a.client_addr), 'this host') AS client,
        a.pid, (extract(epoch FROM a.backend_start) * 1000000)::bigint AS began_micros,
        to_char(a.backend_start AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since
    FROM pg_locks l JOIN pg_stat_activity a USING (pid)
    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 2 AND l.database = a.datid
      AND a.datname = current_database() AND l.classid::bigint = $1 AND l.objid::bigint = $2"#;

/// Whose session holds a lock; empty when it has just gone.
#[derive(Debug, Default, sqlx::FromRow)]
pub struct LockHolder {
    application: String,
    client: String,
    #[sqlx(flatten)]
    session: LockSession,
    /// When its session began, in UTC.
    since: Option<String>,
}

impl LockHolder {
    pub fn session(&self) -> LockSession {
        self.session
    }

    /// Whether it is one of the commands that exclude a feeder.
    pub fn is_command(&self) -> bool {
        let command = self.application.strip_prefix("bucket-brigade ");
        command.is_some_and(|command| command != "feeder")
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            application,
            client,
            session: LockSession { pid, .. },
            since,
        } = self;
        if *pid == 0 {
            return Ok(());
        }
        let since = since
            .as_deref()
            .unwrap_or("a time that this role may not see");
        write!(
            f,
            "; '{application}' on {client} holds its lock, as server process {pid}, since {since}"
        )
    }
}

impl PostgresLedger {
    /// Takes a lock anew on another connection; the one before is closed, so that the server frees it. False
    /// while a session still holds it.
    pub async fn reacquire(&self, lock: &mut AdvisoryLock) -> Result<bool, LedgerError> {
        let fresh = async {
            let connection = self.pool.acquire().await?.detach();
            drop(std::mem::replace(&mut lock.connection, connection));
            let taken = try_lock_session(&mut lock.connection, lock.space, lock.run).await?;
            match taken {
                Some(session) => lock.session = session,
                None => self.end_session(lock.session).await?,
            }
            Ok::<_, LedgerError>(taken.is_some())
        };
        within_limit(LOCK_TIMEOUT, TAKING_LOCK, fresh).await
    }

    /// Ends a session of ours whose connection is lost, if the server still has it: behind a proxy it may not
    /// learn of the loss.
    pub async fn end_session(&self, session: LockSession) -> Result<(), LedgerError> {
        let query = sqlx::query(END_SESSION).bind(session.pid);
        let query = query.bind(session.began_micros).execute(&self.pool);
        let ended = within_limit(LOCK_CHECK_TIMEOUT, "ending the session", query).await;
        ended.map(drop)
    }

    /// Keeps every other feeder of this run out.
    pub async fn acquire_feeder_lock(&self) -> Result<AdvisoryLock, LedgerError> {
        if let Some(lock) = self.try_lock(FEEDER_LOCK_SPACE, self.run_id).await? {
            return Ok(lock);
        }
        Err(LedgerError::AnotherFeeder {
            run: self.run_id,
            holder: self.find_holder().await.unwrap_or_default(),
        })
    }

    async fn find_holder(&self) -> Option<LockHolder> {
        let query = sqlx::query_as(SELECT_HOLDER).bind(i64::from(FEEDER_LOCK_SPACE));
        let holder = query.bind(self.run_id).fetch_optional(&self.pool);
        timeout(LOCK_CHECK_TIMEOUT, holder).await.ok()?.ok()?
    }

    /// Keeps every other command out that moves rows back or removes objects, whatever its run: one could remove what
    /// the other points a row at. None when one is at work already.
    pub async fn acquire_undo_lock(&self) -> Result<Option<AdvisoryLock>, LedgerError> {
        self.try_lock(OPERATOR_LOCK_SPACE, ALL_RUNS).await
    }

    /// Keeps every other verify, rollback and clean of this run out; none when one is at work already.
    pub async fn acquire_operator_lock(&self) -> Result<Option<AdvisoryLock>, LedgerError> {
        self.try_lock(OPERATOR_LOCK_SPACE, self.run_id).await
    }

    async fn try_lock(&self, space: i32, run: i64) -> Result<Option<AdvisoryLock>, LedgerError> {
        let locking = self.lock_session(space, run);
        let locked = within_limit(LOCK_TIMEOUT, TAKING_LOCK, locking).await;
        Box::pin(name_pool_timeout(&self.database, locked)).await
    }

    async fn lock_session(
        &self,
        space: i32,
        run: i64,
    ) -> Result<Option<AdvisoryLock>, LedgerError> {
        let mut connection = self.pool.acquire().await?.detach();
        ensure_own_session(&mut connection, &self.pool).await?;
        let run = i32::try_from(run).unwrap_or(i32::MAX);
        let taken = try_lock_session(&mut connection, space, run).await?;
        Ok(taken.map(|session| AdvisoryLock {
            connection,
            session,
            space,
            run,
        }))
    }
}

/// The connection's session, which holds the lock now; none while another holds it.
async fn try_lock_session(
    connection: &mut PgConnection,
    space: i32,
    run: i32,
) -> Result<Option<LockSession>, sqlx::Error> {
    let query = sqlx::query(TRY_LOCK).bind(space).bind(run);
    let row = query.fetch_one(connection).await?;
    let is_locked: bool = row.try_get("is_locked")?;
    let session = is_locked.then(|| LockSession::from_row(&row));
    session.transpose()
}

/// A pooler in transaction mode gives us one session of the server's after the other, or the one that served
/// us last to whatever begins a transaction next, and us another one meanwhile.
pub(super) async fn ensure_own_session(
    connection: &mut PgConnection,
    pool: &PgPool,
) -> Result<(), LedgerError> {
    let own = [
        backend_pid(connection).await?,
        backend_pid(connection).await?,
    ];
    let mut other = pool.begin().await?;
    let others = backend_pid(&mut other).await?;
    let again = backend_pid(connection).await?;
    other.rollback().await?;
    if own.contains(&others) || own != [again; 2] {
        return Err(LedgerError::TransactionPooler);
    }
    ensure_writable(connection).await
}

async fn backend_pid(connection: &mut PgConnection) -> Result<i32, sqlx::Error> {
    select_plainly(connection, "SELECT pg_backend_pid()").await
}

/// By the simple protocol: such a pooler may know no prepared statements.
async fn select_plainly<T>(
    connection: &mut PgConnection,
    sql: &'static str,
) -> Result<T, sqlx::Error>
where
    T: for<'r> Decode<'r, Postgres> + Type<Postgres>,
{
    let row = sqlx::raw_sql(sql).fetch_one(connection).await?;
    row.try_get(0)
}

/// Makes sure that the database takes writes: a standby does not, and would be found out in the middle.
pub(super) async fn ensure_writable(connection: &mut PgConnection) -> Result<(), LedgerError> {
    let sql = "SELECT current_setting('transaction_read_only')::boolean";
    if select_plainly(connection, sql).await? {
        return Err(LedgerError::ReadOnly);
    }
    Ok(())
}
