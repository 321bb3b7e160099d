//! The runbook's outputs of verify, rollback and clean are those of real runs.

use crate::rig::TestRig;
use crate::transcript::assert_runbook_output;

async fn check_runbook_output(rig: &TestRig, name: &str, arguments: &[&str]) {
    let result = rig.run_feeder(arguments).await;
    let command = format!("feeder {}", arguments.join(" "));
    // The local bucket's name is not that of the runbook's example.
    let command = command
        .replace("0s", "30days")
        .replace("images-old", "old-images");
    let answer = result.output.replace("images-old", "old-images");
    assert_runbook_output(name, &command, &answer);
}

#[tokio::test]
async fn the_runbook_holds_what_the_commands_print() {
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(6).await;
    check_runbook_output(&rig, "verify", &["verify"]).await;
    rig.delete_object("images-new", "avatar/0.png").await;
    rig.put_object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.put_object("images-old", "image/2.png", b"newer").await;
    rig.set_path(&ids[3], "elsewhere/3.png").await;
    check_runbook_output(&rig, "verify-mismatches", &["verify"]).await;
    check_runbook_output(&rig, "clean-preview", &["clean", "--older-than", "0s"]).await;
    rig.set_path(&ids[4], "image/4.png").await;
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    check_runbook_output(&rig, "clean", &clean).await;
    let rig = TestRig::new().await;
    let ids = rig.add_moved_images(4).await;
    rig.put_object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.execute_sql(&format!("DELETE FROM images WHERE id = {}", ids[2]))
        .await;
    check_runbook_output(&rig, "rollback-preview", &["rollback", "--all"]).await;
    check_runbook_output(&rig, "rollback", &["rollback", "--all", "--yes"]).await;
}
