//! report: one line per row, in two formats, whatever the paths hold.

use std::collections::HashSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use bucket_brigade_testbed::process::binary_path;
use serde_json::Value;

use crate::rig::{TestRig, wait_for_exit, wait_until};

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
    let result = rig
        .run_json_command(&["rollback", "--ids", &back, "--yes"])
        .await;
    assert_eq!(result.code, 0);
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

/// A report whose reader takes its time.
fn spawn_unread(rig: &TestRig) -> tokio::process::Child {
    let mut command = tokio::process::Command::new(binary_path("feeder").unwrap());
    command.arg("report").env_clear().current_dir("/");
    command.envs(rig.environment("operator", &[]));
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    command.kill_on_drop(true).spawn().unwrap()
}

#[tokio::test]
async fn a_report_that_is_not_read_holds_no_snapshot_and_ends_at_once() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
         SELECT 1, n::text, 'image/' || n, 'avatar/' || n, 'e', 'c' FROM generate_series(1, 50000) n;
         INSERT INTO bucket_brigade.rollbacks (run_id, row_id, old_path, new_path, etag, consumer, moved_at, operator)
         SELECT 1, n::text, 'image/' || n, 'avatar/' || n, 'e', 'c', now(), 'o' FROM generate_series(49999, 50002) n",
    )
    .await;
    let sessions = |condition: &str| {
        format!(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
              AND application_name = 'bucket-brigade report' AND {condition}"
        )
    };
    let mut report = spawn_unread(&rig);
    wait_until("the first page", async || {
        let idle = sessions("state = 'idle' AND query LIKE '%rank%'");
        rig.query_number(&idle).await == 1
    })
    .await;
    let busy = sessions("(backend_xmin IS NOT NULL OR state <> 'idle')");
    assert_eq!(rig.query_number(&busy).await, 0);
    let began = Instant::now();
    let id = i32::try_from(report.id().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(id).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert_eq!(report.wait().await.unwrap().code(), Some(3));
    assert!(began.elapsed() < Duration::from_secs(5));
    // Read to its end, it has each row once.
    let report = rig.run_feeder(&["report", "--json"]).await.output;
    let lines = report.lines().map(serde_json::from_str::<Value>);
    let lines: Vec<Value> = lines.map(Result::unwrap).collect();
    let ids: HashSet<_> = lines.iter().map(|line| line["id"].to_string()).collect();
    assert_eq!((lines.len(), ids.len()), (50_002, 50_002));
    let set_back = lines.iter().filter(|line| line["state"] == "rolled back");
    assert_eq!(set_back.count(), 2);
}
