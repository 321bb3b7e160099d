//! Killed in the middle, and begun again.

use std::time::Duration;

use bucket_brigade_testbed::cloud::FaultHandle;
use bucket_brigade_testbed::{Effect, Fault};

use crate::rig::{Rig, end, eventually};

/// More than two pages of each command.
const ROWS: usize = 2100;

fn slow_looks(rig: &Rig) -> FaultHandle {
    let slow = Effect::Delay(Duration::from_millis(50));
    rig.cloud
        .inject(Fault::new("HeadObject", slow).caller("feeder"))
}

#[tokio::test]
async fn a_verify_goes_on_where_it_was() {
    let rig = Rig::new().await;
    rig.moved_in_the_ledger(ROWS).await;
    rig.remove("images-new", "avatar/0.png").await;
    let slow = slow_looks(&rig);
    let mut verify = rig.begin(&["verify"]);
    let checked = "SELECT checked FROM bucket_brigade.verifications";
    eventually("the first page", async || rig.number(checked).await > 0).await;
    verify.kill().await.unwrap();
    drop(slow);
    let before = rig.cloud.requests().count_by("feeder", "HeadObject");
    // What the next one looks at is what is left, and a page at most.
    let told = rig.tell(&["verify"]).await;
    assert_eq!(
        (told.code, told.number("checked"), told.number("mismatched")),
        (1, 2100, 1)
    );
    let looks = rig.cloud.requests().count_by("feeder", "HeadObject") - before;
    assert!(looks < 2 * 2100, "{looks} looks");
    // Asked for something else, it begins anew; and stopped in good order, it says so.
    let told = rig.tell(&["verify", "--sample", "10"]).await;
    let sample = told.number("checked");
    assert!(
        (100..400).contains(&sample),
        "{sample} of 2100 in a sample of 10 %"
    );
    let slow = slow_looks(&rig);
    let mut verify = rig.spawn("feeder", &[], &["verify"]);
    eventually("the first page", async || rig.number(checked).await == 1000).await;
    verify.terminate().await.unwrap();
    let ended = end(&mut verify).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    drop(slow);
    let told = rig.tell(&["verify", "--anew"]).await;
    assert_eq!(told.number("checked"), 2100);
}

#[tokio::test]
async fn a_rollback_goes_on_with_what_is_left() {
    let rig = Rig::new().await;
    rig.moved_in_the_ledger(600).await;
    let slow = slow_looks(&rig);
    let mut rollback = rig.begin(&["rollback", "--all", "--yes"]);
    eventually("some rows", async || rig.count("rollbacks").await > 0).await;
    rollback.kill().await.unwrap();
    drop(slow);
    let back = rig.count("rollbacks").await;
    assert!(back < 600, "it was too fast");
    assert_eq!(rig.count("moves").await, 600 - back);
    rig.counts_agree().await;
    let told = rig.tell(&["rollback", "--all", "--yes"]).await;
    assert_eq!((told.code, told.number("rolled_back")), (0, 600 - back));
    let old = "SELECT count(*) FROM images WHERE path LIKE 'image/%'";
    assert_eq!((rig.number(old).await, rig.count("moves").await), (600, 0));
    rig.counts_agree().await;
}

/// The application replaces an image while its row goes back, and the rollback is killed before its second
/// look at the copy: the next one looks.
#[tokio::test]
async fn an_image_replaced_in_the_moment_of_the_kill_is_shown_by_the_next_rollback() {
    let rig = Rig::new().await;
    let ids = rig.moved(3).await;
    let late = Effect::LateAnswer(Duration::from_secs(1));
    let first_look = Fault::new("HeadObject", late).caller("feeder");
    let first_look = rig
        .cloud
        .inject(first_look.key_contains("avatar/0").times(1));
    let never = Effect::Delay(Duration::from_mins(1));
    let second_look = Fault::new("HeadObject", never).caller("feeder");
    let second_look = rig.cloud.inject(second_look.key_contains("avatar/0"));
    let mut rollback = rig.begin(&["rollback", "--all", "--yes"]);
    eventually("the look at the copy", async || first_look.hits() > 0).await;
    // As the application does it: the object, then the row, which names it already.
    rig.object("images-new", "avatar/0.png", b"the application's")
        .await;
    rig.set_path(&ids[0], "avatar/0.png").await;
    eventually("the second look", async || second_look.hits() > 0).await;
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "image/0.png");
    rollback.kill().await.unwrap();
    drop(second_look);
    // Another selection does as well.
    let told = rig.tell(&["rollback", "--ids", &ids[1], "--yes"]).await;
    assert_eq!(told.of("left_alone", &ids[0], "reason"), "copy_replaced");
    assert_eq!(rig.path_of(&ids[0]).await.unwrap(), "avatar/0.png");
    assert_eq!(rig.path_of(&ids[2]).await.unwrap(), "image/2.png");
    let unseen = "SELECT count(*) FROM bucket_brigade.rollbacks WHERE looked_at IS NULL";
    assert_eq!(rig.number(unseen).await, 0);
    rig.counts_agree().await;
    rig.migrate().await;
    assert_eq!(rig.count("failures").await, 0);
}

/// The objects are gone, and whoever removed them did not live to write it down.
#[tokio::test]
async fn a_clean_writes_down_what_the_one_before_it_removed() {
    let rig = Rig::new().await;
    let ids = rig.moved(3).await;
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let late = Effect::LateAnswer(Duration::from_mins(1));
    let late = rig.cloud.inject(Fault::new("DeleteObjects", late));
    let mut killed = rig.begin(&clean);
    eventually("the removal", async || {
        !rig.exists("images-old", "image/0.png").await
    })
    .await;
    killed.kill().await.unwrap();
    drop(late);
    let told = rig.tell(&["rollback", "--all", "--yes"]).await;
    assert_eq!(
        told.of("left_alone", &ids[0], "reason"),
        "source_in_removal"
    );
    // Meanwhile a row came to name one of them.
    rig.set_path(&ids[1], "image/1.png").await;
    let told = rig.tell(&clean).await;
    assert_eq!(
        (told.code, told.number("removed"), told.number("left_alone")),
        (2, 2, 1),
        "{}",
        told.json
    );
    assert!(
        rig.exists("images-old", "image/1.png").await,
        "brought back"
    );
    let removed = "SELECT count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL";
    assert_eq!(rig.number(removed).await, 2);
}

/// Killed before the request: what was only intended is done by the next.
#[tokio::test]
async fn a_clean_does_what_the_one_before_it_intended() {
    let rig = Rig::new().await;
    rig.moved(3).await;
    assert_eq!(rig.tell(&["verify"]).await.code, 0);
    let clean = ["clean", "--older-than", "0s", "--confirm", "images-old"];
    let never = Effect::Delay(Duration::from_mins(1));
    let never = rig.cloud.inject(Fault::new("DeleteObjects", never));
    let mut killed = rig.begin(&clean);
    eventually("the request", async || never.hits() > 0).await;
    killed.kill().await.unwrap();
    drop(never);
    let intended = "SELECT count(*) FROM bucket_brigade.removals WHERE removing_at IS NOT NULL";
    assert_eq!(rig.number(intended).await, 3);
    // One that asks for older moves only takes the intention back.
    let older = ["clean", "--older-than", "1h", "--confirm", "images-old"];
    let told = rig.tell(&older).await;
    assert_eq!(
        (told.code, told.number("removed"), told.number("left_alone")),
        (2, 0, 3)
    );
    assert_eq!(rig.number(intended).await, 0);
    let told = rig.tell(&clean).await;
    assert_eq!((told.code, told.number("removed")), (0, 3));
}
