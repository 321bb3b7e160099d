//! What has failed for good is in the dead-letter queue after one copy, whatever happens on its way there.

use std::time::Duration;

use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{Message, MessageAttributeValue};
use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const CONSUMER: (&str, &str) = ("CONDITIONAL_COPY", "on");

fn text_attribute(text: &str) -> MessageAttributeValue {
    let value = MessageAttributeValue::builder().data_type("String.label");
    value.string_value(text).build().unwrap()
}

fn binary_attribute(bytes: &[u8]) -> MessageAttributeValue {
    let value = MessageAttributeValue::builder().data_type("Binary");
    value.binary_value(Blob::new(bytes)).build().unwrap()
}

/// A row without an object, and a message for it that carries something of its sender's.
async fn feed_missing(rig: &TestRig, path: &str) -> String {
    let id = rig.add_row(path).await;
    let body = serde_json::json!({ "id": id, "path": path }).to_string();
    let send = rig.cloud.sqs_client().send_message();
    let send = send.queue_url(&rig.queue.url).message_body(&body);
    let send = send.message_attributes("label", text_attribute(path));
    let send = send.message_attributes("bytes", binary_attribute(&[0, 255]));
    send.send().await.unwrap();
    body
}

async fn receive_dead_letters(rig: &TestRig) -> Vec<Message> {
    let receive = rig.cloud.sqs_client().receive_message();
    let receive = receive.set_queue_url(rig.queue.dead_letter_url.clone());
    let receive = receive.message_attribute_names("All").visibility_timeout(0);
    let received = receive.max_number_of_messages(10).send().await.unwrap();
    received.messages.unwrap_or_default()
}

fn copies(rig: &TestRig) -> u64 {
    let requests = rig.cloud.request_counts();
    requests.count_operation_by("consumer", "CopyObject")
}

#[tokio::test]
async fn what_failed_for_good_is_copied_once_and_keeps_its_attributes() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[CONSUMER]);
    for count in 1..=2 {
        let path = format!("image/missing-{count}.png");
        let body = feed_missing(&rig, &path).await;
        wait_until("the dead letter", async || {
            rig.dead_letters().await == count
        })
        .await;
        rig.wait_until_drained().await;
        assert_eq!(copies(&rig), count);
        let mut letters = receive_dead_letters(&rig).await;
        letters.retain(|letter| letter.body() == Some(&body));
        let attributes = letters[0].message_attributes.clone().unwrap();
        assert_eq!(attributes["label"], text_attribute(&path));
        assert_eq!(attributes["bytes"], binary_attribute(&[0, 255]));
        assert_eq!(attributes.len(), 2);
    }
    assert_eq!(rig.ledger_counter("failed").await, 2);
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn without_the_right_the_redrive_policy_does_it_with_one_warning() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let denied = FaultEffect::error(403, "AccessDenied");
    let denied = Fault::new("SendMessageBatch", denied).caller("consumer");
    let denied = rig.cloud.inject_fault(denied);
    for number in 0..12 {
        feed_missing(&rig, &format!("image/missing-{number}.png")).await;
    }
    let consumer = rig.spawn_consumer(&[CONSUMER]);
    wait_until("the dead letters", async || rig.dead_letters().await == 12).await;
    assert_eq!(copies(&rig), 12);
    assert_eq!(rig.ledger_counter("failed").await, 12);
    let log = stop_consumer(consumer).await;
    assert!(denied.hits() > 0);
    let warnings = log.matches("are left to the redrive policy").count();
    assert_eq!(warnings, 1, "{log}");
}

#[tokio::test]
async fn without_the_dead_letter_queue_messages_slow_down_and_retry_names_it() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let dead_letter_url = rig.queue.dead_letter_url.clone().unwrap();
    let delete = rig.cloud.sqs_client().delete_queue();
    delete.queue_url(&dead_letter_url).send().await.unwrap();
    feed_missing(&rig, "image/missing.png").await;
    let consumer = rig.spawn_consumer(&[CONSUMER]);
    let releases = || {
        let requests = rig.cloud.request_counts();
        requests.count_operation_by("consumer", "ChangeMessageVisibilityBatch")
    };
    let words = "cannot be sent to the dead-letter queue";
    wait_until("the warning", async || {
        consumer.log_tail(20).contains(words)
    })
    .await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(releases() <= 4, "{} releases", releases());
    assert_eq!(copies(&rig), 1);
    let log = stop_consumer(consumer).await;
    assert_eq!(log.matches(words).count(), 1, "{log}");
    let retry = wait_for_exit(&mut rig.spawn("feeder", &[], &["retry", "--yes"])).await;
    assert_eq!(retry.code, Some(64), "{}", retry.log);
    assert!(retry.log.contains(&dead_letter_url), "{}", retry.log);
    assert_eq!(rig.count_rows("failures").await, 1);
}

/// The first page of failures is gone by then.
#[tokio::test]
async fn a_retry_that_is_stopped_is_in_the_history() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    rig.execute_sql(
        "INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
         SELECT 1, n::text, 'image/' || n, 'NoSuchKey', 'gone', true FROM generate_series(1001, 3500) n",
    )
    .await;
    let mut transaction = rig.pool.begin().await.unwrap();
    sqlx::query("SELECT 1 FROM bucket_brigade.failures WHERE row_id = '3500' FOR UPDATE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    let mut retry = rig.spawn("feeder", &[], &["retry", "--yes"]);
    wait_until("the first page", async || {
        rig.count_rows("failures").await == 500
    })
    .await;
    retry.terminate().unwrap();
    assert_eq!(wait_for_exit(&mut retry).await.code, Some(3));
    transaction.rollback().await.unwrap();
    let history = rig.run_feeder(&["runs", "--history"]).await.output;
    let entry = "retry 2500 failures, 0 dead letters by ";
    assert!(history.contains(entry), "{history}");
}

/// SQS takes one redrive of a queue at a time.
#[tokio::test]
async fn a_retry_during_a_redrive_leaves_the_letters_to_it() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[CONSUMER]);
    feed_missing(&rig, "image/missing.png").await;
    wait_until("the dead letter", async || rig.dead_letters().await == 1).await;
    let busy = FaultEffect::Error {
        status: 400,
        code: "InvalidParameterValue".into(),
        message: "There is already a task running. Only one active task is allowed".into(),
    };
    let _busy = rig
        .cloud
        .inject_fault(Fault::new("StartMessageMoveTask", busy));
    let retried = rig.run_json_command(&["retry", "--yes"]).await;
    assert_eq!(retried.code, 0, "{}", retried.json);
    assert_eq!(retried.json["redrive"], "started");
    stop_consumer(consumer).await;
}

/// As with a queue of another account, of which SQS lets nobody start it.
#[tokio::test]
async fn a_redrive_that_is_denied_is_done_one_by_one() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let consumer = rig.spawn_consumer(&[CONSUMER]);
    feed_missing(&rig, "image/missing.png").await;
    wait_until("the dead letter", async || rig.dead_letters().await == 1).await;
    let denied = Fault::new(
        "StartMessageMoveTask",
        FaultEffect::error(403, "AccessDenied"),
    );
    let _denied = rig.cloud.inject_fault(denied);
    let retried = rig.run_json_command(&["retry", "--yes"]).await;
    assert_eq!(retried.code, 0, "{}", retried.json);
    assert_eq!(retried.json["redrive"], "by hand");
    stop_consumer(consumer).await;
}

/// The letter is sent, the message not yet deleted: another consumer sends it again.
#[tokio::test]
async fn a_crash_before_the_delete_makes_a_second_letter_and_no_second_failure() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let never = FaultEffect::Delay(Duration::from_mins(1));
    let never = Fault::new("DeleteMessageBatch", never).caller("consumer");
    let never = rig.cloud.inject_fault(never);
    feed_missing(&rig, "image/missing.png").await;
    let settings = [CONSUMER, ("VISIBILITY_TIMEOUT", "2s")];
    let mut killed = rig.spawn_consumer(&settings);
    wait_until("the delete", async || never.hits() > 0).await;
    assert_eq!(rig.dead_letters().await, 1);
    killed.kill().await.unwrap();
    drop(never);
    let consumer = rig.spawn_consumer(&settings);
    rig.wait_until_drained().await;
    assert_eq!(rig.dead_letters().await, 2);
    assert_eq!((copies(&rig), rig.ledger_counter("failed").await), (1, 1));
    stop_consumer(consumer).await;
}
