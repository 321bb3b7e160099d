//! report: one line per row, in two formats, whatever the paths hold.

use serde_json::Value;

use crate::rig::{TestRig, wait_for_exit};

/// Moved, failed, changed, and set back; the paths with all that a format stumbles over.
async fn rows_of_every_state(rig: &TestRig) -> Vec<String> {
    let name = "image/a,\"b\"<script>é.png";
    let id = rig.add_image(name).await;
    let back = rig.add_image("image/back.png").await;
    let failed = rig.add_row("image/missing.png").await;
    rig.run_migration().await;
    let changed = rig.add_image("image/changed.png").await;
    rig.execute_sql(&format!(
        "UPDATE images SET path = 'elsewhere/x' WHERE id = {changed}"
    ))
    .await;
    let consumer = rig.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.feed_row(&changed, "image/changed.png").await;
    rig.wait_until_drained().await;
    crate::rig::stop_consumer(consumer).await;
    assert_eq!(rig.run_json_command(&["verify"]).await.code, 0);
    let told = rig
        .run_json_command(&["rollback", "--ids", &back, "--yes"])
        .await;
    assert_eq!(told.code, 0);
    vec![id, failed, changed, back]
}

/// The objects of a report as JSON Lines.
async fn report_lines(rig: &TestRig, arguments: &[&str]) -> Vec<Value> {
    let mut report = rig.spawn("feeder", &[("RUST_LOG", "off")], arguments);
    let ended = wait_for_exit(&mut report).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    let lines = ended.log.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

#[tokio::test]
async fn each_row_has_one_line_in_each_format() {
    let rig = TestRig::new().await;
    let ids = rows_of_every_state(&rig).await;
    let lines = report_lines(&rig, &["report", "--json"]).await;
    assert_eq!(lines.len(), 4);
    let line = |id: &String| lines.iter().find(|line| line["id"] == **id).unwrap();
    let states: Vec<_> = ids
        .iter()
        .map(|id| line(id)["state"].as_str().unwrap())
        .collect();
    assert_eq!(states, ["moved", "failed", "changed", "rolled back"]);
    let moved = line(&ids[0]);
    assert_eq!(moved["new_path"], "avatar/a,\"b\"<script>é.png");
    assert_eq!(moved["size_bytes"], 25);
    assert!(moved["by"].as_str().unwrap().starts_with("consumer-"));
    assert!(moved["verified_at"].as_str().unwrap() > moved["at"].as_str().unwrap());
    assert_eq!(line(&ids[1])["code"], "NoSuchKey");
    assert_eq!(line(&ids[2])["new_path"], "elsewhere/x");

    let csv = wait_for_exit(&mut rig.spawn("feeder", &[("RUST_LOG", "off")], &["report"]))
        .await
        .log;
    assert!(
        csv.starts_with("id,state,old_path,new_path,etag,size_bytes,at,by,verified_at"),
        "{csv}"
    );
    assert!(csv.contains("\"image/a,\"\"b\"\"<script>é.png\""), "{csv}");
    assert_eq!(csv.lines().count(), 5);
}

#[tokio::test]
async fn a_row_that_moved_again_has_its_later_line_alone() {
    let rig = TestRig::new().await;
    rig.add_moved_images(2).await;
    assert_eq!(
        rig.run_json_command(&["rollback", "--all", "--yes"])
            .await
            .code,
        0
    );
    rig.run_migration().await;
    let lines = report_lines(&rig, &["report", "--format", "json"]).await;
    assert!(lines.iter().all(|line| line["state"] == "moved"));
    assert_eq!(lines.len(), 2);
    // An empty report is a report.
    let rig = TestRig::new().await;
    rig.open_run().await;
    assert!(report_lines(&rig, &["report", "--json"]).await.is_empty());
    let csv = wait_for_exit(&mut rig.spawn("feeder", &[("RUST_LOG", "off")], &["report"])).await;
    assert_eq!((csv.code, csv.log.lines().count()), (Some(0), 1));
}
