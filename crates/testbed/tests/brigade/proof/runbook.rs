//! The runbook's outputs of verify, rollback and clean are those of real runs.

use crate::rig::Rig;
use crate::transcript::shown;

async fn told(rig: &Rig, name: &str, arguments: &[&str]) {
    let told = rig.feeder(arguments).await;
    let command = format!("feeder {}", arguments.join(" "));
    // The local bucket's name is not that of the runbook's example.
    let command = command
        .replace("0s", "30days")
        .replace("images-old", "old-images");
    let answer = told.answer.replace("images-old", "old-images");
    shown(name, &command, &answer);
}

#[tokio::test]
async fn the_runbook_shows_what_the_commands_print() {
    let rig = Rig::new().await;
    let ids = rig.moved(6).await;
    told(&rig, "verify", &["verify"]).await;
    rig.remove("images-new", "avatar/0.png").await;
    rig.object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.object("images-old", "image/2.png", b"newer").await;
    rig.set_path(&ids[3], "elsewhere/3.png").await;
    told(&rig, "verify-mismatches", &["verify"]).await;
    told(&rig, "clean-preview", &["clean", "--older-than", "0s"]).await;
    rig.set_path(&ids[4], "image/4.png").await;
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    told(&rig, "clean", &clean).await;
    let rig = Rig::new().await;
    let ids = rig.moved(4).await;
    rig.object("images-new", "avatar/1.png", b"the application's")
        .await;
    rig.sql(&format!("DELETE FROM images WHERE id = {}", ids[2]))
        .await;
    told(&rig, "rollback-preview", &["rollback", "--all"]).await;
    told(&rig, "rollback", &["rollback", "--all", "--yes"]).await;
}
