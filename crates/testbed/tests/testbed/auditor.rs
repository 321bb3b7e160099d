//! The auditor finds deletes that come too early.

use std::sync::Arc;

use anyhow::Result;
use bucket_brigade_testbed::chaos::{ChaosObserver, DeleteChecker};
use bucket_brigade_testbed::cloud::{CreateQueueOptions, QueueUrls};
use bucket_brigade_testbed::seed::SeedOptions;
use bucket_brigade_testbed::traffic::ActiveRows;
use fastrand::Rng;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::world::TestWorld;

struct AuditorFixture {
    world: TestWorld,
    auditor: Arc<DeleteChecker>,
    hot: Arc<ActiveRows>,
    fed: UnboundedReceiver<String>,
    url: String,
    dead_letter_url: Option<String>,
}

impl AuditorFixture {
    async fn open() -> Result<Self> {
        let world = TestWorld::with_seed(&SeedOptions::with_plain_keys(20)).await?;
        let auditor = Arc::new(DeleteChecker::new(&world.application)?);
        let hot = Arc::new(ActiveRows::default());
        let (sender, fed) = unbounded_channel();
        let lookout = ChaosObserver::new(
            &world.application,
            &world.seeded,
            Arc::clone(&auditor),
            Arc::clone(&hot),
            sender,
        );
        world.cloud.observe_requests(Arc::new(lookout))?;
        let queue = world.cloud.create_queue("q", CreateQueueOptions::default());
        let QueueUrls {
            url,
            dead_letter_url,
        } = queue.await?;
        Ok(Self {
            world,
            auditor,
            hot,
            fed,
            url,
            dead_letter_url,
        })
    }

    fn message_of_some_row(&self) -> (String, String) {
        let row = self.world.some_row();
        let body = format!(r#"{{"id":"{}","path":"{}"}}"#, row.id, row.path);
        (row.id.clone(), body)
    }

    /// Sends a message, and deletes it as a consumer that received it.
    async fn send_and_delete(&self, body: &str) -> Result<()> {
        let sqs = self.world.cloud.sqs_client_for("consumer");
        let send = sqs.send_message().queue_url(&self.url).message_body(body);
        send.send().await?;
        let received = sqs.receive_message().queue_url(&self.url).send().await?;
        let messages = received.messages.unwrap_or_default();
        let handle = messages[0].receipt_handle.clone().unwrap_or_default();
        let delete = sqs.delete_message().queue_url(&self.url);
        delete.receipt_handle(handle).send().await?;
        Ok(())
    }
}

#[tokio::test]
async fn an_early_delete_is_found() -> Result<()> {
    let office = AuditorFixture::open().await?;
    let (id, body) = office.message_of_some_row();
    office.send_and_delete(&body).await?;
    let findings = office.auditor.findings();
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert!(
        findings[0].contains(&format!("row {id}: a message was deleted while")),
        "{findings:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_delete_in_its_time_is_none() -> Result<()> {
    let office = AuditorFixture::open().await?;
    let (id, body) = office.message_of_some_row();
    let update = format!("UPDATE images SET path = 'avatar/x' WHERE id = {id}");
    office.world.execute(&update).await?;
    office.send_and_delete(&body).await?;
    let delete = format!("DELETE FROM images WHERE id = {id}");
    office.world.execute(&delete).await?;
    office.send_and_delete(&body).await?;
    assert_eq!(office.auditor.findings(), Vec::<String>::new());
    assert_eq!(office.auditor.checked_deletes(), 2);
    Ok(())
}

#[tokio::test]
async fn a_dead_letter_is_deleted_in_its_time() -> Result<()> {
    let office = AuditorFixture::open().await?;
    let (_, body) = office.message_of_some_row();
    let sqs = office.world.cloud.sqs_client_for("consumer");
    let entry = aws_sdk_sqs::types::SendMessageBatchRequestEntry::builder();
    let entry = entry.id("0").message_body(&body).build()?;
    let send = sqs.send_message_batch().entries(entry);
    let send = send.set_queue_url(office.dead_letter_url.clone());
    send.send().await?;
    office.send_and_delete(&body).await?;
    assert_eq!(office.auditor.findings(), Vec::<String>::new());
    assert_eq!(office.auditor.checked_deletes(), 1);
    Ok(())
}

#[tokio::test]
async fn deleted_poison_is_found() -> Result<()> {
    let office = AuditorFixture::open().await?;
    // A body that could be one of ours is recognised by being announced.
    office
        .auditor
        .expect_poison(r#"{"id":"1","path":"logo/a"}"#);
    for body in ["no message", r#"{"id":"1","path":"logo/a"}"#] {
        office.send_and_delete(body).await?;
    }
    let findings = office.auditor.findings();
    assert_eq!(findings.len(), 2, "{findings:?}");
    assert!(
        findings
            .iter()
            .all(|finding| finding.contains("a poison message was deleted")),
        "{findings:?}"
    );
    Ok(())
}

#[tokio::test]
async fn received_rows_are_hot_and_fed_messages_are_reported() -> Result<()> {
    let mut office = AuditorFixture::open().await?;
    office.send_and_delete(r#"{"id":"2","path":"x"}"#).await?;
    assert_eq!(office.hot.take(&mut Rng::new()), Some("2".to_owned()));
    let sqs = office.world.cloud.sqs_client_for("feeder");
    let entry = aws_sdk_sqs::types::SendMessageBatchRequestEntry::builder();
    let entry = entry.id("0").message_body("fed").build()?;
    let send = sqs.send_message_batch().queue_url(&office.url);
    send.entries(entry).send().await?;
    assert_eq!(office.fed.recv().await, Some("fed".to_owned()));
    Ok(())
}
