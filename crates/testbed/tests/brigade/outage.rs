//! Outages: nothing reaches the dead-letter queue, each is said once, and the work goes on by itself.

use bucket_brigade_testbed::cloud::CreateQueue;
use bucket_brigade_testbed::process::Process;
use bucket_brigade_testbed::{Cluster, Effect, Fault};

use crate::observation::{free_address, get};
use crate::rig::{Rig, end, eventually, stop};

const NO_QUEUE: &str = "AWS.SimpleQueueService.NonExistentQueue";

/// A program, and where it tells its health.
struct Watched {
    process: Process,
    address: String,
}

impl Watched {
    fn spawn(rig: &Rig, program: &str, arguments: &[&str]) -> Self {
        let address = free_address();
        let settings = [
            ("METRICS_ADDR", address.as_str()),
            ("CONDITIONAL_COPY", "on"),
            ("WATCH_INTERVAL", "200ms"),
        ];
        let process = rig.spawn(program, &settings, arguments);
        Self { process, address }
    }

    fn log(&self) -> String {
        self.process.log_tail(1000)
    }

    async fn is_well(&self) {
        eventually("good health", async || {
            get(&self.address, "/healthz").await.contains("200 OK")
        })
        .await;
    }

    /// Both the log and `/healthz` name the trouble and what to do about it.
    async fn tells(&self, trouble: &str, advice: &str) {
        eventually(trouble, async || {
            let answer = get(&self.address, "/healthz").await;
            answer.contains("503") && answer.contains(trouble) && answer.contains(advice)
        })
        .await;
        let log = self.log();
        assert!(
            log.contains("cannot be used") && log.contains(advice),
            "{log}"
        );
    }

    /// One outage was told, and its end.
    fn told_once(&self) {
        let log = self.log();
        assert_eq!(log.matches("until it can").count(), 1, "{log}");
        assert_eq!(log.matches("can be used again").count(), 1, "{log}");
    }
}

/// Nothing was given up, and hardly a receive was used up: at most one, by a delivery cut off.
async fn nothing_was_lost(rig: &Rig) {
    assert_eq!((rig.dead().await, rig.count("failures").await), (0, 0));
    assert!(rig.cloud.highest_receive_count() <= 2);
}

/// Feeds images into an outage of this operation, ends it, and expects that all move.
async fn survives(operation: &str, effect: Effect, trouble: &str, advice: &str) {
    let rig = Rig::new().await;
    rig.open_run().await;
    let ids = rig.images(40).await;
    let outage = rig
        .cloud
        .inject(Fault::new(operation, effect).caller("consumer"));
    for (number, id) in ids.iter().enumerate() {
        rig.feed(id, &format!("image/{number}.png")).await;
    }
    let consumer = Watched::spawn(&rig, "consumer", &[]);
    consumer.tells(trouble, advice).await;
    let hits = outage.hits();
    eventually("some probes", async || outage.hits() >= hits + 2).await;
    outage.remove();
    eventually("all to move", async || rig.count("moves").await == 40).await;
    rig.drained().await;
    consumer.is_well().await;
    nothing_was_lost(&rig).await;
    consumer.told_once();
    stop(consumer.process).await;
}

/// A rig on a Postgres of its own, which may be stopped.
async fn on_its_own_postgres() -> (Rig, Cluster) {
    let mut rig = Rig::new().await;
    let cluster = Cluster::start().await.unwrap();
    rig.application.database_url = cluster.create_database().await.unwrap();
    rig.pool = rig.application.pool(3).await.unwrap();
    rig.application.create_table(&rig.pool).await.unwrap();
    (rig, cluster)
}

async fn delete_queue(rig: &Rig) {
    let sqs = rig.cloud.sqs();
    let deletion = sqs.delete_queue().queue_url(&rig.queue.url);
    deletion.send().await.unwrap();
}

async fn create_queue_again(rig: &Rig) {
    let queue = rig.cloud.create_queue("images", CreateQueue::default());
    assert_eq!(queue.await.unwrap().url, rig.queue.url);
}

#[tokio::test]
async fn of_the_database() {
    let (rig, cluster) = on_its_own_postgres().await;
    rig.images(20).await;
    let consumer = Watched::spawn(&rig, "consumer", &[]);
    let feeder = Watched::spawn(&rig, "feeder", &["--watch"]);
    eventually("the first to move", async || rig.count("moves").await == 20).await;
    let late = rig.image("image/late.png").await;
    let slow = rig.cloud.inject(
        Fault::new(
            "CopyObject",
            Effect::Delay(std::time::Duration::from_secs(1)),
        )
        .key_contains("late"),
    );
    eventually("its copy", async || slow.hits() == 1).await;
    cluster.stop().await.unwrap();
    consumer.tells("the database: ", "check").await;
    feeder.tells("the database: ", "DATABASE_URL").await;
    cluster.start_again().await.unwrap();
    eventually("it to move", async || {
        rig.path_of(&late).await.as_deref() == Some("avatar/late.png")
    })
    .await;
    rig.drained().await;
    consumer.is_well().await;
    feeder.is_well().await;
    // The feeder has its lock back, and feeds.
    rig.image("image/later.png").await;
    eventually("another to move", async || rig.count("moves").await == 22).await;
    nothing_was_lost(&rig).await;
    consumer.told_once();
    feeder.told_once();
    stop(consumer.process).await;
}

#[tokio::test]
async fn of_the_database_at_the_start() {
    let (rig, cluster) = on_its_own_postgres().await;
    rig.images(20).await;
    cluster.stop().await.unwrap();
    let consumer = rig.consumer(&[]);
    let mut feeder = rig.spawn("feeder", &[], &[]);
    for process in [&consumer, &feeder] {
        eventually("a second try", async || {
            process
                .log_tail(1000)
                .contains("trying again: cannot connect")
        })
        .await;
    }
    cluster.start_again().await.unwrap();
    assert_eq!(end(&mut feeder).await.code, Some(0));
    stop(consumer).await;
    assert_eq!(rig.count("moves").await, 20);
}

#[tokio::test]
async fn of_a_queue_that_is_not_there() {
    let rig = Rig::new().await;
    let consumer = Watched::spawn(&rig, "consumer", &[]);
    let feeder = Watched::spawn(&rig, "feeder", &["--watch"]);
    rig.images(5).await;
    eventually("the first to move", async || rig.count("moves").await == 5).await;
    delete_queue(&rig).await;
    rig.image("image/late.png").await;
    consumer.tells("the queue: ", "check QUEUE_URL").await;
    feeder.tells("the queue: ", "check QUEUE_URL").await;
    create_queue_again(&rig).await;
    eventually("it to move", async || rig.count("moves").await == 6).await;
    consumer.is_well().await;
    feeder.is_well().await;
    nothing_was_lost(&rig).await;
    consumer.told_once();
    feeder.told_once();
    stop(consumer.process).await;
}

#[tokio::test]
async fn of_the_feeders_sends() {
    let rig = Rig::new().await;
    rig.images(200).await;
    let outage = rig
        .cloud
        .inject(Fault::new("SendMessageBatch", Effect::error(400, NO_QUEUE)));
    let mut feeder = Watched::spawn(&rig, "feeder", &[]);
    feeder.tells("the queue: ", "sqs:SendMessage").await;
    // Twenty batches fail; all of them are one outage.
    eventually("more failures", async || outage.hits() >= 60).await;
    outage.remove();
    eventually("all sends", async || rig.queued().await == 200).await;
    feeder.is_well().await;
    feeder.told_once();
    feeder.process.terminate().await.unwrap();
    assert_eq!(end(&mut feeder.process).await.code, Some(3));
}

#[tokio::test]
async fn of_the_rights_to_the_destination() {
    survives(
        "CopyObject",
        Effect::error(403, "AccessDenied"),
        "AccessDenied",
        "s3:PutObject",
    )
    .await;
}

#[tokio::test]
async fn of_the_credentials() {
    survives(
        "CopyObject",
        Effect::error(400, "ExpiredToken"),
        "ExpiredToken",
        "check the credentials",
    )
    .await;
}

#[tokio::test]
async fn of_s3_itself() {
    survives(
        "CopyObject",
        Effect::error(500, "InternalError"),
        "S3: ",
        "check S3's status",
    )
    .await;
}

#[tokio::test]
async fn of_the_queue() {
    survives(
        "ReceiveMessage",
        Effect::error(400, NO_QUEUE),
        "NonExistentQueue",
        "check QUEUE_URL",
    )
    .await;
}

#[tokio::test]
async fn a_few_broken_objects_at_the_end_are_no_outage() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let good = rig.image("image/good.png").await;
    rig.feed(&good, "image/good.png").await;
    let consumer = rig.consumer(&[]);
    eventually("the good one", async || rig.count("moves").await == 1).await;
    let _denied = rig
        .cloud
        .inject(Fault::new("CopyObject", Effect::error(403, "AccessDenied")).key_contains("bad"));
    for number in 0..6 {
        let path = format!("image/bad-{number}.png");
        let id = rig.image(&path).await;
        rig.feed(&id, &path).await;
    }
    eventually("their failures", async || rig.count("failures").await == 6).await;
    let last = rig.image("image/last.png").await;
    rig.feed(&last, "image/last.png").await;
    eventually("another good one", async || rig.count("moves").await == 2).await;
    let log = stop(consumer).await;
    assert!(!log.contains("receiving stops"), "{log}");
}
