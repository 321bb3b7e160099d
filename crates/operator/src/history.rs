//! Who did what to a run, when and why. `feeder runs --history` prints it.

use std::fmt;

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::with_timeout;
use bucket_brigade_common::printable::printable;
use serde::Serialize;
use sqlx::postgres::PgPool;

use crate::output::write_lines;

const INSERT_ACTION: &str =
    "INSERT INTO bucket_brigade.history (run_id, action, operator, reason, details)
    VALUES ($1, $2, $3, $4, $5)";

/// The newest thousand, the oldest of them first.
const SELECT_HISTORY: &str = r#"SELECT * FROM (
    SELECT h.id, h.run_id AS run, r.name, h.action, h.operator, h.reason, h.details,
           to_char(h.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS at
      FROM bucket_brigade.history h JOIN bucket_brigade.run r ON r.id = h.run_id
     ORDER BY h.id DESC LIMIT 1000) newest ORDER BY id"#;

#[derive(Debug, clap::Args)]
pub struct OperatorArgs {
    /// Why, as `feeder runs --history` prints it
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Who does it [default: USER@HOSTNAME]
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

#[derive(Debug)]
pub struct Operator {
    pub by: String,
    pub reason: Option<String>,
}

#[derive(Serialize)]
pub(crate) struct HistoryOutput {
    history: Vec<HistoryEntry>,
}

#[derive(Serialize, sqlx::FromRow)]
struct HistoryEntry {
    run: i64,
    name: String,
    at: String,
    action: String,
    operator: String,
    reason: Option<String>,
    details: Option<String>,
}

impl From<OperatorArgs> for Operator {
    fn from(args: OperatorArgs) -> Self {
        // A script's variable may be empty.
        let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
        Self {
            by: given(args.by).unwrap_or_else(default_operator_name),
            reason: given(args.reason),
        }
    }
}

impl Operator {
    pub(crate) fn new(by: &str, reason: Option<&str>) -> Self {
        Self {
            by: by.to_owned(),
            reason: reason.map(str::to_owned),
        }
    }

    /// Puts an action on record. What cannot be recorded is done all the same: a pause must not fail for it.
    pub(crate) async fn record(
        &self,
        pool: &PgPool,
        run: i64,
        action: &str,
        details: Option<&str>,
    ) {
        let query = sqlx::query(INSERT_ACTION).bind(run).bind(action);
        let query = query.bind(&self.by).bind(&self.reason).bind(details);
        if let Err(error) = with_timeout(query.execute(pool)).await {
            tracing::warn!(%error, action, "this may not be in the history of run {run}");
        }
    }
}

impl HistoryOutput {
    pub(crate) async fn read(pool: &PgPool) -> Result<Self, StatementError> {
        let history = with_timeout(sqlx::query_as(SELECT_HISTORY).fetch_all(pool)).await?;
        Ok(Self { history })
    }
}

impl fmt::Display for HistoryOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_lines(f, &self.history, "nothing was done to any run")
    }
}

impl fmt::Display for HistoryEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            run,
            name,
            at,
            action,
            operator,
            ..
        } = self;
        write!(f, "{at}  {} (run {run}): {action}", printable(name))?;
        if let Some(details) = &self.details {
            write!(f, " {}", printable(details))?;
        }
        write!(f, " by {}", printable(operator))?;
        if let Some(reason) = &self.reason {
            write!(f, ": {}", printable(reason))?;
        }
        Ok(())
    }
}

/// The user who is logged in, as far as the environment says.
fn default_operator_name() -> String {
    let of = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
    let user = of("USER")
        .or_else(|| of("LOGNAME"))
        .unwrap_or_else(|| "an operator".into());
    match of("HOSTNAME") {
        Some(host) => format!("{user}@{host}"),
        None => user,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_reason_is_none() {
        for (reason, kept) in [("", None), (" ", None), ("release", Some("release"))] {
            let operator = Operator::from(OperatorArgs {
                reason: Some(reason.into()),
                by: Some(String::new()),
            });
            assert_eq!(operator.reason.as_deref(), kept);
            assert!(!operator.by.is_empty());
        }
    }
}
