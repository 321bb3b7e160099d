//! The application's table, its server, and what an update of the path costs it.

use bucket_brigade_common::empty_scope::EmptyScope;
use bucket_brigade_common::ledger::{self, HeapAccess, RunSpec};
use bucket_brigade_common::sql::quote_identifier;
use indicatif::DecimalBytes;

use super::PlanSpec;
use super::check::PlanChecks;
use super::recorded_run::{RecordedRun, check_ledger};
use super::table_inspector::{
    COUNT_UNANALYSED, COUNT_UNLOGGED, RowCounts, SELECT_TRIGGERS, ServerInfo, TableIndex,
    TableInspector,
};

const CONNECTIONS_PER_CONSUMER: u32 = 3;
const FEEDER_CONNECTIONS: u32 = 4;

/// An entry of a partial index with its share of the page; measured with ids of 8 bytes, at ten million rows.
const BYTES_PER_INDEXED_ROW: u64 = 22;

pub(super) async fn check_rows(
    inspector: &TableInspector,
    checks: &mut PlanChecks,
) -> Option<RowCounts> {
    match inspector.count_rows().await {
        Ok(Some(counts)) => return Some(counts),
        Ok(None) => checks.warn(
            "rows",
            "they could not be counted in time",
            "there is no estimate; try again when the database has less to do",
        ),
        Err(error) => checks.fail_by_ledger("rows", &error.into()),
    }
    None
}

/// Why nothing is in scope: a run that is at its end, a table without paths, or a wrong setting.
pub(super) async fn check_empty_scope(
    inspector: &TableInspector,
    run: Option<&RecordedRun>,
    checks: &mut PlanChecks,
) {
    if let Some(run) = run.filter(|run| run.progress.has_had_rows()) {
        let why = run.nothing_left.as_ref();
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        return checks.ok("rows", format!("no row is in scope any more{why}"));
    }
    let wrong =
        |setting| format!("correct {setting}: the feeder would move nothing, and exit with 66");
    let TableInspector {
        pool, table, rule, ..
    } = inspector;
    let sample = ledger::sample_paths(pool, table, rule).await;
    match sample.map(|sample| EmptyScope::explain(rule, &sample)) {
        Ok(why @ EmptyScope::LeftOut(_)) => {
            checks.fail("rows", why.to_string(), wrong("ROW_FILTER"));
        }
        Ok(why @ EmptyScope::OtherPaths(_)) => {
            checks.fail("rows", why.to_string(), wrong("OLD_PREFIX or PATH_COLUMN"));
        }
        Ok(why) => checks.warn(
            "rows",
            format!("no row is in scope: {why}"),
            "check IMAGES_TABLE and PATH_COLUMN, unless that is so",
        ),
        Err(error) => checks.fail(
            "rows",
            format!("no row is in scope, and paths cannot be read: {error}"),
            "check OLD_PREFIX and PATH_COLUMN",
        ),
    }
}

/// Returns the run that is on record.
pub(super) async fn check_server(
    inspector: &TableInspector,
    run: &RunSpec,
    server: &ServerInfo,
    spec: &PlanSpec,
    checks: &mut PlanChecks,
) -> Result<Option<RecordedRun>, sqlx::Error> {
    let (ServerInfo { version, user, .. }, table) = (server, &inspector.table.name);
    checks.ok(
        "database",
        format!("Postgres {version}, table {table}, as '{user}'"),
    );
    if spec.role.is_none() {
        check_privileges(inspector, server, checks);
    }
    let recorded = check_ledger(inspector, run, server, spec.second_run, checks).await;
    check_connections(server, spec.consumers, checks);
    check_replicas(server, checks);
    check_indexes(&inspector.list_indexes().await?, checks);
    if inspector.ask::<i64>(COUNT_UNLOGGED).await? > 0 {
        let finding = format!("{table} is unlogged: a crash of the server empties it");
        let mend = format!("ALTER TABLE {} SET LOGGED;", inspector.table.sql);
        checks.warn("database", finding, mend);
    }
    let triggers: Vec<String> = inspector.ask(SELECT_TRIGGERS).await?;
    if !triggers.is_empty() {
        checks.warn(
            "triggers",
            format!("each update of a path sets off: {}", triggers.join(", ")),
            "make sure that they bear it, and refuse nothing",
        );
    }
    Ok(recorded)
}

/// Without statistics the server may plan badly, and the feeder has no estimate of what is in scope.
pub(super) async fn check_statistics(
    inspector: &TableInspector,
    checks: &mut PlanChecks,
) -> Result<(), sqlx::Error> {
    let without: i64 = inspector.ask(COUNT_UNANALYSED).await?;
    if without > 0 {
        let finding = format!("the server has none of {without} tables or partitions");
        let mend = format!("ANALYZE {};", inspector.table.sql);
        checks.warn("statistics", finding, mend);
    }
    Ok(())
}

/// What a sweep reads, and what would make it read only what is left.
pub(super) async fn check_feed_index(
    inspector: &TableInspector,
    counts: RowCounts,
    checks: &mut PlanChecks,
) -> Result<(), sqlx::Error> {
    let TableInspector {
        pool, table, rule, ..
    } = inspector;
    let finding = if let Some(index) = ledger::find_partial_index(pool, table, rule).await? {
        format!("each goes through {}, and costs what is left", index.name)
    } else {
        let bytes = DecimalBytes(counts.in_scope * BYTES_PER_INDEXED_ROW);
        let writes = match counts.indexes_to_write {
            0 => "; updates then write every index",
            _ => "",
        };
        let create = ledger::create_index_sql(table, rule);
        let random_ids = ledger::find_random_ids(pool, table).await?;
        let table = DecimalBytes(counts.table_bytes);
        let cost = match random_ids {
            None => format!("each reads the table ({table})"),
            Some(HeapAccess::Granted) => format!(
                "ids are random: the last reads a page of the table for each row, those before it all of them once ({table})"
            ),
            Some(HeapAccess::Denied) => format!(
                "ids are random: each reads a page of the table for each row; on Postgres 14 or newer all but the last read it once ({table}) where the feeder may SELECT ctid"
            ),
        };
        format!(
            "{cost}. To read only what is left ({bytes}, 1 s per million rows{writes}): {create}"
        )
    };
    checks.ok("sweeps", finding);
    Ok(())
}

pub(super) async fn check_publications(
    inspector: &TableInspector,
    checks: &mut PlanChecks,
) -> Result<bool, sqlx::Error> {
    let mend = inspector.missing_replica_identity().await?;
    if !mend.is_empty() {
        let finding =
            "the table is published and has no replica identity: Postgres refuses each update";
        checks.fail("publication", finding, mend.join(" "));
    }
    Ok(mend.is_empty())
}

pub(super) async fn check_lengths(
    inspector: &TableInspector,
    checks: &mut PlanChecks,
) -> Result<(), sqlx::Error> {
    match inspector.find_too_long_paths().await? {
        None => {}
        Some((most, None)) => checks.warn(
            "lengths",
            format!("a path has at most {most} characters; not all rows were read in time"),
            "a row whose new path is longer will be recorded as failed, 22001",
        ),
        Some((_, Some(ids))) if ids.is_empty() => {}
        Some((most, Some(ids))) => {
            let ids = ids.join(", ");
            let finding = format!(
                "new paths are longer than the column's {most} characters (ids: {ids}, and perhaps more)"
            );
            checks.fail("lengths", finding, inspector.widen_path());
        }
    }
    Ok(())
}

fn check_privileges(inspector: &TableInspector, server: &ServerInfo, checks: &mut PlanChecks) {
    let user = &server.user;
    if server.may_update {
        return checks.ok("rights", format!("'{user}' may set paths"));
    }
    let grant = inspector.grant_update("ROLE");
    checks.warn(
        "rights",
        format!(
            "'{user}' may read, but not set paths: fine for the feeder, consumers need another role"
        ),
        format!("for the consumers' ROLE: {grant} Then try it: feeder plan --as-role ROLE (GRANT ROLE TO {})", quote_identifier(user)),
    );
}

fn check_connections(server: &ServerInfo, consumers: u32, checks: &mut PlanChecks) {
    let needed = i64::from(consumers * CONNECTIONS_PER_CONSUMER + FEEDER_CONNECTIONS);
    let free = (server.max_connections - server.connections).max(0);
    let finding = format!(
        "{consumers} consumers and the feeder need {needed}, of {} there are {free} free",
        server.max_connections
    );
    if let Some((name, limit)) = server.lower_limit(needed) {
        let finding = format!(
            "{consumers} consumers and the feeder need {needed}, and this {name} may have {limit}"
        );
        let mend = format!("ALTER {name} … CONNECTION LIMIT, or fewer consumers");
        // Those of the consumers are another role's, perhaps.
        if name == "ROLE" && limit >= FEEDER_CONNECTIONS.into() {
            return checks.warn("connections", finding, mend);
        }
        return checks.fail("connections", finding, mend);
    }
    if needed <= free {
        return checks.ok("connections", finding);
    }
    let mend = "fewer consumers with a higher MAX_CONCURRENCY each, PgBouncer, or a higher max_connections";
    checks.fail("connections", finding, mend);
}

fn check_replicas(server: &ServerInfo, checks: &mut PlanChecks) {
    let stops = "with MAX_REPLICA_LAG the work stops while one is further behind";
    let (replicas, user) = (server.replicas, &server.user);
    let finding = if server.has_aurora_status {
        format!("Aurora's readers; {stops}")
    } else if server.is_aurora {
        "Aurora's readers, whose lag is not seen: MAX_REPLICA_LAG is refused".into()
    } else if replicas == 0 {
        "none stream from this server".into()
    } else if server.may_see_lag {
        format!("{replicas}; {stops}")
    } else {
        return checks.warn(
            "replicas",
            format!("{replicas}, and '{user}' may not see how far they are behind"),
            format!("GRANT pg_monitor TO \"{user}\"; and set MAX_REPLICA_LAG"),
        );
    };
    checks.ok("replicas", finding);
}

fn check_indexes(indexes: &[TableIndex], checks: &mut PlanChecks) {
    let names = |is_wanted: fn(&TableIndex) -> bool| {
        let name = |index: &TableIndex| format!("{} ({})", index.name, DecimalBytes(index.bytes));
        let wanted = indexes.iter().filter(|index| is_wanted(index));
        wanted.map(name).collect::<Vec<_>>().join(", ")
    };
    let holding = names(|index| index.has_path);
    if holding.is_empty() {
        let finding = "none holds the path: updates need not touch them";
        return checks.ok("indexes", finding);
    }
    let all = names(|_| true);
    checks.warn(
        "indexes",
        format!(
            "the path is in {holding}: each update of a path writes every index of the table: {all}"
        ),
        "keep MAX_COMMIT_LATENCY on; drop indexes that are not needed now, and create them again afterwards",
    );
    let unique = names(|index| index.has_path && index.is_unique);
    if !unique.is_empty() {
        checks.warn(
            "indexes",
            format!("paths must be unique: {unique}"),
            "a row whose new path is taken will be recorded as failed",
        );
    }
}
