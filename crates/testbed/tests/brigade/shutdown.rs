//! Shutdown: finished or given back within the grace; a second signal ends at once.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use bucket_brigade_testbed::process::{Signal, binary_path};
use bucket_brigade_testbed::trials::shutdown;
use bucket_brigade_testbed::{Fault, FaultEffect};

use rustix::process::{Pid, kill_process};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// A consumer with twenty images in hand, each of whose copies takes this long.
async fn start_at_work(
    rig: &TestRig,
    copy: Duration,
    more: &[(&str, &str)],
) -> bucket_brigade_testbed::process::ChildProcess {
    rig.open_run().await;
    let slow = rig
        .cloud
        .inject_fault(Fault::new("CopyObject", FaultEffect::Delay(copy)));
    let ids = rig.add_images(20).await;
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(more);
    wait_until("copies under way", async || slow.hits() >= 5).await;
    std::mem::forget(slow);
    consumer
}

fn spawn_with_log(rig: &TestRig, more: &[(&str, &str)], log: Stdio) -> tokio::process::Child {
    tokio::process::Command::new(binary_path("consumer").unwrap())
        .env_clear()
        .envs(rig.environment("consumer", more))
        .current_dir("/")
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn a_closed_log_pipe_ends_no_work() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    let mut consumer = spawn_with_log(&rig, &[], Stdio::piped());
    drop(consumer.stderr.take());
    let mut feeder = rig.spawn("feeder", &[], &[]);
    assert_eq!(wait_for_exit(&mut feeder).await.code, Some(0));
    assert_eq!(rig.count_rows("moves").await, 3);
    assert_eq!(consumer.try_wait().unwrap(), None);
}

/// A log shipper that hangs: it holds up neither work nor signals.
#[tokio::test]
async fn a_process_whose_log_is_not_read_works_and_stops() {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    for (signals, code) in [
        (&[Signal::TERM][..], 0),
        (&[Signal::TERM, Signal::INT], 130),
    ] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let log = writer.try_clone().unwrap();
        let filling = std::thread::spawn(move || writer.write_all(&vec![b'\n'; 1 << 20]));
        let mut consumer = spawn_with_log(&rig, &[("RUST_LOG", "trace")], log.into());
        let pid = Pid::from_raw(i32::try_from(consumer.id().unwrap()).unwrap()).unwrap();
        let ended = rig.run_program("feeder", &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        assert_eq!(rig.count_rows("moves").await, 3);
        for signal in signals {
            kill_process(pid, *signal).unwrap();
        }
        let ended = consumer.wait().await.unwrap();
        assert_eq!(ended.code(), Some(code));
        drop(reader);
        filling.join().unwrap().unwrap_err();
    }
}

#[tokio::test]
async fn a_terminal_that_is_closed_ends_it_like_any_signal() {
    let rig = TestRig::new().await;
    rig.add_images(1).await;
    let mut consumer = rig.spawn_consumer(&[]);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
    consumer.send_signal(Signal::HUP).unwrap();
    let ended = wait_for_exit(&mut consumer).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("stopping: "), "{}", ended.log);
}

#[tokio::test]
async fn copies_under_way_are_finished_and_the_rest_is_given_back() {
    let rig = TestRig::new().await;
    let consumer = start_at_work(&rig, Duration::from_secs(1), &[("CONDITIONAL_COPY", "on")]).await;
    stop_consumer(consumer).await;
    let (moved, visible) = (rig.count_rows("moves").await, rig.visible_messages().await);
    assert!(moved >= 5, "{moved} moved");
    assert_eq!(
        u64::try_from(moved).unwrap() + visible,
        20,
        "visible at once: {visible}"
    );
    // Every completed copy was committed.
    assert_eq!(
        rig.query_number("SELECT count(*) FROM images WHERE path LIKE 'avatar/%'")
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
    let rig = TestRig::new().await;
    let settings = [("CONDITIONAL_COPY", "on"), ("SHUTDOWN_GRACE", "3s")];
    let consumer = start_at_work(&rig, Duration::from_mins(1), &settings).await;
    stop_consumer(consumer).await;
    assert_eq!(rig.visible_messages().await, 20);
}

/// The application may hold a row for minutes.
#[tokio::test]
async fn a_row_that_is_locked_while_the_consumer_stops_has_not_failed() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_images(1).await.remove(0);
    let mut open = rig.pool.begin().await.unwrap();
    let lock = sqlx::query("SELECT FROM images FOR UPDATE");
    lock.execute(&mut *open).await.unwrap();
    rig.feed_row(&id, "image/0.png").await;
    let consumer = rig.spawn_consumer(&[("VISIBILITY_TIMEOUT", "600")]);
    wait_until("the copy", async || {
        rig.object_exists("images-new", "avatar/0.png").await
    })
    .await;
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("failures").await, 0);
    assert_eq!(rig.visible_messages().await, 1);
    open.rollback().await.unwrap();
}

#[tokio::test]
async fn a_second_signal_ends_at_once_and_loses_nothing() {
    let rig = TestRig::new().await;
    let settings = [("CONDITIONAL_COPY", "on"), ("VISIBILITY_TIMEOUT", "5s")];
    let mut consumer = start_at_work(&rig, Duration::from_secs(4), &settings).await;
    consumer.terminate().unwrap();
    wait_until("the first signal's effect", async || {
        consumer.log_tail(50).contains("stopping")
    })
    .await;
    consumer.send_signal(Signal::INT).unwrap();
    assert_eq!(wait_for_exit(&mut consumer).await.code, Some(130));
    let second = rig.spawn_consumer(&settings);
    wait_until("all to move", async || rig.count_rows("moves").await == 20).await;
    rig.wait_until_drained().await;
    stop_consumer(second).await;
}

#[tokio::test]
async fn an_idle_consumer_stops_at_once() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[]);
    wait_until("its polls", async || {
        rig.cloud
            .request_counts()
            .count_operation_by("consumer", "ReceiveMessage")
            > 0
    })
    .await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_consumer_that_waits_for_its_run_stops_too() {
    let rig = TestRig::new().await;
    let consumer = rig.spawn_consumer(&[]);
    wait_until("it to wait", async || {
        consumer.log_tail(20).contains("waiting for the feeder")
    })
    .await;
    stop_consumer(consumer).await;
}

/// A small run of the trial of docs/reliability.md.
#[tokio::test]
async fn signals_at_random_moments_lose_nothing() {
    let arguments = shutdown::ShutdownArguments {
        times: 10,
        twice: 10,
        seed: 1,
    };
    let figures = shutdown::run(&arguments).await.unwrap();
    // How long it took says more of the machine than of the consumer.
    assert!(figures.failures.is_empty(), "{figures:#?}");
}
