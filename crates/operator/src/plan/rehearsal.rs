//! The consumers' update of some rows, in transactions that are rolled back: what Postgres would refuse.
//!
//! Triggers fire. What they do in this database is undone with the rest, notifications included; sequences
//! stay advanced. Rows that the application has locked are passed over, and it waits for none of these
//! longer than for a commit of a consumer.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{
    FIRE_DEFERRED, ID_REWRITTEN, PATH_REWRITTEN, later_path_check_sql, path_update_error,
    rehearsal_sql,
};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::sql::quote_identifier;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgDatabaseError, PgTransaction};

use super::check::PlanChecks;
use super::table_inspector::TableInspector;

/// Rows of a statement: a batch of a consumer that has little to do.
const BATCH_ROWS: usize = 25;

/// So many refused rows say enough.
const MAX_REFUSED_ROWS: usize = 10;

const TIMEOUTS: &str = "SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '5s'";

const HIDES_ROWS: &str = "SELECT row_security_active($1::regclass::oid)";

pub(super) type RehearsedRow = (String, MoveRoute);

pub(super) struct Rehearsal<'a> {
    pub(super) inspector: &'a TableInspector,
    pub(super) user: &'a str,
    /// The consumers' role; none for our own.
    pub(super) role: Option<&'a str>,
}

/// What Postgres refuses of rows, with their ids.
struct Refusal {
    code: String,
    message: String,
    mend: String,
    ids: Vec<String>,
}

/// Rows that this transaction, and earlier ones of which the statistics are not sent yet, have added to a table and its
/// partitions, net of those that left: an update may take a row from one partition to another.
const SELECT_ADDED: &str =
    "SELECT coalesce(sum(pg_stat_get_xact_tuples_inserted(relid) - pg_stat_get_xact_tuples_deleted(relid)), 0)::bigint
    FROM (SELECT $1::regclass::oid AS relid UNION SELECT relid FROM pg_partition_tree($1::regclass)) tables";

/// Postgres plans each batch for all of them: one second for a thousand.
const MAX_PARTITIONS: i64 = 500;

const COUNT_PARTITIONS: &str = "SELECT count(*) FROM pg_partition_tree($1::regclass) WHERE isleaf";

#[derive(Default)]
struct RehearsedRows {
    tried: usize,
    set: usize,
    /// By triggers, to the table itself.
    added: i64,
    /// Rows that a trigger keeps as they are.
    kept: Vec<String>,
    refusals: Vec<Refusal>,
}

impl Rehearsal<'_> {
    pub(super) async fn check(&self, rows: &[RehearsedRow], checks: &mut PlanChecks) {
        match self.hides_rows().await {
            Ok(false) => {}
            Ok(true) => {
                let role = self.role_name();
                return checks.fail(
                    "update",
                    format!("row level security hides rows from {role}"),
                    format!("ALTER ROLE {role} BYPASSRLS;"),
                );
            }
            Err(error) => return self.add_failure(&error, checks),
        }
        self.check_partitions(checks).await;
        match self.try_rows(rows).await {
            Ok(tried) => tried.check(&self.as_role(), checks),
            Err(error) if is_lock_timeout(&error) => checks.warn(
                "update",
                "not tried: the application, or a change of its schema, has locked what it needs",
                "try again; consumers wait for such locks",
            ),
            Err(error) => self.add_failure(&error, checks),
        }
    }

    async fn check_partitions(&self, checks: &mut PlanChecks) {
        let query = sqlx::query_scalar(COUNT_PARTITIONS).bind(&self.inspector.table.sql);
        if let Ok(partitions @ MAX_PARTITIONS..) = query.fetch_one(&*self.inspector.pool).await {
            checks.warn(
                "update",
                format!("each batch is planned for {partitions} partitions, a second for a thousand of them"),
                "make a run of each partition of the level below: IMAGES_TABLE=its name",
            );
        }
    }

    /// Batches are halved until each row that is refused is alone.
    async fn try_rows(&self, rows: &[RehearsedRow]) -> Result<RehearsedRows, sqlx::Error> {
        let mut rehearsed = RehearsedRows::default();
        let mut batches: Vec<&[RehearsedRow]> = rows.chunks(BATCH_ROWS).rev().collect();
        while let Some(batch) = batches.pop() {
            match self.try_batch(batch).await {
                Ok((locked, added)) => {
                    rehearsed.add(batch.len(), locked);
                    rehearsed.added += added;
                }
                Err(error) if !is_about_rows(&error) => return Err(error),
                Err(error) => {
                    if let [(id, _)] = batch {
                        rehearsed.add_refusal(id, self.describe_refusal(&error));
                    } else {
                        let (first, second) = batch.split_at(batch.len() / 2);
                        batches.extend([second, first]);
                    }
                }
            }
            if rehearsed.refused_rows() >= MAX_REFUSED_ROWS {
                break;
            }
        }
        Ok(rehearsed)
    }

    /// The rows that nothing had locked, and whether each was set; and how many rows that added to the table.
    async fn try_batch(
        &self,
        rows: &[RehearsedRow],
    ) -> Result<(Vec<(String, bool)>, i64), sqlx::Error> {
        let mut transaction = self.begin().await?;
        let before = self.rows_added(&mut transaction).await?;
        let column = |text: fn(&RehearsedRow) -> &str| rows.iter().map(text).collect::<Vec<_>>();
        let table = &self.inspector.table;
        let set: Vec<(String, bool)> = sqlx::query_as(AssertSqlSafe(rehearsal_sql(table)))
            .bind(column(|(id, _)| id))
            .bind(column(|(_, route)| &route.old_path))
            .bind(column(|(_, route)| &route.new_path))
            .bind(column(|_| ""))
            .bind(vec![None::<i64>; rows.len()])
            .bind(column(|(_, route)| &route.destination_key))
            .fetch_all(&mut *transaction)
            .await?;
        sqlx::raw_sql(FIRE_DEFERRED)
            .execute(&mut *transaction)
            .await?;
        let is_set = |id: &str| set.iter().any(|(other, is_set)| *is_set && other == id);
        let moved = rows.iter().filter(|(id, _)| is_set(id));
        let moved = moved.map(|(id, route)| (&**id, &*route.new_path));
        let (ids, paths): (Vec<&str>, Vec<&str>) = moved.unzip();
        sqlx::query(AssertSqlSafe(later_path_check_sql(table)))
            .bind(ids)
            .bind(paths)
            .execute(&mut *transaction)
            .await?;
        let added = self.rows_added(&mut transaction).await? - before;
        transaction.rollback().await?;
        Ok((set, added))
    }

    async fn rows_added(&self, transaction: &mut PgTransaction<'_>) -> Result<i64, sqlx::Error> {
        let query = sqlx::query_scalar(SELECT_ADDED).bind(&self.inspector.table.sql);
        query.fetch_one(&mut **transaction).await
    }

    async fn hides_rows(&self) -> Result<bool, sqlx::Error> {
        let mut transaction = self.begin().await?;
        let query = sqlx::query_scalar(HIDES_ROWS).bind(&self.inspector.table.sql);
        query.fetch_one(&mut *transaction).await
    }

    async fn begin(&self) -> Result<PgTransaction<'static>, sqlx::Error> {
        let mut transaction = self.inspector.pool.begin().await?;
        let role = self.role.map(quote_identifier);
        let role = role.map_or_else(String::new, |role| format!("; SET LOCAL ROLE {role}"));
        sqlx::raw_sql(AssertSqlSafe(format!("{TIMEOUTS}{role}")))
            .execute(&mut *transaction)
            .await?;
        Ok(transaction)
    }

    fn as_role(&self) -> String {
        self.role
            .map_or(String::new(), |role| format!(", as '{role}'"))
    }

    fn role_name(&self) -> String {
        quote_identifier(self.role.unwrap_or(self.user))
    }

    /// The statement itself fails, whatever its rows.
    fn add_failure(&self, error: &sqlx::Error, checks: &mut PlanChecks) {
        let refusal = self.describe_refusal(error);
        let (code, message) = (refusal.code, refusal.message);
        let finding = format!("the update fails{}: {code}: {message}", self.as_role());
        checks.fail("update", finding, refusal.mend);
    }

    fn describe_refusal(&self, error: &sqlx::Error) -> Refusal {
        let database = error.as_database_error();
        let database = database.and_then(|error| error.try_downcast_ref::<PgDatabaseError>());
        let sorted = path_update_error(error);
        let is_row = matches!(sorted, StatementError::Rejected { .. });
        let (code, message, mend) = match (database, sorted) {
            (_, StatementError::Rejected { code, message })
                if [PATH_REWRITTEN, ID_REWRITTEN].contains(&&*code) =>
            {
                let mend = "have the trigger leave path and id as they are set";
                (code, message, mend.into())
            }
            (Some(error), _) => {
                let (code, message) = (error.code().to_owned(), error.message().to_owned());
                (code, message, self.mend_of(error, is_row))
            }
            (None, _) => ("failed".into(), error.to_string(), "try again".into()),
        };
        Refusal {
            code,
            message,
            mend,
            ids: Vec::new(),
        }
    }

    fn mend_of(&self, error: &PgDatabaseError, is_row: bool) -> String {
        match error.code() {
            "22001" => self.inspector.widen_path(),
            "42501" => grant_sql(error, &self.role_name(), self.user),
            "23505" => format!(
                "{}; such rows are recorded as failed: decide which row keeps the path",
                error.detail().unwrap_or("the new path is taken")
            ),
            "25006" => "the database takes no writes: DATABASE_URL must lead to the primary, without default_transaction_read_only".into(),
            "57014" => "a trigger, a constraint, or planning for all partitions takes longer than 5 s for a few rows".into(),
            _ if !is_row => {
                let detail = error.detail().unwrap_or(error.message());
                format!("{detail} Consumers wait until the table can be updated")
            }
            _ => error.hint().map_or_else(
                || "correct the rows, the constraint or the trigger; such rows are recorded as failed".into(),
                ToOwned::to_owned,
            ),
        }
    }
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.is_some_and(|error| error.code().is_some_and(|code| code == "55P03"))
}

fn is_about_rows(error: &sqlx::Error) -> bool {
    matches!(path_update_error(error), StatementError::Rejected { .. })
}

impl RehearsedRows {
    fn add(&mut self, tried: usize, locked: Vec<(String, bool)>) {
        self.tried += tried;
        self.set += locked.iter().filter(|(_, is_set)| *is_set).count();
        let kept = locked.into_iter().filter(|(_, is_set)| !is_set);
        self.kept.extend(kept.map(|(id, _)| id));
    }

    fn add_refusal(&mut self, id: &str, refusal: Refusal) {
        self.tried += 1;
        let is_same = |one: &Refusal| one.code == refusal.code && one.mend == refusal.mend;
        let index = self.refusals.iter().position(is_same);
        let index = index.unwrap_or_else(|| {
            self.refusals.push(refusal);
            self.refusals.len() - 1
        });
        self.refusals[index].ids.push(id.to_owned());
    }

    fn refused_rows(&self) -> usize {
        self.refusals.iter().map(|refusal| refusal.ids.len()).sum()
    }

    fn check(&self, as_role: &str, checks: &mut PlanChecks) {
        let Self {
            tried,
            set,
            kept,
            added,
            ..
        } = self;
        let passed_over = tried - set - kept.len() - self.refused_rows();
        for one in &self.refusals {
            let (count, ids) = (one.ids.len(), one.ids.join(", "));
            let (code, message) = (&one.code, &one.message);
            let finding = format!(
                "Postgres refuses {count} of {tried} rows that were tried{as_role} (ids: {ids}): {code}: {message}"
            );
            checks.fail("update", finding, &one.mend);
        }
        if !kept.is_empty() {
            let ids = kept.join(", ");
            checks.fail(
                "update",
                format!("a trigger keeps rows from being set (ids: {ids})"),
                "correct the trigger; such rows are recorded as failed, RowLocked",
            );
        }
        if *added > 0 {
            let finding = format!(
                "a trigger added {} to the table itself when {set} were set: if they keep the old path, the run never ends",
                counted(added.unsigned_abs(), "row", "rows")
            );
            checks.warn(
                "update",
                finding,
                "have the trigger write them to another table, or leave them out with ROW_FILTER",
            );
        }
        if passed_over > 0 {
            checks.warn(
                "update",
                format!(
                    "{passed_over} of {tried} rows were not tried: they are locked or were changed"
                ),
                "consumers come back to such rows",
            );
        }
        if *set > 0 {
            let finding = format!(
                "{} set and set back, in a transaction{as_role}",
                counted(*set, "row was", "rows were")
            );
            checks.ok("update", finding);
        }
    }
}

/// What lets `role` do what a trigger does. The server names the object in its message only.
fn grant_sql(error: &PgDatabaseError, role: &str, user: &str) -> String {
    let statement = error.r#where().and_then(|context| {
        let (_, statement) = context.split_once("SQL statement \"")?;
        statement.split_whitespace().next().map(str::to_uppercase)
    });
    let verb = statement
        .filter(|verb| ["SELECT", "INSERT", "UPDATE", "DELETE"].contains(&&**verb))
        .unwrap_or_else(|| "ALL".into());
    let words: Vec<&str> = error.message().split(' ').collect();
    let (right, kind, name) = match words[..] {
        ["permission", "denied", "for", "table", name] => (&*verb, "", name),
        ["permission", "denied", "for", "sequence", name] => ("USAGE", "SEQUENCE ", name),
        ["permission", "denied", "for", "schema", name] => ("USAGE", "SCHEMA ", name),
        ["permission", "denied", "for", "function", name] => ("EXECUTE", "FUNCTION ", name),
        ["permission", "denied", "to", "set", "role", ..] => {
            return format!("GRANT {role} TO {};", quote_identifier(user));
        }
        _ => return format!("grant {role} what it lacks"),
    };
    format!("GRANT {right} ON {kind}{name} TO {role};")
}
