//! The application whose images move: it uses them until everything has moved, and then looks at
//! every row and every object.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::postgres::PgPool;

use super::environment::{QUEUE_NAME, StackEnvironment};
use super::table_mark::{self, TableMark};
use crate::checker::{CheckReport, check_invariants};
use crate::run::{allowed_writes, print_report, print_status, print_violations, read_moved_rows};
use crate::seed::{SeededRowKind, SeededRows, expected_rows};
use crate::traffic::{Traffic, TrafficRates, TrafficReport};

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Between two progress lines.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// What the ledger and the queues say at the end, beside what the checker found.
struct StackOutcome {
    seconds: f64,
    left: u64,
    dead: u64,
}

pub(super) async fn run_application(surroundings: &StackEnvironment) -> Result<bool> {
    let application = &surroundings.application;
    mark_used(surroundings).await?;
    let seeded = Arc::new(expected_rows(application, &surroundings.seed)?);
    let to_do = seeded.count_kind(SeededRowKind::ToMove);
    let rates = TrafficRates {
        writes_per_second: 200.0,
        max_writes: allowed_writes(to_do, 0),
        seed: surroundings.seed.seed,
        ..TrafficRates::default()
    };
    let traffic = Traffic::start(application, Arc::clone(&seeded), &rates).await?;
    let end = wait_until_finished(surroundings, &traffic, to_do).await?;
    let traffic = traffic.stop().await;
    print_status("Checking every row and every object …");
    let verdict = check_invariants(application, &seeded, &traffic.log).await?;
    report_outcome(&verdict, &traffic, &end, &seeded)
}

/// What an earlier application wrote is not known here: it could not be distinguished from a fault.
async fn mark_used(surroundings: &StackEnvironment) -> Result<()> {
    let (pool, table) = (
        surroundings.application.connect_pool(1).await?,
        &surroundings.application.table.name,
    );
    ensure!(
        table_mark::read_mark(&pool, table).await? == Some(TableMark::Seeded),
        "an application has used these images before: begin anew with docker-compose down --volumes"
    );
    table_mark::write_mark(&pool, table, TableMark::Used).await
}

/// Until the feeder has finished and the queue is empty. Whatever is killed meanwhile comes back or
/// not: an application lives on.
async fn wait_until_finished(
    surroundings: &StackEnvironment,
    traffic: &Traffic,
    to_do: usize,
) -> Result<StackOutcome> {
    let queue = surroundings.queue_url(QUEUE_NAME).await?;
    let queue = queue.context("there is no queue: seed first")?;
    let pool = surroundings.application.connect_pool(1).await?;
    let (begun, mut printed) = (Instant::now(), Instant::now());
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let Ok(so_far) = read_moved_rows(&pool).await else {
            continue;
        };
        traffic.allow_writes(allowed_writes(to_do, so_far));
        if printed.elapsed() > STATUS_INTERVAL {
            printed = Instant::now();
            let (reads, broken) = traffic.read_counts();
            print_status(&format!(
                "{so_far} of {to_do} moved · {reads} reads, {broken} broken"
            ));
        }
        let depth = surroundings.services.queue_depth(&queue).await;
        let is_empty = depth.is_ok_and(|depth| depth.total() == 0);
        if is_empty && has_finished(&pool).await.unwrap_or(false) {
            break;
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let dead = surroundings.queue_url(&format!("{QUEUE_NAME}-dlq")).await?;
    let dead = dead.context("there is no dead-letter queue")?;
    Ok(StackOutcome {
        seconds,
        left: surroundings.services.queue_depth(&queue).await?.total(),
        dead: surroundings.services.queue_depth(&dead).await?.total(),
    })
}

/// Whether the feeder found nothing left to do.
async fn has_finished(pool: &PgPool) -> Result<bool> {
    let sql = "SELECT coalesce(bool_and(finished_at IS NOT NULL), false) FROM bucket_brigade.run";
    Ok(sqlx::query_scalar(sql).fetch_one(pool).await?)
}

fn report_outcome(
    verdict: &CheckReport,
    traffic: &TrafficReport,
    end: &StackOutcome,
    seeded: &SeededRows,
) -> Result<bool> {
    print_violations(&[&verdict.violations[..], &traffic.broken_read_details].concat());
    let ended =
        verdict.moved + verdict.changed_by_application + verdict.failed + verdict.already_moved;
    let is_complete = end.left == 0 && ended == verdict.images;
    let holds = verdict.has_passed() && traffic.broken_reads == 0 && is_complete;
    print_report(
        &render_table(verdict, traffic, end, seeded),
        holds,
        None::<&()>,
    )?;
    print_status(if holds {
        "See for yourself: docker-compose run --rm feeder verify --full, or status, or report"
    } else {
        "See docker-compose logs, and docker-compose run --rm feeder failures"
    });
    Ok(holds)
}

fn render_table(
    verdict: &CheckReport,
    traffic: &TrafficReport,
    end: &StackOutcome,
    seeded: &SeededRows,
) -> String {
    let writes = traffic.application_writes + traffic.deletes;
    let is_wrong = verdict.violations.len() as u64;
    let lines = [
        ("", verdict.images, "images in scope"),
        (
            "",
            seeded.rows.len() as u64 - verdict.images,
            "rows out of scope, which must stay as they are",
        ),
        (
            "I1",
            traffic.reads,
            "images fetched meanwhile by the paths of their rows",
        ),
        (
            "",
            traffic.broken_reads,
            "  of them not found, or with the bytes of another",
        ),
        (
            "I2",
            verdict.moved,
            "copies compared with their sources: bytes, headers, metadata, tags",
        ),
        (
            "I3",
            writes,
            "images replaced or deleted meanwhile by the application",
        ),
        (
            "",
            verdict.lost_application_writes,
            "  of these rows undone by the migration",
        ),
        (
            "",
            verdict.overwritten_objects,
            "  of these objects overwritten by the migration",
        ),
        ("I4", verdict.moved, "moved"),
        (
            "",
            verdict.changed_by_application,
            "changed or deleted by the application first, and left alone",
        ),
        ("", verdict.failed, "failed"),
        (
            "",
            verdict.already_moved,
            "moved before the migration began",
        ),
        ("", end.left, "messages left in the queue"),
        ("", end.dead, "messages in the dead-letter queue"),
        (
            "",
            traffic.read_errors,
            "reads without an answer, while database or store was down",
        ),
        ("", is_wrong, "rows or objects that are not as they must be"),
    ];
    let lines =
        lines.map(|(invariant, number, what)| format!("{invariant:<2} {number:>9}  {what}"));
    let seconds = format!("{:>12.1}  seconds until everything had moved", end.seconds);
    format!("\n{}\n{seconds}\n", lines.join("\n"))
}
