//! Messages that are not ours stop nobody: they are recorded, and left for the dead-letter queue.

use crate::rig::{Rig, eventually, stop};

#[tokio::test]
async fn poison_of_every_kind_is_set_aside_while_images_move() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let ids = rig.images(20).await;
    let poison = [
        "not json".to_owned(),
        r#"{"rowId":1}"#.to_owned(),
        r#"{"id":1,"path":"image/0.png"}"#.to_owned(),
        r#"{"id":"1; DROP TABLE images","path":"image/0.png"}"#.to_owned(),
        r#"{"id":"1","path":"secret/0.png"}"#.to_owned(),
        "x".repeat(200 * 1024),
    ];
    for (number, id) in ids.iter().enumerate() {
        rig.feed(id, &format!("image/{number}.png")).await;
        if let Some(body) = poison.get(number) {
            rig.send(body).await;
        }
    }
    let consumer = rig.consumer(&[]);
    let expected = i64::try_from(poison.len()).unwrap();
    eventually("the images", async || rig.count("moves").await == 20).await;
    eventually("the dead letters", async || {
        rig.dead().await == u64::try_from(expected).unwrap()
    })
    .await;
    rig.drained().await;
    assert_eq!(rig.count("poison").await, expected);
    assert_eq!(rig.counter("poison").await, expected);
    assert_eq!(
        rig.number("SELECT max(length(excerpt))::bigint FROM bucket_brigade.poison")
            .await,
        200
    );
    assert_eq!(rig.count("failures").await + rig.count("changes").await, 0);
    stop(consumer).await;
}

#[tokio::test]
async fn a_message_cannot_move_what_its_row_does_not_name() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let id = rig.image("image/mine.png").await;
    rig.object("images-old", "image/other.png", b"other").await;
    rig.feed(&id, "image/other.png").await;
    rig.feed(&id, "image/../image/other.png").await;
    rig.feed("9999999", "image/other.png").await;
    let consumer = rig.consumer(&[]);
    rig.drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "image/mine.png");
    assert!(rig.destination("avatar/other.png").await.is_none());
    // The row is still to move: only the row that does not exist has ended.
    assert_eq!(rig.count("changes").await, 1);
    rig.feed(&id, "image/mine.png").await;
    eventually("the row's own move", async || rig.count("moves").await == 1).await;
    stop(consumer).await;
}
