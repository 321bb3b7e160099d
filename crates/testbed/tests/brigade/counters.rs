//! The ledger's counters: bounded however often processes restart, and right whatever happens at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::fleet_control::{FleetControl, Heartbeat, WorkerRole};
use bucket_brigade_common::ledger::move_ledger::{MoveLedger, PendingMove};
use bucket_brigade_common::ledger::{self, PostgresLedger};
use bucket_brigade_common::row_id::RowId;
use futures::future::{join, join_all};

use crate::rig::{TestRig, stop_consumer};

const PROCESSES: usize = 6;
const MOVES_EACH: usize = 60;

async fn as_process(rig: &TestRig, name: &str) -> PostgresLedger {
    let options = rig.application.database_url.parse().unwrap();
    let found =
        PostgresLedger::find_run(ledger::create_pool(options, 1), &rig.run_spec(), name).await;
    found.unwrap().unwrap()
}

fn move_of(id: usize) -> PendingMove {
    PendingMove {
        id: RowId::from_database(id.to_string()),
        old_path: format!("image/{id}.png"),
        new_path: format!("avatar/{id}.png"),
        destination_key: format!("avatar/{id}.png"),
        etag: "etag".into(),
        size_bytes: None,
        is_source_gone: false,
        is_found: false,
        companions: CompanionCopies::new(),
        fence: 0,
    }
}

/// Everybody counts while two fold whatever they find, as if each process had ended that very moment.
#[tokio::test]
async fn folding_loses_and_doubles_nothing_under_concurrent_counting() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let all = PROCESSES * MOVES_EACH;
    rig.execute_sql(&format!(
        "INSERT INTO images (id, path) SELECT n, 'image/' || n || '.png' FROM generate_series(0, {all} - 1) n"
    ))
    .await;
    let is_over = AtomicBool::new(false);
    let fold = async |name: &str| {
        let ledger = as_process(&rig, name).await;
        let mut folded = 0;
        while !is_over.load(Ordering::Relaxed) {
            folded += ledger.fold_counters(Duration::ZERO).await.unwrap();
        }
        folded
    };
    let count = async |process: usize| {
        let ledger = as_process(&rig, &format!("consumer-{process}")).await;
        for number in 0..MOVES_EACH {
            let id = process * MOVES_EACH + number;
            assert_eq!(ledger.commit(&[&move_of(id)]).await.unwrap().len(), 1);
        }
    };
    let counting = async {
        join_all((0..PROCESSES).map(count)).await;
        is_over.store(true, Ordering::Relaxed);
    };
    // A sum taken meanwhile is never less than before: no number is away for a moment.
    let watching = async {
        let mut last = 0;
        while !is_over.load(Ordering::Relaxed) {
            let now = rig.ledger_counter("moved").await;
            assert!(now >= last, "{now} after {last}");
            last = now;
        }
    };
    let folding = join(fold("folder-1"), fold("folder-2"));
    let (((), ()), (one, other)) = Box::pin(join(join(counting, watching), folding)).await;
    assert!(one + other > 100, "only {one} and {other} rows were folded");
    assert_eq!(
        rig.ledger_counter("moved").await,
        i64::try_from(all).unwrap()
    );
    assert_eq!(rig.count_rows("moves").await, i64::try_from(all).unwrap());
    as_process(&rig, "last")
        .await
        .fold_counters(Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(rig.count_rows("counters").await, 1);
}

#[tokio::test]
async fn live_and_recently_counting_workers_keep_their_rows() {
    let rig = TestRig::new().await;
    let ledger = rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.counters (run_id, worker, moved, failed, seen_at) VALUES
             (1, 'idle', 1, 0, now() - interval '1 day'), (1, 'busy', 2, 0, now()),
             (1, 'gone', 4, 1, now() - interval '2 minutes'), (1, 'long gone', 8, -1, now() - interval '1 day');
         INSERT INTO bucket_brigade.workers (run_id, worker, role, state, seen_at) VALUES
             (1, 'idle', 'consumer', 'nothing to do', now()),
             (1, 'gone', 'consumer', 'running', now() - interval '2 minutes')",
    )
    .await;
    let minute = Duration::from_mins(1);
    assert_eq!(ledger.fold_counters(minute).await.unwrap(), 2);
    assert_eq!(ledger.fold_counters(minute).await.unwrap(), 0);
    let of = async |worker: &str| {
        rig.query_number(&format!(
            "SELECT moved FROM bucket_brigade.counters WHERE worker = '{worker}'"
        ))
        .await
    };
    assert_eq!(
        (of("idle").await, of("busy").await, of("(ended)").await),
        (1, 2, 12)
    );
    assert_eq!(
        (
            rig.ledger_counter("moved").await,
            rig.ledger_counter("failed").await
        ),
        (15, 0)
    );
}

/// While a snapshot is open each addition to a row looks at all its versions since.
#[tokio::test]
async fn no_row_is_added_to_for_long_and_the_sum_is_right() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO images (id, path) SELECT n, 'image/' || n || '.png' FROM generate_series(0, 249) n;
         CREATE TABLE additions (worker text);
         CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO additions VALUES (NEW.worker); RETURN NULL; END $$;
         CREATE TRIGGER note AFTER INSERT OR UPDATE ON bucket_brigade.counters
             FOR EACH ROW EXECUTE FUNCTION note();",
    )
    .await;
    let ledger = as_process(&rig, "consumer").await;
    for id in 0..250 {
        assert_eq!(ledger.commit(&[&move_of(id)]).await.unwrap().len(), 1);
    }
    let most =
        "SELECT max(n) FROM (SELECT count(*) AS n FROM additions GROUP BY worker) AS all_rows";
    assert_eq!(rig.query_number(most).await, 100);
    assert_eq!(rig.ledger_counter("moved").await, 250);
    // A minute later, as far as the ledger can know, they are one again, and the process counts on.
    rig.execute_sql("UPDATE bucket_brigade.counters SET seen_at = now() - interval '61 seconds'")
        .await;
    let heartbeat = Heartbeat::starting(WorkerRole::Consumer);
    for _ in 0..60 {
        ledger.heartbeat(&heartbeat).await.unwrap();
    }
    let rows = "SELECT count(*) FROM bucket_brigade.counters WHERE worker LIKE 'consumer#%'";
    assert_eq!(rig.query_number(rows).await, 0);
    assert_eq!(rig.ledger_counter("moved").await, 250);
}

#[tokio::test]
async fn restarts_leave_no_rows_behind() {
    let rig = TestRig::new().await;
    for restart in 0..4 {
        rig.add_image(&format!("image/{restart}.png")).await;
        // A minute ago, as far as the ledger can know.
        rig.execute_sql(
            "DO $$ BEGIN UPDATE bucket_brigade.counters SET seen_at = seen_at - interval '1 minute';
                   EXCEPTION WHEN undefined_table OR invalid_schema_name THEN NULL; END $$",
        )
        .await;
        let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
        assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
        stop_consumer(consumer).await;
    }
    let (rows, moved) = (
        rig.count_rows("counters").await,
        rig.ledger_counter("moved").await,
    );
    assert_eq!(moved, 4);
    // The ended ones, and the last feeder and consumer.
    assert!(rows <= 3, "{rows} rows after four restarts");
}
