//! The application's table, its server, and what an update of the path costs it.

use indicatif::DecimalBytes;

use super::check::PlanCheck;
use super::table_inspector::{RowCounts, ServerInfo, TableIndex, TableInspector};

/// Connections of a consumer, and of the feeder.
const CONNECTIONS_PER_CONSUMER: u32 = 3;
const FEEDER_CONNECTIONS: u32 = 4;

/// Returns the rows, when they could be counted.
pub(super) async fn check_database(
    inspector: &TableInspector,
    consumers: u32,
    checks: &mut Vec<PlanCheck>,
) -> Option<RowCounts> {
    if let Err(error) = check_server(inspector, consumers, checks).await {
        checks.push(PlanCheck::from_ledger_error("database", &error.into()));
    }
    match inspector.count_rows().await {
        Ok(counts) => {
            if counts.in_scope == 0 {
                checks.push(PlanCheck::new_warning(
                    "rows",
                    "no row is in scope",
                    "check OLD_PREFIX and PATH_COLUMN, unless everything has moved",
                ));
            }
            Some(counts)
        }
        Err(error) => {
            checks.push(PlanCheck::from_ledger_error("rows", &error));
            None
        }
    }
}

async fn check_server(
    inspector: &TableInspector,
    consumers: u32,
    checks: &mut Vec<PlanCheck>,
) -> Result<(), sqlx::Error> {
    let server = inspector.server_info().await?;
    checks.push(PlanCheck::new_ok(
        "database",
        format!(
            "Postgres {}, table {}, as '{}'",
            server.version,
            inspector.table_name(),
            server.user
        ),
    ));
    checks.push(check_privileges(inspector, &server));
    checks.push(check_ledger(&server));
    checks.push(check_connections(&server, consumers));
    checks.push(check_replicas(&server));
    checks.extend(check_indexes(&inspector.list_indexes().await?));
    let triggers = inspector.update_triggers().await?;
    if !triggers.is_empty() {
        checks.push(PlanCheck::new_warning(
            "triggers",
            format!("each update of a path sets off: {}", triggers.join(", ")),
            "make sure that they bear it, and refuse nothing",
        ));
    }
    Ok(())
}

fn check_privileges(inspector: &TableInspector, server: &ServerInfo) -> PlanCheck {
    if server.may_update {
        return PlanCheck::new_ok("rights", format!("'{}' may set paths", server.user));
    }
    PlanCheck::new_warning(
        "rights",
        format!(
            "'{}' may read, but not set paths: fine for the feeder, consumers need another role",
            server.user
        ),
        inspector.grant_update("the consumers' role"),
    )
}

fn check_ledger(server: &ServerInfo) -> PlanCheck {
    match (server.has_ledger, server.may_create_ledger) {
        (true, true) => PlanCheck::new_ok("ledger", "it exists: an earlier run is on record"),
        (false, true) => {
            PlanCheck::new_ok("ledger", "the feeder will make it, schema bucket_brigade")
        }
        (_, false) => PlanCheck::new_failure(
            "ledger",
            format!("'{}' may not make or alter the ledger", server.user),
            format!(
                "CREATE SCHEMA IF NOT EXISTS bucket_brigade AUTHORIZATION \"{0}\"; GRANT USAGE, CREATE ON SCHEMA bucket_brigade TO \"{0}\";",
                server.user
            ),
        ),
    }
}

fn check_connections(server: &ServerInfo, consumers: u32) -> PlanCheck {
    let needed = i64::from(consumers * CONNECTIONS_PER_CONSUMER + FEEDER_CONNECTIONS);
    let free = (server.max_connections - server.connections).max(0);
    let finding = format!(
        "{consumers} consumers and the feeder need {needed}, of {} there are {free} free",
        server.max_connections
    );
    if needed <= free {
        return PlanCheck::new_ok("connections", finding);
    }
    PlanCheck::new_failure(
        "connections",
        finding,
        "fewer consumers with a higher MAX_CONCURRENCY each, PgBouncer, or a higher max_connections",
    )
}

fn check_replicas(server: &ServerInfo) -> PlanCheck {
    match (server.replicas, server.may_see_lag) {
        (0, _) => PlanCheck::new_ok("replicas", "none stream from this server"),
        (some, true) => PlanCheck::new_ok(
            "replicas",
            format!("{some}; with MAX_REPLICA_LAG the work stops while one is further behind"),
        ),
        (some, false) => PlanCheck::new_warning(
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

fn check_indexes(indexes: &[TableIndex]) -> Vec<PlanCheck> {
    let names = |wanted: &dyn Fn(&TableIndex) -> bool| {
        let wanted = indexes.iter().filter(|index| wanted(index));
        let names: Vec<String> = wanted
            .map(|index| format!("{} ({})", index.name, DecimalBytes(index.bytes)))
            .collect();
        names.join(", ")
    };
    if !indexes.iter().any(|index| index.has_path) {
        return vec![PlanCheck::new_ok(
            "indexes",
            "none holds the path: updates need not touch them",
        )];
    }
    let mut checks = vec![PlanCheck::new_warning(
        "indexes",
        format!(
            "the path is in {}: each update of a path writes every index of the table: {}",
            names(&|index| index.has_path),
            names(&|_| true)
        ),
        "keep MAX_COMMIT_LATENCY on, and drop before what is not needed, and make it again after",
    )];
    if indexes
        .iter()
        .any(|index| index.has_path && index.is_unique)
    {
        checks.push(PlanCheck::new_warning(
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
