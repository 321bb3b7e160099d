//! The application whose images move: it uses them until everything has moved, and then looks at
//! every row and every object.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sqlx::postgres::PgPool;

use super::mark::{self, Mark};
use super::surroundings::{QUEUE, Surroundings};
use crate::checker::{Verdict, full_sweep};
use crate::run::{moved, print, tell, tell_violations, writes_by};
use crate::seed::{Kind, Seeded, expected};
use crate::traffic::{Rates, Traffic, TrafficReport};

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Between two lines that tell how far it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// What the ledger and the queues say at the end, beside what the checker found.
struct End {
    seconds: f64,
    left: u64,
    dead: u64,
}

pub(super) async fn live(surroundings: &Surroundings) -> Result<bool> {
    let application = &surroundings.application;
    begin(surroundings).await?;
    let seeded = Arc::new(expected(application, &surroundings.seed)?);
    let to_do = seeded.count(Kind::ToMove);
    let rates = Rates {
        writes_per_second: 200.0,
        most_writes: writes_by(to_do, 0),
        seed: surroundings.seed.seed,
        ..Rates::default()
    };
    let traffic = Traffic::start(application, Arc::clone(&seeded), &rates).await?;
    let end = watch(surroundings, &traffic, to_do).await?;
    let traffic = traffic.stop().await;
    tell("Checking every row and every object …");
    let verdict = full_sweep(application, &seeded, &traffic.log).await?;
    judge(&verdict, &traffic, &end, &seeded)
}

/// What an earlier application wrote is not known here: it could not be told from a fault.
async fn begin(surroundings: &Surroundings) -> Result<()> {
    let (pool, table) = (
        surroundings.application.pool(1).await?,
        &surroundings.application.table.name,
    );
    ensure!(
        mark::of(&pool, table).await? == Some(Mark::Seeded),
        "an application has used these images before: begin anew with docker-compose down --volumes"
    );
    mark::set(&pool, table, Mark::Used).await
}

/// Until the feeder has finished and the queue is empty. Whatever is killed meanwhile comes back or
/// not: an application lives on.
async fn watch(surroundings: &Surroundings, traffic: &Traffic, to_do: usize) -> Result<End> {
    let queue = surroundings.queue_url(QUEUE).await?;
    let queue = queue.context("there is no queue: seed first")?;
    let pool = surroundings.application.pool(1).await?;
    let (begun, mut told) = (Instant::now(), Instant::now());
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Ok(so_far) = moved(&pool).await else {
            continue;
        };
        traffic.allow_writes(writes_by(to_do, so_far));
        if told.elapsed() > TELL_EVERY {
            told = Instant::now();
            let (reads, broken) = traffic.reads();
            tell(&format!(
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
    let dead = surroundings.queue_url(&format!("{QUEUE}-dlq")).await?;
    let dead = dead.context("there is no dead-letter queue")?;
    Ok(End {
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

fn judge(verdict: &Verdict, traffic: &TrafficReport, end: &End, seeded: &Seeded) -> Result<bool> {
    tell_violations(&[&verdict.violations[..], &traffic.broken].concat());
    let ended =
        verdict.moved + verdict.changed_by_application + verdict.failed + verdict.already_moved;
    let is_complete = end.left == 0 && ended == verdict.images;
    let holds = verdict.holds() && traffic.broken_reads == 0 && is_complete;
    print(&table(verdict, traffic, end, seeded), holds, None::<&()>)?;
    Ok(holds)
}

fn table(verdict: &Verdict, traffic: &TrafficReport, end: &End, seeded: &Seeded) -> String {
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
