//! clean while another run works with the same bucket, whatever it calls it.

use super::clean::CLEAN;
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
