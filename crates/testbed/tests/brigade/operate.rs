//! The commands that control and report, on real processes.

use std::time::{Duration, Instant};

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Cluster, Fault, FaultEffect};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};
use crate::transcript::assert_runbook_output;

/// Within two seconds, says the documentation; the rest is for a busy machine.
const CONTROL_DELAY: Duration = Duration::from_secs(2);

async fn status_json(rig: &TestRig) -> Value {
    rig.feeder_json(&["status", "--json"]).await
}

async fn run_state(rig: &TestRig) -> String {
    let status = status_json(rig).await;
    let word = |name: &str| status[name].as_str().unwrap().to_owned();
    format!("{}: {}", word("state"), word("reason"))
}

/// Copies begun in so many seconds from now.
async fn copies_within(rig: &TestRig, time: Duration) -> u64 {
    let count = || {
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "CopyObject")
    };
    let before = count();
    tokio::time::sleep(time).await;
    count() - before
}

#[tokio::test]
async fn the_whole_fleet_pauses_goes_on_and_keeps_its_limits() {
    let rig = TestRig::new().await;
    rig.add_images(400).await;
    let slow = FaultEffect::Delay(Duration::from_millis(400));
    let slow = rig.cloud.inject_fault(Fault::new("CopyObject", slow));
    let settings = [("MAX_CONCURRENCY", "8")];
    let consumers = [rig.spawn_consumer(&settings), rig.spawn_consumer(&settings)];
    let mut feeder = rig.spawn("feeder", &[], &[]);
    wait_until("some moves", async || rig.count_rows("moves").await > 10).await;
    let status = status_json(&rig).await;
    assert_eq!(status["workers"].as_array().unwrap().len(), 3, "{status}");

    let paused = rig
        .run_feeder(&["pause", "--by", "ana", "--reason", "release 4.2 goes out"])
        .await;
    assert_eq!(paused.code, 0, "{}", paused.log);
    assert_runbook_output(
        "pause",
        "feeder pause --reason 'release 4.2 goes out'",
        &paused.output,
    );
    tokio::time::sleep(CONTROL_DELAY).await;
    assert_eq!(copies_within(&rig, Duration::from_secs(2)).await, 0);
    assert_eq!(
        run_state(&rig).await,
        "paused: by ana: release 4.2 goes out"
    );
    let limited = rig.run_feeder(&["limit", "--concurrency", "2"]).await;
    assert_runbook_output("limit", "feeder limit --concurrency 2", &limited.output);
    let resumed = rig.run_feeder(&["resume"]).await;
    assert_runbook_output("resume", "feeder resume", &resumed.output);
    tokio::time::sleep(CONTROL_DELAY).await;
    // Two at a time, each of which takes 400 ms at least.
    let copies = copies_within(&rig, Duration::from_secs(3)).await;
    assert!((1..=20).contains(&copies), "{copies}");
    rig.run_feeder(&["limit", "none"]).await;
    rig.run_feeder(&["limit", "--rate", "4"]).await;
    tokio::time::sleep(CONTROL_DELAY).await;
    let copies = copies_within(&rig, Duration::from_secs(3)).await;
    assert!((4..=16).contains(&copies), "{copies}");
    let screen = rig.run_feeder(&["status"]).await;
    assert_runbook_output("status", "feeder status", &screen.output);
    let lifted = rig.run_feeder(&["limit", "none"]).await;
    assert_runbook_output("limit-none", "feeder limit none", &lifted.output);
    slow.remove();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 400);
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
    assert!(
        run_state(&rig)
            .await
            .starts_with("nothing to do: a sweep found nothing left")
    );
    let workers = rig
        .query_number("SELECT count(*) FROM bucket_brigade.workers")
        .await;
    assert_eq!(workers, 0, "a process that ends in good order deregisters");
}

#[tokio::test]
async fn one_copy_at_a_time_in_a_fleet_of_two_moves_everything() {
    let rig = TestRig::new().await;
    rig.add_images(40).await;
    rig.open_run().await;
    assert_eq!(
        rig.run_feeder(&["limit", "--concurrency", "1"]).await.code,
        0
    );
    let consumers = [rig.spawn_consumer(&[]), rig.spawn_consumer(&[])];
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 40);
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
}

#[tokio::test]
async fn without_a_run_commands_say_which_runs_there_are() {
    let rig = TestRig::new().await;
    let none = rig.run_feeder(&["status"]).await;
    assert_eq!(none.code, 64);
    assert!(none.log.contains("start the feeder once"), "{}", none.log);
    rig.open_run().await;
    let other = rig
        .run_feeder(&["status", "--old-prefix", "picture/"])
        .await;
    assert_eq!(other.code, 64);
    assert!(
        other
            .log
            .contains("image/ (s3://images-old) to avatar/ (s3://images-new)"),
        "{}",
        other.log
    );
}

#[tokio::test]
async fn flags_before_a_command_are_refused() {
    let rig = TestRig::new().await;
    let refused = rig.run_feeder(&["--page-size", "3", "status"]).await;
    assert_eq!(refused.code, 64, "{}", refused.log);
}

#[tokio::test]
async fn failures_are_listed_and_retried() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let missing = rig.add_row("image/missing.png").await;
    let conflict = rig.add_image("image/conflict.png").await;
    rig.put_object("images-new", "avatar/conflict.png", b"the application's")
        .await;
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    wait_until("the dead letters", async || rig.dead_letters().await == 2).await;

    let result = rig.run_feeder(&["failures"]).await;
    assert_eq!(result.code, 2);
    assert_runbook_output("failures", "feeder failures", &result.output);
    let status = status_json(&rig).await;
    assert_eq!(status["rows"]["failed"], 2);
    assert_eq!(status["queue"]["dead_letters"], 2);
    let codes: Vec<&str> = status["failures"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["code"].as_str().unwrap())
        .collect();
    assert!(codes.contains(&"NoSuchKey"), "{codes:?}");
    let missing_only = rig
        .feeder_json(&["failures", "--code", "NoSuchKey", "--json"])
        .await;
    assert_eq!(missing_only["failures"].as_array().unwrap().len(), 1);
    assert_eq!(missing_only["failures"][0]["row_id"], missing);

    // One is mended, the other not.
    rig.put_object("images-old", "image/missing.png", b"found")
        .await;
    let retried = rig.run_feeder(&["retry", "--yes"]).await;
    assert_eq!(retried.code, 0, "{}", retried.log);
    assert_runbook_output("retry", "feeder retry --yes", &retried.output);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.path_of(&missing).await.unwrap(), "avatar/missing.png");
    assert_eq!(rig.path_of(&conflict).await.unwrap(), "image/conflict.png");
    assert_eq!(
        (
            rig.ledger_counter("moved").await,
            rig.ledger_counter("failed").await
        ),
        (6, 1)
    );
    rig.wait_until_drained().await;

    // By its code: the dead letters stay.
    let code = rig.failure_code(&conflict).await.unwrap();
    let dead = rig.dead_letters().await;
    let retried = rig
        .feeder_json(&["retry", "--code", &code, "--yes", "--json"])
        .await;
    assert_eq!(
        (retried["rows"].as_u64(), retried["redrive"].as_str()),
        (Some(1), Some("not asked for"))
    );
    assert_eq!(rig.dead_letters().await, dead);
    assert_eq!(rig.ledger_counter("failed").await, 0);
    let none = rig.run_feeder(&["failures"]).await;
    assert_eq!((none.code, none.output.trim()), (0, "run 1: no row failed"));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_canary_feeds_a_part_and_the_next_feeder_the_rest() {
    let rig = TestRig::new().await;
    rig.add_images(100).await;
    let consumer = rig.spawn_consumer(&[]);
    let canary = rig.run_feeder(&["--limit", "7"]).await;
    assert_eq!(canary.code, 0, "{}", canary.log);
    assert_eq!(rig.count_rows("moves").await, 7);
    let sample = rig.run_feeder(&["--sample", "20"]).await;
    assert_eq!(sample.code, 0, "{}", sample.log);
    let sampled = rig.count_rows("moves").await;
    assert!((15..45).contains(&sampled), "{sampled}");
    // The same rows again: nothing is left of them.
    assert_eq!(rig.run_feeder(&["--sample", "20"]).await.code, 0);
    assert_eq!(rig.count_rows("moves").await, sampled);
    let finished = "SELECT count(finished_at) FROM bucket_brigade.run";
    assert_eq!(rig.query_number(finished).await, 0);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    assert_eq!(
        (
            rig.count_rows("moves").await,
            rig.query_number(finished).await
        ),
        (100, 1)
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_slow_database_slows_the_work_and_is_reported_until_it_is_fast_again() {
    let rig = TestRig::new().await;
    rig.add_images(300).await;
    rig.open_run().await;
    rig.execute_sql(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN PERFORM pg_sleep(0.4); RETURN NULL; END $$;
         CREATE TRIGGER dawdle AFTER UPDATE ON images FOR EACH STATEMENT EXECUTE FUNCTION dawdle()",
    )
    .await;
    let settings = [("MAX_COMMIT_LATENCY", "300ms")];
    let consumer = rig.spawn_consumer(&settings);
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    wait_until("the database to be slow", async || {
        run_state(&rig)
            .await
            .starts_with("database slow: commits take")
    })
    .await;
    let screen = rig.run_feeder(&["status"]).await;
    let state = "database slow: commits take";
    assert!(screen.output.contains(state), "{}", screen.output);
    rig.execute_sql("DROP TRIGGER dawdle ON images").await;
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 300);
    wait_until("the recovery", async || {
        !run_state(&rig).await.starts_with("database slow")
    })
    .await;
    let log = stop_consumer(consumer).await;
    assert_eq!(log.matches("fewer copies until").count(), 1, "{log}");
    assert!(log.contains("commits are fast again"), "{log}");
}

#[tokio::test]
async fn a_lagging_replica_stops_the_work_until_it_has_caught_up() {
    let cluster = Cluster::start().await.unwrap();
    let replica = cluster.replica().await.unwrap();
    let rig = TestRig::on_cluster(
        &cluster,
        CloudOptions::default(),
        CreateQueueOptions::default(),
    )
    .await;
    rig.application.create_table(&rig.pool).await.unwrap();
    rig.add_images(60).await;
    rig.open_run().await;
    let replay = async |action: &str| {
        let mut connection = PgConnection::connect(&replica.url("postgres"))
            .await
            .unwrap();
        let sql = AssertSqlSafe(format!("SELECT pg_wal_replay_{action}()"));
        sqlx::query(sql).execute(&mut connection).await.unwrap();
    };
    replay("pause").await;
    let settings = [("MAX_REPLICA_LAG", "500ms"), ("CONDITIONAL_COPY", "on")];
    let consumer = rig.spawn_consumer(&settings);
    wait_until("the lag to be seen", async || {
        rig.execute_sql("UPDATE bucket_brigade.run SET paused = paused")
            .await;
        run_state(&rig)
            .await
            .starts_with("database slow: a replica is")
    })
    .await;
    // Rows that are fed now wait.
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    wait_until("the feeder to see it too", async || {
        feeder.log_tail(50).contains("database slow")
    })
    .await;
    assert_eq!(
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "CopyObject"),
        0
    );
    replay("resume").await;
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 60);
    let log = stop_consumer(consumer).await;
    assert!(log.contains("replicas have caught up"), "{log}");
}

#[tokio::test]
async fn a_role_that_may_not_see_replicas_is_reported_at_the_start() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "DROP ROLE IF EXISTS lagless; CREATE ROLE lagless LOGIN;
         GRANT SELECT, UPDATE ON images TO lagless;
         GRANT USAGE ON SCHEMA bucket_brigade TO lagless;
         GRANT ALL ON ALL TABLES IN SCHEMA bucket_brigade TO lagless",
    )
    .await;
    let url = rig.application.database_url.clone();
    let url = url.replacen("postgres://postgres", "postgres://lagless", 1);
    let settings = [("DATABASE_URL", url.as_str()), ("MAX_REPLICA_LAG", "5s")];
    let ended = rig.run_program("consumer", &settings).await;
    assert_eq!(ended.code, Some(77), "{}", ended.log);
    assert!(
        ended.log.contains("GRANT pg_monitor TO \"lagless\""),
        "{}",
        ended.log
    );
}

/// What status asks of the database does not grow with the table, nor with what was done.
#[tokio::test]
async fn status_reads_no_table_that_grows() {
    let rig = TestRig::new().await;
    rig.add_images(50).await;
    let consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    stop_consumer(consumer).await;
    let read =
        "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint FROM pg_stat_user_tables
                WHERE relname IN ('images', 'moves', 'failures', 'changes', 'orphans', 'poison')";
    let settled = async || {
        rig.execute_sql("SELECT pg_stat_clear_snapshot()").await;
        rig.query_number(read).await
    };
    let mut before = settled().await;
    // Backends report their figures late.
    let deadline = Instant::now() + Duration::from_secs(3);
    while Instant::now() < deadline {
        before = settled().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for _ in 0..5 {
        assert_eq!(rig.run_feeder(&["status", "--json"]).await.code, 0);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(settled().await, before);
}

#[tokio::test]
async fn a_watch_goes_on_until_it_is_stopped() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let mut watch = rig.spawn(
        "feeder",
        &[],
        &["status", "--watch", "--json", "--interval", "200ms"],
    );
    wait_until("three answers", async || {
        watch
            .log_tail(50)
            .matches("\"state\":\"nothing to do\"")
            .count()
            >= 3
    })
    .await;
    watch.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut watch).await.code, Some(0));
}

#[tokio::test]
async fn the_lag_of_replicas_that_cannot_be_seen_is_refused() {
    let rig = TestRig::new().await;
    // Aurora has it; its readers are in no view of Postgres's.
    rig.execute_sql("CREATE FUNCTION aurora_version() RETURNS text LANGUAGE sql RETURN '15.4'")
        .await;
    rig.open_run().await;
    for program in ["feeder", "consumer"] {
        let ended = rig.run_program(program, &[("MAX_REPLICA_LAG", "5s")]).await;
        assert_eq!(ended.code, Some(64), "{}", ended.log);
        assert!(ended.log.contains("this is Aurora"), "{}", ended.log);
    }
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(plan.output.contains("Aurora's readers"), "{}", plan.output);
}

#[tokio::test]
async fn two_consumers_of_one_name_share_the_limits() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let settings = [("CONSUMER_NAME", "twin")];
    let consumers = [rig.spawn_consumer(&settings), rig.spawn_consumer(&settings)];
    wait_until("both", async || {
        rig.query_number(
            "SELECT count(*) FROM bucket_brigade.workers
              WHERE worker LIKE 'twin%' AND seen_at > started_at + interval '1 second'",
        )
        .await
            == 2
    })
    .await;
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
    // The name is free again.
    let consumer = rig.spawn_consumer(&settings);
    wait_until("the name", async || {
        rig.query_number("SELECT count(*) FROM bucket_brigade.workers WHERE worker = 'twin'")
            .await
            == 1
    })
    .await;
    stop_consumer(consumer).await;
}
