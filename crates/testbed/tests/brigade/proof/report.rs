//! report: one line per row, in three formats, whatever the paths hold.

use crate::rig::{Rig, end};

/// Moved, failed, changed, and set back; the paths with all that a format stumbles over.
async fn rows_of_every_state(rig: &Rig) -> Vec<String> {
    let name = "image/a,\"b\"<script>é.png";
    let id = rig.image(name).await;
    let back = rig.image("image/back.png").await;
    let failed = rig.row("image/missing.png").await;
    rig.migrate().await;
    let changed = rig.image("image/changed.png").await;
    rig.sql(&format!(
        "UPDATE images SET path = 'elsewhere/x' WHERE id = {changed}"
    ))
    .await;
    let consumer = rig.consumer(&[("CONDITIONAL_COPY", "on")]);
    rig.feed(&changed, "image/changed.png").await;
    rig.drained().await;
    crate::rig::stop(consumer).await;
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    let told = rig.tell(&["rollback", "--ids", &back, "--yes"]).await;
    assert_eq!(told.code, 0);
    vec![id, failed, changed, back]
}

#[tokio::test]
async fn each_row_has_one_line_in_each_format() {
    let rig = Rig::new().await;
    let ids = rows_of_every_state(&rig).await;
    let lines = rig.tell(&["report"]).await.json;
    let lines = lines.as_array().unwrap();
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

    let csv = end(&mut rig.spawn("feeder", &[("RUST_LOG", "off")], &["report"]))
        .await
        .log;
    assert!(
        csv.starts_with("id,state,old_path,new_path,etag,size_bytes,at,by,verified_at"),
        "{csv}"
    );
    assert!(csv.contains("\"image/a,\"\"b\"\"<script>é.png\""), "{csv}");
    assert_eq!(csv.lines().count(), 5);

    let html = ["report", "--format", "html"];
    let mut html = rig.spawn("feeder", &[("RUST_LOG", "off")], &html);
    let html = end(&mut html).await.log;
    assert!(
        html.starts_with("<!doctype html>") && html.ends_with("</html>"),
        "{html}"
    );
    assert!(html.contains("image/a,&quot;b&quot;&lt;script&gt;é.png") && !html.contains("<script"));
    assert_eq!(html.matches("<tr").count(), 5);
}

#[tokio::test]
async fn a_row_that_moved_again_has_its_later_line_alone() {
    let rig = Rig::new().await;
    rig.moved(2).await;
    assert_eq!(rig.tell(&["rollback", "--all", "--yes"]).await.code, 0);
    rig.migrate().await;
    let lines = rig.tell(&["report", "--format", "json"]).await.json;
    let states = lines.as_array().unwrap().iter().map(|line| &line["state"]);
    assert!(states.clone().all(|state| state == "moved"));
    assert_eq!(states.count(), 2);
    // An empty report is a report.
    let rig = Rig::new().await;
    rig.open_run().await;
    assert_eq!(rig.tell(&["report"]).await.json, serde_json::json!([]));
}
