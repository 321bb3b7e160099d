//! Outages: nothing reaches the dead-letter queue, each is said once, and the work goes on by itself.

use bucket_brigade_common::ledger::RunOptions;
use std::time::Duration;

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::process::ChildProcess;
use bucket_brigade_testbed::{Cluster, Fault, FaultEffect};

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const NO_QUEUE_CODE: &str = "AWS.SimpleQueueService.NonExistentQueue";

/// A program, and where it serves its health.
struct MonitoredProcess {
    process: ChildProcess,
    address: String,
}

impl MonitoredProcess {
    fn spawn(rig: &TestRig, program: &str, arguments: &[&str]) -> Self {
        let address = free_address();
        let settings = [
            ("METRICS_ADDR", address.as_str()),
            ("CONDITIONAL_COPY", "on"),
            ("WATCH_INTERVAL", "200ms"),
        ];
        let process = rig.spawn(program, &settings, arguments);
        Self { process, address }
    }

    fn read_log(&self) -> String {
        self.process.log_tail(1000)
    }

    async fn wait_until_healthy(&self) {
        wait_until("good health", async || {
            http_get(&self.address, "/healthz").await.contains("200 OK")
        })
        .await;
    }

    /// Both the log and `/healthz` name the trouble and what to do about it.
    async fn assert_reports(&self, trouble: &str, advice: &str) {
        wait_until(trouble, async || {
            let answer = http_get(&self.address, "/healthz").await;
            answer.contains("503") && answer.contains(trouble) && answer.contains(advice)
        })
        .await;
        let log = self.read_log();
        assert!(
            log.contains("cannot be used") && log.contains(advice),
            "{log}"
        );
    }

    /// One outage was result, and its end.
    fn assert_reported_once(&self) {
        let log = self.read_log();
        assert_eq!(log.matches("until it can").count(), 1, "{log}");
        assert_eq!(log.matches("can be used again").count(), 1, "{log}");
    }
}

/// Nothing was given up, and hardly a receive was used up: at most one, by a delivery cut off.
async fn assert_nothing_lost(rig: &TestRig) {
    assert_eq!(
        (rig.dead_letters().await, rig.count_rows("failures").await),
        (0, 0)
    );
    assert!(rig.cloud.highest_receive_count() <= 2);
}

/// Feeds images into an outage of this operation, ends it, and expects that all move.
async fn assert_survives(operation: &str, effect: FaultEffect, trouble: &str, advice: &str) {
    let fault = Fault::new(operation, effect);
    assert_survives_fault(fault, RunOptions::default(), trouble, advice).await;
}

async fn assert_survives_fault(fault: Fault, options: RunOptions, trouble: &str, advice: &str) {
    let rig = TestRig::new().await;
    rig.open_run_with(options).await;
    let ids = rig.add_images(40).await;
    let outage = rig.cloud.inject_fault(fault.caller("consumer"));
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = MonitoredProcess::spawn(&rig, "consumer", &[]);
    consumer.assert_reports(trouble, advice).await;
    let hits = outage.hits();
    wait_until("some probes", async || outage.hits() >= hits + 2).await;
    outage.remove();
    wait_until("all to move", async || rig.count_rows("moves").await == 40).await;
    rig.wait_until_drained().await;
    consumer.wait_until_healthy().await;
    assert_nothing_lost(&rig).await;
    consumer.assert_reported_once();
    stop_consumer(consumer.process).await;
}

/// A rig on a Postgres of its own, which may be stopped.
pub(crate) async fn rig_on_own_postgres() -> (TestRig, Cluster) {
    let mut rig = TestRig::new().await;
    let cluster = Cluster::start().await.unwrap();
    rig.application.database_url = cluster.create_database().await.unwrap();
    rig.pool = rig.application.connect_pool(3).await.unwrap();
    rig.application.create_table(&rig.pool).await.unwrap();
    (rig, cluster)
}

async fn delete_queue(rig: &TestRig) {
    let sqs = rig.cloud.sqs_client();
    let deletion = sqs.delete_queue().queue_url(&rig.queue.url);
    deletion.send().await.unwrap();
}

async fn create_queue_again(rig: &TestRig) {
    let queue = rig
        .cloud
        .create_queue("images", CreateQueueOptions::default());
    assert_eq!(queue.await.unwrap().url, rig.queue.url);
}

#[tokio::test]
async fn of_the_database() {
    let (rig, cluster) = rig_on_own_postgres().await;
    rig.add_images(20).await;
    let consumer = MonitoredProcess::spawn(&rig, "consumer", &[]);
    let feeder = MonitoredProcess::spawn(&rig, "feeder", &["--watch"]);
    wait_until("the first to move", async || {
        rig.count_rows("moves").await == 20
    })
    .await;
    let late = rig.add_image("image/late.png").await;
    let slow = rig.cloud.inject_fault(
        Fault::new(
            "CopyObject",
            FaultEffect::Delay(std::time::Duration::from_secs(1)),
        )
        .key_contains("late"),
    );
    wait_until("its copy", async || slow.hits() == 1).await;
    cluster.stop().await.unwrap();
    consumer.assert_reports("the database: ", "check").await;
    feeder
        .assert_reports("the database: ", "DATABASE_URL")
        .await;
    cluster.start_again().await.unwrap();
    wait_until("it to move", async || {
        rig.path_of(&late).await.as_deref() == Some("avatar/late.png")
    })
    .await;
    rig.wait_until_drained().await;
    consumer.wait_until_healthy().await;
    feeder.wait_until_healthy().await;
    // The feeder has its lock back, and feeds.
    rig.add_image("image/later.png").await;
    wait_until("another to move", async || {
        rig.count_rows("moves").await == 22
    })
    .await;
    assert_nothing_lost(&rig).await;
    consumer.assert_reported_once();
    feeder.assert_reported_once();
    stop_consumer(consumer.process).await;
}

#[tokio::test]
async fn of_the_database_at_the_start() {
    let (rig, cluster) = rig_on_own_postgres().await;
    rig.add_images(20).await;
    cluster.stop().await.unwrap();
    let consumer = rig.spawn_consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    for process in [&consumer, &feeder] {
        wait_until("a second try", async || {
            process.log_tail(1000).contains("retrying: cannot connect")
        })
        .await;
    }
    cluster.start_again().await.unwrap();
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("moves").await, 20);
}

#[tokio::test]
async fn of_a_queue_that_is_not_there() {
    let rig = TestRig::new().await;
    let consumer = MonitoredProcess::spawn(&rig, "consumer", &[]);
    let feeder = MonitoredProcess::spawn(&rig, "feeder", &["--watch"]);
    rig.add_images(5).await;
    wait_until("the first to move", async || {
        rig.count_rows("moves").await == 5
    })
    .await;
    delete_queue(&rig).await;
    rig.add_image("image/late.png").await;
    consumer
        .assert_reports("the queue: ", "check QUEUE_URL")
        .await;
    feeder
        .assert_reports("the queue: ", "check QUEUE_URL")
        .await;
    create_queue_again(&rig).await;
    wait_until("it to move", async || rig.count_rows("moves").await == 6).await;
    consumer.wait_until_healthy().await;
    feeder.wait_until_healthy().await;
    assert_nothing_lost(&rig).await;
    consumer.assert_reported_once();
    feeder.assert_reported_once();
    stop_consumer(consumer.process).await;
}

#[tokio::test]
async fn of_the_feeders_sends() {
    let rig = TestRig::new().await;
    rig.add_images(200).await;
    let outage = rig.cloud.inject_fault(Fault::new(
        "SendMessageBatch",
        FaultEffect::error(400, NO_QUEUE_CODE),
    ));
    let mut feeder = MonitoredProcess::spawn(&rig, "feeder", &[]);
    feeder
        .assert_reports("the queue: ", "sqs:SendMessage")
        .await;
    // Twenty batches fail; all of them are one outage.
    wait_until("more failures", async || outage.hits() >= 60).await;
    outage.remove();
    wait_until("all sends", async || rig.queued_messages().await == 200).await;
    feeder.wait_until_healthy().await;
    feeder.assert_reported_once();
    feeder.process.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder.process).await.code, Some(3));
}

/// Made while consumers are at work. The action of the one would be taken for moves, that of the other crashes a server
/// (15.18) which runs it in our statement.
#[tokio::test]
async fn of_rules_that_the_table_gets() {
    let (rig, cluster) = rig_on_own_postgres().await;
    rig.open_run().await;
    rig.execute_sql("CREATE TABLE other (LIKE images INCLUDING DEFAULTS)")
        .await;
    let mut all = 0;
    for action in [
        "UPDATE other SET path = new.path WHERE id = old.id RETURNING other.*",
        "INSERT INTO other VALUES (new.*) RETURNING other.*",
    ] {
        let consumer = MonitoredProcess::spawn(&rig, "consumer", &[]);
        let before = all;
        for rule in [None, Some(action)] {
            if let Some(action) = rule {
                rig.execute_sql(&format!(
                    "INSERT INTO other SELECT * FROM images;
                     CREATE RULE elsewhere AS ON UPDATE TO images DO INSTEAD {action}"
                ))
                .await;
            }
            for _ in 0..20 {
                let path = format!("image/{all}.png");
                let id = rig.add_image(&path).await;
                rig.feed_row(&id, &path).await;
                all += 1;
            }
            if rule.is_none() {
                wait_until("the first moves", async || {
                    rig.count_rows("moves").await == all
                })
                .await;
            }
        }
        consumer
            .assert_reports("rules ON UPDATE", "DISABLE RULE")
            .await;
        assert_eq!(rig.count_rows("moves").await, before + 20);
        rig.execute_sql("DROP RULE elsewhere ON images").await;
        wait_until("all to move", async || rig.count_rows("moves").await == all).await;
        let moved = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%'";
        assert_eq!(rig.query_number(moved).await, all);
        consumer.wait_until_healthy().await;
        stop_consumer(consumer.process).await;
    }
    assert_nothing_lost(&rig).await;
    drop(cluster);
}

/// All is fed, and may be read: the heartbeats alone meet it.
#[tokio::test]
async fn of_writes_to_the_database_while_the_feeder_waits() {
    let rig = TestRig::new().await;
    rig.add_images(5).await;
    let mut feeder = MonitoredProcess::spawn(&rig, "feeder", &[]);
    wait_until("the messages", async || rig.visible_messages().await == 5).await;
    feeder.wait_until_healthy().await;
    set_read_only(&rig, "on").await;
    feeder
        .assert_reports("writing a heartbeat", "check the database")
        .await;
    wait_until("the status", async || {
        let status = rig.run_feeder(&["status"]).await.output;
        status.contains("the database takes no writes")
    })
    .await;
    set_read_only(&rig, "off").await;
    feeder.wait_until_healthy().await;
    feeder.process.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut feeder.process).await.code, Some(3));
}

/// For sessions that begin from now on; those of ours end.
async fn set_read_only(rig: &TestRig, value: &str) {
    let set = format!(
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = {value}',
                            current_database());
         END $$"
    );
    let mut connection = rig.pool.acquire().await.unwrap();
    let writable = sqlx::query("SET default_transaction_read_only = off");
    writable.execute(&mut *connection).await.unwrap();
    let set = sqlx::query(sqlx::AssertSqlSafe(set));
    set.execute(&mut *connection).await.unwrap();
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name LIKE 'bucket-brigade%'";
    sqlx::query(end).execute(&mut *connection).await.unwrap();
}

#[tokio::test]
async fn of_the_rights_to_the_destination() {
    assert_survives(
        "CopyObject",
        FaultEffect::error(403, "AccessDenied"),
        "AccessDenied",
        "s3:PutObject",
    )
    .await;
}

#[tokio::test]
async fn of_the_credentials() {
    assert_survives(
        "CopyObject",
        FaultEffect::error(400, "ExpiredToken"),
        "ExpiredToken",
        "check the credentials",
    )
    .await;
}

#[tokio::test]
async fn of_s3_itself() {
    assert_survives(
        "CopyObject",
        FaultEffect::error(500, "InternalError"),
        "S3: ",
        "check S3's status",
    )
    .await;
}

#[tokio::test]
async fn of_a_store_that_can_only_be_read() {
    assert_survives(
        "CopyObject",
        FaultEffect::error(507, "XMinioStorageFull"),
        "XMinioStorageFull",
        "check S3's status",
    )
    .await;
}

/// Before anything was copied: objects of the consumer's own can be copied all the time.
#[tokio::test]
async fn of_the_source_alone() {
    for (effect, trouble, advice) in [
        (
            FaultEffect::error(403, "AccessDenied"),
            "AccessDenied",
            "KMS keys",
        ),
        (
            FaultEffect::error(500, "InternalError"),
            "InternalError",
            "S3's status",
        ),
        (
            FaultEffect::Delay(Duration::from_hours(1)),
            "no response to copies",
            "network",
        ),
    ] {
        let fault = Fault::new("CopyObject", effect).key_contains("image/");
        assert_survives_fault(fault, RunOptions::default(), trouble, advice).await;
    }
}

/// Whatever the condition, though nothing stands at the destination.
#[tokio::test]
async fn of_conditional_writes() {
    for (method, operation) in [("server", "CopyObject"), ("stream", "PutObject")] {
        for (status, code, trouble) in [
            (412, "PreconditionFailed", "DestinationVanished"),
            (
                409,
                "ConditionalRequestConflict",
                "ConditionalRequestConflict",
            ),
        ] {
            let fault = Fault::new(operation, FaultEffect::error(status, code));
            let options = RunOptions {
                copy_method: Some(method.into()),
                ..RunOptions::default()
            };
            let fault = fault.with_header("if-none-match");
            assert_survives_fault(fault, options, trouble, "If-None-Match").await;
        }
    }
}

#[tokio::test]
async fn of_the_queue() {
    assert_survives(
        "ReceiveMessage",
        FaultEffect::error(400, NO_QUEUE_CODE),
        "NonExistentQueue",
        "check QUEUE_URL",
    )
    .await;
}
