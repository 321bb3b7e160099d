//! Deletes through outages, and batches of which some entries are refused.

use std::collections::VecDeque;

use async_trait::async_trait;
use bucket_brigade_common::health::Dependency;
use bucket_brigade_common::queue::{DeadLetter, OutgoingMessage, QueueAttributes, ReceivedMessage};
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{advance, timeout};

use super::*;

type Answer = Result<Vec<EntryOutcome>, QueueError>;

type DeleteAnswer = dyn Fn(&[String]) -> Answer + Send + Sync;

/// Answers deletes.
struct FakeQueue {
    answer: Box<DeleteAnswer>,
    deletes: Mutex<Vec<Vec<String>>>,
    renewals: Mutex<usize>,
}

#[async_trait]
impl MessageQueue for FakeQueue {
    async fn send_batch(&self, _: &[OutgoingMessage]) -> Answer {
        Err(unavailable())
    }

    async fn receive_batch(
        &self,
        _: usize,
        _: Duration,
        _: Duration,
    ) -> Result<Vec<ReceivedMessage>, QueueError> {
        Err(unavailable())
    }

    async fn delete_batch(&self, handles: &[String]) -> Answer {
        self.deletes.lock().push(handles.to_vec());
        let answer = (self.answer)(handles);
        if matches!(&answer, Err(QueueError::Unavailable { message, .. }) if message == "silent") {
            sleep(Duration::from_secs(8)).await;
        }
        answer
    }

    async fn change_visibility(&self, changes: &[(String, Duration)]) -> Answer {
        *self.renewals.lock() += 1;
        if changes.iter().any(|(handle, _)| handle == "silent") {
            sleep(Duration::from_hours(1)).await;
        }
        Ok(vec![EntryOutcome::Done; changes.len()])
    }

    async fn send_dead_letters(&self, _: &[DeadLetter]) -> Answer {
        Err(unavailable())
    }

    async fn queue_attributes(&self) -> Result<QueueAttributes, QueueError> {
        Err(unavailable())
    }
}

fn unavailable() -> QueueError {
    QueueError::Unavailable {
        operation: "DeleteMessageBatch",
        message: "silent".into(),
    }
}

fn refused(code: &str) -> QueueError {
    QueueError::Refused {
        operation: "DeleteMessageBatch",
        code: code.into(),
        message: String::new(),
    }
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "an answer, as those that are errors"
)]
fn all_done(handles: &[String]) -> Answer {
    Ok(vec![EntryOutcome::Done; handles.len()])
}

struct Fixture {
    queue: Arc<FakeQueue>,
    context: ConsumerContext,
    acknowledger: Acknowledger,
}

impl Fixture {
    fn new(answer: impl Fn(&[String]) -> Answer + Send + Sync + 'static) -> Self {
        let queue = Arc::new(FakeQueue {
            answer: Box::new(answer),
            deletes: Mutex::default(),
            renewals: Mutex::default(),
        });
        let context = ConsumerContext::for_tests();
        let shared: Arc<dyn MessageQueue> = Arc::<FakeQueue>::clone(&queue);
        Self {
            acknowledger: Acknowledger::new(&shared, &context),
            queue,
            context,
        }
    }

    async fn delete(&self, handle: &str) -> bool {
        let lease = self.context.leases.start_lease(handle.to_owned());
        let held = lease.suspend().await.unwrap();
        self.acknowledger.delete(&lease, held).await
    }

    async fn delete_all(&self, handles: &[&str]) -> Vec<bool> {
        join_all(handles.iter().map(|handle| self.delete(handle))).await
    }

    /// Deletes with the leases renewed.
    async fn delete_renewed(&self, handles: &[&str]) -> Vec<bool> {
        tokio::select! {
            () = self.context.leases.renew_forever(&*self.queue) => Vec::new(),
            deleted = self.delete_all(handles) => deleted,
        }
    }

    fn deletes(&self) -> usize {
        self.queue.deletes.lock().len()
    }
}

#[tokio::test(start_paused = true)]
async fn only_unconfirmed_entries_are_retried() {
    let answers = Mutex::new(VecDeque::from([
        Ok(vec![
            EntryOutcome::Done,
            EntryOutcome::Retry("busy".into()),
            EntryOutcome::Refused("stale".into()),
        ]),
        Err(unavailable()),
    ]));
    let fixture = Fixture::new(move |handles| {
        let answer = answers.lock().pop_front();
        answer.unwrap_or_else(|| all_done(handles))
    });
    assert_eq!(
        fixture.delete_all(&["a", "b", "c"]).await,
        [true, true, false]
    );
    let sent = fixture.queue.deletes.lock().clone();
    assert_eq!(sent, [vec!["a", "b", "c"], vec!["b"], vec!["b"]]);
    assert_eq!(fixture.context.health.outage(), None);
}

/// Each outage of an hour, in which no lease is lost; then all is deleted.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_deleted_is_kept_in_hand_until_it_can() {
    let retry = EntryOutcome::Retry("OptInRequired: no".into());
    let failures = [
        ("AccessDenied", Err(refused("AccessDeniedException"))),
        ("ExpiredToken", Err(refused("ExpiredTokenException"))),
        ("KMS", Err(refused("KMS.DisabledException"))),
        ("silent", Err(unavailable())),
        ("OptInRequired", Ok(vec![retry; MAX_BATCH_ENTRIES])),
    ];
    for (name, failure) in failures {
        let began = Instant::now();
        let end = Duration::from_hours(1);
        let fixture = Fixture::new(move |handles| {
            if began.elapsed() < end {
                failure.clone()
            } else {
                all_done(handles)
            }
        });
        let handles: Vec<String> = (0..200).map(|number| number.to_string()).collect();
        let handles: Vec<&str> = handles.iter().map(String::as_str).collect();
        let during = async {
            sleep(Duration::from_mins(50)).await;
            let outage = fixture.context.health.outage().unwrap_or_default();
            assert!(
                outage.contains("deleting messages: ") && outage.contains(name),
                "{outage}"
            );
            // Receives that succeed say nothing of it.
            fixture.context.health.mark_up(Dependency::Queue);
            assert!(fixture.context.health.outage().is_some());
            // One is tried.
            assert!(fixture.context.leases.held_count() >= 199);
            let wait = fixture.acknowledger.wait_while_failing();
            assert!(timeout(Duration::from_mins(9), wait).await.is_err());
        };
        let (deleted, ()) = tokio::join!(fixture.delete_renewed(&handles), during);
        assert!(deleted.iter().all(|is_deleted| *is_deleted), "{name}");
        assert_eq!(fixture.context.health.outage(), None);
        assert!(began.elapsed() < end + Duration::from_secs(20), "{name}");
        // After each batch has been tried five times, one a second.
        assert!(
            fixture.deletes() < 3600 + 200,
            "{name}: {}",
            fixture.deletes()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_and_a_stop_end_the_tries() {
    let fixture = Fixture::new(|_| Err(refused("AccessDenied")));
    // Nothing renews it.
    assert_eq!(fixture.delete_all(&["a"]).await, [false]);
    assert_eq!(fixture.context.leases.held_count(), 0);
    let stop = async {
        sleep(Duration::from_secs(10)).await;
        fixture.context.stop.cancel();
    };
    let handles: Vec<&str> = vec!["b"; 50];
    let (deleted, ()) = tokio::join!(fixture.delete_renewed(&handles), stop);
    assert_eq!(deleted, [false; 50]);
    let began = Instant::now();
    assert_eq!(fixture.delete_all(&["c"]).await, [false]);
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// All leases ran out, or what is left is refused for its own sake.
#[tokio::test(start_paused = true)]
async fn where_little_is_in_hand_a_few_are_received_to_see_whether_deletes_work_again() {
    let fixture = Fixture::new(|handles| match &*handles[0] {
        "good" => all_done(handles),
        _ => Err(refused("AccessDenied")),
    });
    let probed = async {
        fixture.acknowledger.wait_while_failing().await;
        sleep(Duration::from_secs(10)).await;
        assert!(fixture.context.health.outage().is_some());
        let began = Instant::now();
        fixture.acknowledger.wait_while_failing().await;
        assert!(began.elapsed() >= Duration::from_secs(45));
        // It waits for its turn behind the one that fails.
        assert!(fixture.delete("good").await);
        assert_eq!(fixture.context.health.outage(), None);
    };
    tokio::select! {
        deleted = fixture.delete_renewed(&["bad"]) => panic!("{deleted:?}"),
        () = probed => {}
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_which_nothing_is_left_in_hand_ends_by_itself() {
    let fixture = Fixture::new(|_| Err(refused("AccessDenied")));
    fixture.delete_all(&["a"]).await;
    assert!(fixture.context.health.outage().is_some());
    fixture.acknowledger.wait_while_failing().await;
    assert!(fixture.context.health.outage().is_some());
    advance(fixture.context.leases.visibility()).await;
    fixture.acknowledger.wait_while_failing().await;
    assert_eq!(fixture.context.health.outage(), None);
}

#[tokio::test(start_paused = true)]
async fn the_messages_of_a_missing_queue_are_gone_with_it() {
    let fixture = Fixture::new(|_| Err(refused("AWS.SimpleQueueService.NonExistentQueue")));
    assert_eq!(fixture.delete_all(&["a", "b", "c", "d"]).await, [false; 4]);
    assert_eq!(fixture.deletes(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_for_which_a_whole_batch_is_refused_is_alone_in_the_end() {
    let fixture = Fixture::new(|handles| {
        if handles.iter().any(|handle| handle == "b") {
            return Err(refused("InvalidParameterValue"));
        }
        all_done(handles)
    });
    let deleted = fixture.delete_all(&["a", "b", "c", "d"]).await;
    assert_eq!(deleted, [true, false, true, true]);
    assert_eq!(fixture.context.health.outage(), None);
}

/// A message must not be hidden again after its release.
#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_holds_up_the_messages_that_it_renews_and_no_others() {
    let fixture = Fixture::new(all_done);
    let leases = &fixture.context.leases;
    let handles = ["silent"; 10].into_iter().chain(["other"; 5]);
    let held: Vec<_> = handles
        .map(|handle| leases.start_lease(handle.into()))
        .collect();
    let (first, last) = (&held[0], &held[14]);
    let visibility = leases.visibility();
    let ending = async {
        sleep(visibility * 6 / 10).await;
        let began = Instant::now();
        assert!(last.suspend().await.is_some());
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(first.suspend().await.is_some());
        assert_eq!(began.elapsed(), visibility / 15);
    };
    tokio::select! {
        () = leases.renew_forever(&*fixture.queue) => {}
        () = ending => {}
    }
}
