//! What a snapshot costs that stays open, as of a long `pg_dump`: the pace of the commits when so many rows have
//! moved under it, against the same without it.
//!
//! `cargo run --release --workspace --bin held_snapshot -- 500000`

#![expect(clippy::print_stdout, reason = "a program that prints figures")]

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use bucket_brigade_bench::images::run_spec;
use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::feed_source::FeedSource;
use bucket_brigade_common::ledger::fleet_control::{FleetControl, Heartbeat, WorkerRole};
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove};
use bucket_brigade_common::ledger::{PostgresLedger, SecondRun, create_pool};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_private_postgres::Cluster;
use sqlx::Transaction;
use sqlx::postgres::{PgPool, Postgres};

/// Rows of a commit, as many as a consumer's usually has.
const BATCH_ROWS: usize = 75;
/// The feeder moves its cursor once a page, and at this rate each process has a heartbeat every so many rows.
const PAGE_ROWS: usize = 1_000;
const ROWS_PER_HEARTBEAT: usize = 3_500;
const SLICE_ROWS: usize = 1_500;

#[tokio::main]
async fn main() -> Result<()> {
    let rows: usize = match std::env::args().nth(1) {
        Some(rows) => rows.parse().context("how many rows?")?,
        None => 500_000,
    };
    let cluster = Cluster::start_durable().await?;
    let (free, held) = (
        Side::open(&cluster, rows, false).await?,
        Side::open(&cluster, rows, true).await?,
    );
    let mut times = Vec::new();
    for tenth in 0..10 {
        times.push(move_tenth(&free, &held, rows, tenth).await?);
    }
    for (tenth, [free, held]) in times.iter().enumerate() {
        println!("{}0 %: with against without {:.2}", tenth + 1, free / held);
    }
    Ok(())
}

/// A database of its own, where a snapshot is held or not. The two move in turn, so that whatever else the machine does
/// slows both.
struct Side {
    ledger: PostgresLedger,
    _snapshot: Transaction<'static, Postgres>,
}

impl Side {
    async fn open(cluster: &Cluster, rows: usize, holds_snapshot: bool) -> Result<Self> {
        let pool = create_pool(cluster.create_database().await?.parse()?, 3);
        seed_rows(&pool, rows).await?;
        let ledger =
            PostgresLedger::open(pool.clone(), &run_spec()?, "bench", SecondRun::Refused).await?;
        let mut snapshot = pool.begin().await?;
        if holds_snapshot {
            sqlx::raw_sql(
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ;
                 SET LOCAL idle_in_transaction_session_timeout = 0; SELECT count(*) FROM images",
            )
            .execute(&mut *snapshot)
            .await?;
        }
        Ok(Self {
            ledger,
            _snapshot: snapshot,
        })
    }
}

/// Seconds without and with the snapshot.
async fn move_tenth(free: &Side, held: &Side, rows: usize, tenth: usize) -> Result<[f64; 2]> {
    let (first, end) = (rows * tenth / 10, rows * (tenth + 1) / 10);
    let mut seconds = [0.0; 2];
    for from in (first..end).step_by(SLICE_ROWS) {
        for (side, seconds) in [free, held].into_iter().zip(&mut seconds) {
            *seconds += commit_rows(&side.ledger, from, end.min(from + SLICE_ROWS)).await?;
        }
    }
    Ok(seconds)
}

async fn seed_rows(pool: &PgPool, rows: usize) -> Result<()> {
    sqlx::raw_sql("CREATE TABLE images (id bigint PRIMARY KEY, path text NOT NULL)")
        .execute(pool)
        .await?;
    sqlx::query("INSERT INTO images SELECT g, 'image/avatar-' || g || '.png' FROM generate_series(0, $1::bigint) g")
        .bind(i64::try_from(rows)?)
        .execute(pool)
        .await?;
    sqlx::raw_sql("VACUUM ANALYZE images").execute(pool).await?;
    Ok(())
}

/// Returns how many seconds it took.
async fn commit_rows(ledger: &PostgresLedger, first: usize, end: usize) -> Result<f64> {
    let heartbeat = Heartbeat::starting(WorkerRole::Consumer);
    let (started, mut next) = (Instant::now(), first);
    while next < end {
        let moves: Vec<PendingMove> = (next..end.min(next + BATCH_ROWS)).map(move_of).collect();
        let moved = ledger.commit(&moves).await?;
        ensure!(moved.len() == moves.len(), "{} rows moved", moved.len());
        let is_due = |every: usize| next / every != (next + moves.len()) / every;
        if is_due(PAGE_ROWS) {
            let cursor = RowId::from_database(next.to_string());
            ledger.advance_cursor(&cursor, 1_000).await?;
        }
        if is_due(ROWS_PER_HEARTBEAT) {
            FleetControl::heartbeat(ledger, &heartbeat).await?;
        }
        next += moves.len();
    }
    Ok(started.elapsed().as_secs_f64())
}

fn move_of(id: usize) -> PendingMove {
    let rest = format!("avatar-{id}.png");
    PendingMove {
        id: RowId::from_database(id.to_string()),
        old_path: format!("image/{rest}"),
        new_path: format!("avatar/{rest}"),
        destination_key: format!("avatar/{rest}"),
        etag: "9b2cf535f27731c974343645a3985328".into(),
        size_bytes: None,
        is_source_gone: false,
        companions: CompanionCopies::default(),
    }
}
