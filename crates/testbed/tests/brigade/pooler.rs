//! Behind a pooler in transaction mode: whatever needs a lock is refused, consumers go on.

use bucket_brigade_testbed::proxy::{StartupOptions, TransactionPooler};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

async fn start_pooler(rig: &TestRig, options: StartupOptions) -> (TransactionPooler, String) {
    let (front, rest) = rig.application.database_url.rsplit_once(':').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let pooler = TransactionPooler::start(server.parse().unwrap(), options)
        .await
        .unwrap();
    let url = format!("{front}:{}/{database}", pooler.port());
    (pooler, url)
}

#[tokio::test]
async fn feeder_and_exclusive_commands_are_refused_and_leave_no_lock() {
    let rig = TestRig::new().await;
    let (_pooler, url) = start_pooler(&rig, StartupOptions::Refused).await;
    let settings = [("DATABASE_URL", url.as_str())];
    // The first start of all, which would make the ledger.
    let ended = rig.run_program("feeder", &settings).await;
    assert_eq!(ended.code, Some(64), "{}", ended.log);
    assert!(
        ended.log.contains("pooler in transaction mode"),
        "{}",
        ended.log
    );
    rig.add_moved_images(2).await;
    let commands: [&[&str]; 5] = [
        &[],
        &["verify"],
        &["rollback", "--all", "--yes"],
        &["clean", "--older-than", "0s"],
        &["clean", "--orphans", "--older-than", "0s"],
    ];
    for arguments in commands {
        let ended = wait_for_exit(&mut rig.spawn("feeder", &settings, arguments)).await;
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.log);
        assert!(
            ended.log.contains("pooler in transaction mode"),
            "{arguments:?}: {}",
            ended.log
        );
    }
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(rig.query_number(locks).await, 0);
    assert_eq!(rig.run_program("feeder", &[]).await.code, Some(0));
}

#[tokio::test]
async fn consumers_and_status_go_on() {
    assert_consumers_go_on(StartupOptions::Refused).await;
}

#[tokio::test]
async fn so_they_do_where_all_refusals_have_one_code() {
    assert_consumers_go_on(StartupOptions::RefusedUnsorted).await;
}

#[tokio::test]
async fn and_where_settings_are_dropped_without_a_word() {
    assert_consumers_go_on(StartupOptions::Dropped).await;
}

async fn assert_consumers_go_on(options: StartupOptions) {
    let rig = TestRig::new().await;
    let (_pooler, url) = start_pooler(&rig, options).await;
    let settings = [("DATABASE_URL", url.as_str())];
    rig.add_images(60).await;
    let consumers = [rig.spawn_consumer(&settings), rig.spawn_consumer(&settings)];
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 60);
    let mut status = rig.spawn("feeder", &settings, &["status"]);
    let status = wait_for_exit(&mut status).await;
    assert_eq!(status.code, Some(0), "{}", status.log);
    for consumer in consumers {
        let log = stop_consumer(consumer).await;
        let warning = "takes no settings with a connection";
        assert!(log.contains(warning), "{options:?}: {log}");
    }
    wait_until("the consumers to be gone from the ledger", async || {
        rig.count_rows("workers").await == 0
    })
    .await;
}
