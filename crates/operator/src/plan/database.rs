//! The application's table, its server, and what an update of the path costs it.

use bucket_brigade_common::empty_scope::EmptyScope;
use bucket_brigade_common::ledger::feed_source::RunProgress;
use bucket_brigade_common::ledger::{HeapAccess, RunSpec};
use indicatif::DecimalBytes;

use super::check::PlanCheck;
use super::ledger::check_ledger;
use super::table_inspector::{RowCounts, ServerInfo, TableIndex, TableInspector};

/// Connections of a consumer, and of the feeder.
const CONNECTIONS_PER_CONSUMER: u32 = 3;
const FEEDER_CONNECTIONS: u32 = 4;

/// An entry of a partial index with its share of the page; measured with ids of 8 bytes, at ten million rows.
const BYTES_PER_INDEXED_ROW: u64 = 22;

/// The table's rows, where they could be counted.
pub(super) async fn check_rows(
    inspector: &TableInspector,
    checks: &mut Vec<PlanCheck>,
) -> Option<RowCounts> {
    match inspector.count_rows().await {
        Ok(Some(counts)) => Some(counts),
        Ok(None) => {
            let finding = "they could not be counted in time";
            let mend = "there is no estimate; try again when the database has less to do";
            checks.push(PlanCheck::new_warning("rows", finding, mend));
            None
        }
        Err(error) => {
            checks.push(PlanCheck::from_ledger_error("rows", &error.into()));
            None
        }
    }
}

/// Why nothing is in scope: a run that is at its end, a table without paths, or a wrong setting.
pub(super) async fn check_empty_scope(
    inspector: &TableInspector,
    progress: Option<RunProgress>,
) -> PlanCheck {
    if progress.is_some_and(|progress| progress.has_had_rows()) {
        return PlanCheck::new_ok("rows", "no row is in scope any more");
    }
    match inspector.explain_empty_scope().await {
        Ok(why @ EmptyScope::LeftOut(_)) => PlanCheck::new_failure(
            "rows",
            why.to_string(),
            "correct ROW_FILTER: the feeder would move nothing, and exit with 66",
        ),
        Ok(why @ EmptyScope::OtherPaths(_)) => PlanCheck::new_failure(
            "rows",
            why.to_string(),
            "correct OLD_PREFIX or PATH_COLUMN: the feeder would move nothing, and exit with 66",
        ),
        Ok(why) => PlanCheck::new_warning(
            "rows",
            format!("no row is in scope: {why}"),
            "check IMAGES_TABLE and PATH_COLUMN, unless that is so",
        ),
        Err(error) => PlanCheck::new_failure(
            "rows",
            format!("no row is in scope, and paths cannot be read: {error}"),
            "check OLD_PREFIX and PATH_COLUMN",
        ),
    }
}

/// Returns the numbers of the run that is on record.
pub(super) async fn check_server(
    inspector: &TableInspector,
    spec: &RunSpec,
    server: &ServerInfo,
    (consumers, role): (u32, Option<&str>),
    checks: &mut Vec<PlanCheck>,
) -> Result<Option<RunProgress>, sqlx::Error> {
    checks.push(PlanCheck::new_ok(
        "database",
        format!(
            "Postgres {}, table {}, as '{}'",
            server.version,
            inspector.table_name(),
            server.user
        ),
    ));
    if role.is_none() {
        checks.push(check_privileges(inspector, server));
    }
    let progress = check_ledger(inspector, spec, server, checks).await;
    checks.push(check_connections(server, consumers));
    checks.push(check_replicas(server));
    checks.extend(check_indexes(&inspector.list_indexes().await?));
    let triggers = inspector.update_triggers().await?;
    if !triggers.is_empty() {
        checks.push(PlanCheck::new_warning(
            "triggers",
            format!("each update of a path sets off: {}", triggers.join(", ")),
            "make sure that they bear it, and refuse nothing",
        ));
    }
    Ok(progress)
}

/// What a sweep reads, and what would make it read only what is left.
pub(super) async fn check_feed_index(
    inspector: &TableInspector,
    counts: RowCounts,
) -> Result<PlanCheck, sqlx::Error> {
    let (index, create) = inspector.feed_index().await?;
    if let Some(index) = index {
        let finding = format!("each goes through {index}, and costs what is left");
        return Ok(PlanCheck::new_ok("sweeps", finding));
    }
    let bytes = DecimalBytes(counts.in_scope * BYTES_PER_INDEXED_ROW);
    let writes = match counts.indexes_to_write {
        0 => "; updates then write every index",
        _ => "",
    };
    let table = DecimalBytes(counts.table_bytes);
    let cost = match inspector.random_ids().await? {
        None => format!("each reads the table ({table})"),
        Some(HeapAccess::Granted) => format!(
            "ids are random: the last reads a page of the table for each row, those before it all of them once ({table})"
        ),
        Some(HeapAccess::Denied) => format!(
            "ids are random: each reads a page of the table for each row; on Postgres 14 or newer all but the last read it once ({table}) where the feeder may SELECT ctid"
        ),
    };
    let finding = format!(
        "{cost}. To read only what is left ({bytes}, 1 s per million rows{writes}): {create}"
    );
    Ok(PlanCheck::new_ok("sweeps", finding))
}

pub(super) async fn check_publications(
    inspector: &TableInspector,
) -> Result<Option<PlanCheck>, sqlx::Error> {
    let mend = inspector.missing_replica_identity().await?;
    let finding =
        "the table is published and has no replica identity: Postgres refuses each update";
    Ok((!mend.is_empty()).then(|| PlanCheck::new_failure("publication", finding, mend.join(" "))))
}

pub(super) async fn check_lengths(
    inspector: &TableInspector,
) -> Result<Option<PlanCheck>, sqlx::Error> {
    let Some((most, too_long)) = inspector.find_too_long_paths().await? else {
        return Ok(None);
    };
    let Some(ids) = too_long else {
        let finding =
            format!("a path has at most {most} characters; not all rows were read in time");
        let mend = "a row whose new path is longer will be recorded as failed, 22001";
        return Ok(Some(PlanCheck::new_warning("lengths", finding, mend)));
    };
    let finding = format!(
        "new paths are longer than the column's {most} characters (ids: {}, and perhaps more)",
        ids.join(", ")
    );
    Ok((!ids.is_empty())
        .then(|| PlanCheck::new_failure("lengths", finding, inspector.widen_path())))
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
        format!(
            "{} Then try it: feeder plan --as-role ROLE",
            inspector.grant_update("the consumers' role")
        ),
    )
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
    if server.has_aurora_status {
        let finding =
            "Aurora's readers; with MAX_REPLICA_LAG the work stops while one is further behind";
        return PlanCheck::new_ok("replicas", finding);
    }
    if server.is_aurora {
        let finding = "Aurora's readers, whose lag is not seen: MAX_REPLICA_LAG is refused";
        return PlanCheck::new_ok("replicas", finding);
    }
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
