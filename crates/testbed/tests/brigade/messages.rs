//! Messages that are not ours stop no other: they are recorded, and left for the dead-letter queue.

use crate::rig::{TestRig, stop_consumer, wait_until};

#[tokio::test]
async fn poison_of_every_kind_is_set_aside_while_images_move() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let ids = rig.add_images(20).await;
    let poison = [
        "not json".to_owned(),
        r#"{"rowId":1}"#.to_owned(),
        r#"{"id":1,"path":"image/0.png"}"#.to_owned(),
        r#"{"id":"1; DROP TABLE images","path":"image/0.png"}"#.to_owned(),
        r#"{"id":"1","path":"secret/0.png"}"#.to_owned(),
        "x".repeat(200 * 1024),
    ];
    for (number, id) in ids.iter().enumerate() {
        rig.feed_row(id, &format!("image/{number}.png")).await;
        if let Some(body) = poison.get(number) {
            rig.send_message(body).await;
        }
    }
    let consumer = rig.spawn_consumer(&[]);
    let expected = i64::try_from(poison.len()).unwrap();
    wait_until("the images", async || rig.count_rows("moves").await == 20).await;
    wait_until("the dead letters", async || {
        rig.dead_letters().await == u64::try_from(expected).unwrap()
    })
    .await;
    rig.wait_until_drained().await;
    assert_eq!(rig.count_rows("poison").await, expected);
    assert_eq!(rig.ledger_counter("poison").await, expected);
    assert_eq!(
        rig.query_number("SELECT max(length(excerpt))::bigint FROM bucket_brigade.poison")
            .await,
        200
    );
    assert_eq!(
        rig.count_rows("failures").await + rig.count_rows("changes").await,
        0
    );
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_message_cannot_move_what_its_row_does_not_name() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/mine.png").await;
    rig.put_object("images-old", "image/other.png", b"other")
        .await;
    rig.feed_row(&id, "image/other.png").await;
    rig.feed_row(&id, "image/../image/other.png").await;
    rig.feed_row("9999999", "image/other.png").await;
    let consumer = rig.spawn_consumer(&[]);
    rig.wait_until_drained().await;
    assert_eq!(rig.path_of(&id).await.unwrap(), "image/mine.png");
    assert!(rig.destination_sha256("avatar/other.png").await.is_none());
    // The row is still to move: only the row that does not exist has ended.
    assert_eq!(rig.count_rows("changes").await, 1);
    rig.feed_row(&id, "image/mine.png").await;
    wait_until("the row's own move", async || {
        rig.count_rows("moves").await == 1
    })
    .await;
    stop_consumer(consumer).await;
}
