//! Shutdown: finished or given back within the grace; a second signal ends at once.

use std::process::Stdio;
use std::time::Duration;

use bucket_brigade_testbed::process::binary;
use bucket_brigade_testbed::trials::shutdown;
use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, end, eventually, stop};

/// A consumer with twenty images in hand, each of whose copies takes this long.
async fn at_work(
    rig: &Rig,
    copy: Duration,
    more: &[(&str, &str)],
) -> bucket_brigade_testbed::process::Process {
    rig.open_run().await;
    let slow = rig
        .cloud
        .inject(Fault::new("CopyObject", Effect::Delay(copy)));
    let ids = rig.images(20).await;
    for (number, id) in ids.iter().enumerate() {
        rig.feed(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.consumer(more);
    eventually("copies under way", async || slow.hits() >= 5).await;
    std::mem::forget(slow);
    consumer
}

#[tokio::test]
async fn a_log_that_nobody_reads_any_more_ends_no_work() {
    let rig = Rig::new().await;
    rig.images(3).await;
    let mut consumer = tokio::process::Command::new(binary("consumer").unwrap())
        .env_clear()
        .envs(rig.environment("consumer", &[]))
        .current_dir("/")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    drop(consumer.stderr.take());
    let mut feeder = rig.spawn("feeder", &[], &[]);
    assert_eq!(end(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count("moves").await, 3);
    assert_eq!(consumer.try_wait().unwrap(), None);
}

#[tokio::test]
async fn copies_under_way_are_finished_and_the_rest_is_given_back() {
    let rig = Rig::new().await;
    let consumer = at_work(&rig, Duration::from_secs(1), &[("CONDITIONAL_COPY", "on")]).await;
    stop(consumer).await;
    let (moved, visible) = (rig.count("moves").await, rig.visible().await);
    assert!(moved >= 5, "{moved} moved");
    assert_eq!(
        u64::try_from(moved).unwrap() + visible,
        20,
        "visible at once: {visible}"
    );
    // Every completed copy was committed.
    assert_eq!(
        rig.number("SELECT count(*) FROM images WHERE path LIKE 'avatar/%'")
            .await,
        moved
    );
    let listed = rig
        .application
        .s3
        .list_objects_v2()
        .bucket("images-new")
        .send()
        .await
        .unwrap();
    assert_eq!(i64::from(listed.key_count().unwrap_or(0)), moved);
}

#[tokio::test]
async fn what_outlasts_the_grace_is_given_back() {
    let rig = Rig::new().await;
    let settings = [("CONDITIONAL_COPY", "on"), ("SHUTDOWN_GRACE", "3s")];
    let consumer = at_work(&rig, Duration::from_mins(1), &settings).await;
    stop(consumer).await;
    assert_eq!(rig.visible().await, 20);
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_loses_nothing() {
    let rig = Rig::new().await;
    let settings = [("CONDITIONAL_COPY", "on"), ("VISIBILITY_TIMEOUT", "5s")];
    let mut consumer = at_work(&rig, Duration::from_secs(4), &settings).await;
    consumer.terminate().await.unwrap();
    eventually("the first signal's effect", async || {
        consumer.log_tail(50).contains("stopping")
    })
    .await;
    consumer.signal("-INT").await.unwrap();
    assert_eq!(end(&mut consumer).await.code, Some(130));
    let second = rig.consumer(&settings);
    eventually("all to move", async || rig.count("moves").await == 20).await;
    rig.drained().await;
    stop(second).await;
}

#[tokio::test]
async fn an_idle_consumer_stops_at_once() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let consumer = rig.consumer(&[]);
    eventually("its polls", async || {
        rig.cloud.requests().count_by("consumer", "ReceiveMessage") > 0
    })
    .await;
    stop(consumer).await;
}

#[tokio::test]
async fn a_consumer_that_waits_for_its_run_stops_too() {
    let rig = Rig::new().await;
    let consumer = rig.consumer(&[]);
    eventually("it to wait", async || {
        consumer.log_tail(20).contains("waiting for the feeder")
    })
    .await;
    stop(consumer).await;
}

/// A small run of the trial that docs/reliability.md tells of.
#[tokio::test]
async fn signals_at_random_moments_lose_nothing() {
    let arguments = shutdown::Arguments {
        times: 10,
        twice: 10,
        seed: 1,
    };
    let figures = shutdown::run(&arguments).await.unwrap();
    // How long it took says more of the machine than of the consumer.
    assert!(figures.failures.is_empty(), "{figures:#?}");
}
