//! The application's table, its server, and what an update of the path costs it.

use bucket_brigade_common::ledger::{Index, LedgerError, RowCounts, Server, Survey};

use super::check::Check;
use super::show::bytes;

/// Connections of a consumer, and of the feeder.
const OF_A_CONSUMER: u32 = 3;
const OF_THE_FEEDER: u32 = 4;

/// Looks at the table and its server; returns the rows, when they could be counted.
pub(super) async fn check(
    survey: &Survey,
    consumers: u32,
    checks: &mut Vec<Check>,
) -> Option<RowCounts> {
    let looked = look(survey, consumers, checks).await;
    if let Err(error) = looked {
        checks.push(Check::of_ledger("database", &error));
    }
    match survey.count().await {
        Ok(counts) => {
            if counts.in_scope == 0 {
                checks.push(Check::warns(
                    "rows",
                    "no row is in scope",
                    "check OLD_PREFIX and PATH_COLUMN, unless everything has moved",
                ));
            }
            Some(counts)
        }
        Err(error) => {
            checks.push(Check::of_ledger("rows", &error));
            None
        }
    }
}

async fn look(survey: &Survey, consumers: u32, checks: &mut Vec<Check>) -> Result<(), LedgerError> {
    let server = survey.server().await?;
    checks.push(Check::good(
        "database",
        format!(
            "Postgres {}, table {}, as '{}'",
            server.version,
            survey.table_name(),
            server.user
        ),
    ));
    checks.push(rights(survey, &server));
    checks.push(ledger(&server));
    checks.push(connections(&server, consumers));
    checks.push(replicas(&server));
    checks.extend(indexes(&survey.indexes().await?));
    let triggers = survey.triggers().await?;
    if !triggers.is_empty() {
        checks.push(Check::warns(
            "triggers",
            format!("each update of a path sets off: {}", triggers.join(", ")),
            "make sure that they bear it, and refuse nothing",
        ));
    }
    if survey.hides_rows().await? {
        checks.push(Check::fails(
            "rows",
            format!("row level security may hide rows from '{}'", server.user),
            format!("ALTER ROLE \"{}\" BYPASSRLS; or another role", server.user),
        ));
    }
    Ok(())
}

fn rights(survey: &Survey, server: &Server) -> Check {
    if server.may_update {
        return Check::good("rights", format!("'{}' may set paths", server.user));
    }
    Check::warns(
        "rights",
        format!(
            "'{}' may read, but not set paths: fine for the feeder, consumers need another role",
            server.user
        ),
        survey.grant_update("the consumers' role"),
    )
}

fn ledger(server: &Server) -> Check {
    match (server.has_ledger, server.may_make_ledger) {
        (true, true) => Check::good("ledger", "it exists: an earlier run is on record"),
        (false, true) => Check::good("ledger", "the feeder will make it, schema bucket_brigade"),
        (_, false) => Check::fails(
            "ledger",
            format!("'{}' may not make or alter the ledger", server.user),
            format!(
                "CREATE SCHEMA IF NOT EXISTS bucket_brigade AUTHORIZATION \"{0}\"; GRANT USAGE, CREATE ON SCHEMA bucket_brigade TO \"{0}\";",
                server.user
            ),
        ),
    }
}

fn connections(server: &Server, consumers: u32) -> Check {
    let needed = consumers * OF_A_CONSUMER + OF_THE_FEEDER;
    let free = server.max_connections.saturating_sub(server.connections);
    let finding = format!(
        "{consumers} consumers and the feeder need {needed}, of {} there are {free} free",
        server.max_connections
    );
    if needed <= free {
        return Check::good("connections", finding);
    }
    Check::fails(
        "connections",
        finding,
        "fewer consumers with a higher MAX_CONCURRENCY each, PgBouncer, or a higher max_connections",
    )
}

fn replicas(server: &Server) -> Check {
    match (server.replicas, server.may_see_lag) {
        (0, _) => Check::good("replicas", "none stream from this server"),
        (some, true) => Check::good(
            "replicas",
            format!("{some}; with MAX_REPLICA_LAG the work stops while one is further behind"),
        ),
        (some, false) => Check::warns(
            "replicas",
            format!(
                "{some}, and '{}' may not see how far they are behind",
                server.user
            ),
            format!(
                "GRANT pg_monitor TO \"{}\"; and set MAX_REPLICA_LAG",
                server.user
            ),
        ),
    }
}

fn indexes(indexes: &[Index]) -> Vec<Check> {
    let names = |wanted: &dyn Fn(&Index) -> bool| {
        let wanted = indexes.iter().filter(|index| wanted(index));
        let names: Vec<String> = wanted
            .map(|index| format!("{} ({})", index.name, bytes(index.bytes)))
            .collect();
        names.join(", ")
    };
    if !indexes.iter().any(|index| index.has_path) {
        return vec![Check::good(
            "indexes",
            "none holds the path: updates need not touch them",
        )];
    }
    let mut checks = vec![Check::warns(
        "indexes",
        format!(
            "the path is in {}: each update of a path writes every index of the table: {}",
            names(&|index| index.has_path),
            names(&|_| true)
        ),
        "keep MAX_COMMIT_LATENCY on, and drop what nobody needs before, to make it again after",
    )];
    if indexes
        .iter()
        .any(|index| index.has_path && index.is_unique)
    {
        checks.push(Check::warns(
            "indexes",
            format!(
                "paths must be unique: {}",
                names(&|index| index.has_path && index.is_unique)
            ),
            "a row whose new path is taken will be recorded as failed",
        ));
    }
    checks
}
