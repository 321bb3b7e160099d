//! clean while another run works with the same bucket, whatever it calls it.

use sqlx::postgres::PgPool;

use super::clean::CLEAN;
use crate::outage::rig_on_own_postgres;
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// A chain: what is a source of this run is where the other one copies to.
#[tokio::test]
async fn sources_stay_while_another_run_points_rows_at_them() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.execute_sql("CREATE TABLE others (id bigint PRIMARY KEY, path text)")
        .await;
    let others = [
        ("IMAGES_TABLE", "others"),
        ("SOURCE_BUCKET_NAME", "images-new"),
        ("DESTINATION_BUCKET_NAME", "images-old"),
        ("OLD_PREFIX", "avatar/"),
        ("NEW_PREFIX", "image/"),
    ];
    rig.run_program("feeder", &others).await;
    let consumer = rig.spawn_consumer(&others);
    let alive =
        "SELECT count(*) FROM bucket_brigade.workers WHERE run_id = 2 AND role = 'consumer'";
    wait_until("its consumer", async || rig.query_number(alive).await == 1).await;
    let ended = rig.run_command(&CLEAN).await;
    assert_eq!(ended.code, Some(75), "{}", ended.log);
    assert!(ended.log.contains("others.path: "), "{}", ended.log);
    stop_consumer(consumer).await;
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!((result.code, result.number_of("removed")), (0, 2));
}

/// Under the name of an access point any bucket may be meant.
#[tokio::test]
async fn a_source_stays_that_another_run_names_by_an_access_point() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    rig.execute_sql(
        "CREATE TABLE others (id bigint PRIMARY KEY, path text);
         INSERT INTO others VALUES (1, 'image/0.png')",
    )
    .await;
    let others = [("IMAGES_TABLE", "others")];
    let mut feeder = rig.spawn("feeder", &others, &[]);
    wait_until("the other run", async || rig.count_rows("run").await == 2).await;
    feeder.terminate().unwrap();
    wait_for_exit(&mut feeder).await;
    let by_arn = "UPDATE bucket_brigade.run
        SET source_bucket = 'arn:aws:s3:eu-central-1:123456789012:accesspoint:old' WHERE id = 2";
    rig.execute_sql(by_arn).await;
    let result = rig.run_json_command(&CLEAN).await;
    assert_eq!(result.number_of("removed"), 1, "{}", result.code);
    assert!(rig.object_exists("images-old", "image/0.png").await);
}

/// A failover to it would set rows back to sources that are gone.
#[tokio::test]
async fn sources_stay_until_the_standbys_know_of_the_moves() {
    let (rig, cluster) = rig_on_own_postgres().await;
    let standby = cluster.replica().await.unwrap();
    let pool = PgPool::connect(&standby.url("postgres")).await.unwrap();
    let receiver = "SELECT coalesce(max(pid), 0) FROM pg_stat_wal_receiver";
    let pid = async || -> i32 { sqlx::query_scalar(receiver).fetch_one(&pool).await.unwrap() };
    let reported = "SELECT count(flush_lsn) FROM pg_stat_replication";
    wait_until("the standby", async || {
        rig.query_number(reported).await == 1
    })
    .await;
    let pid = pid().await;
    signal_receiver(pid, "-STOP");
    rig.add_moved_images(2).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let mut clean = rig.spawn("feeder", &[], &CLEAN);
    wait_until("the clean to wait", async || {
        clean.log_tail(50).contains("waiting until 1 standby")
    })
    .await;
    assert_eq!(rig.cloud.count_objects("images-old"), 2);
    signal_receiver(pid, "-CONT");
    assert_eq!(wait_for_exit(&mut clean).await.code, Some(0));
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
    drop((standby, cluster));
}

fn signal_receiver(pid: i32, signal: &str) {
    let mut kill = std::process::Command::new("kill");
    let status = kill.args([signal, &pid.to_string()]).status().unwrap();
    assert!(status.success());
}
