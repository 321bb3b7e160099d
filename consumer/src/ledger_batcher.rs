//! Batched calls to the ledger. A batch is tried until the database takes it: nothing that was copied is
//! copied again because a commit failed. A request that the database refuses fails alone.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::batch::{BatchConfig, Batcher, flush_in_halves};
use bucket_brigade_common::health::{Dependency, Health};
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{LOCK_NOT_AVAILABLE, STATEMENT_CANCELLED};
use bucket_brigade_common::panics::contain_panic;
use bucket_brigade_common::retry::Backoff;
use bucket_brigade_common::throttle::Throttle;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::context::ConsumerContext;
use crate::fair_slots::SlotShare;
use crate::protocol::FailureCause;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_millis(50),
    max_delay: Duration::from_secs(15),
};

/// A failover in the middle of it, or a deadlock, is over by then.
const SUSPECT_TRIES: u32 = 3;

/// Of so few rows each is tried alone where one needs a lock that the application holds: each half would wait for it.
const ROWS_BESIDE_LOCKED: usize = 16;

/// Classes of errors that pass: of connections, transactions, resources, an operator's intervention, and the system. A
/// trigger may run into them on another server.
const PASSING_CLASSES: [&str; 5] = ["08", "40", "53", "57", "58"];

#[derive(Debug, Clone)]
pub enum LedgerOutcome<R> {
    Done(R),
    Refused(FailureCause),
    /// The process is stopping, and the database does not answer; or the run is gone.
    Interrupted,
}

/// Takes requests of one kind one by one.
pub struct LedgerBatcher<T, R>(Batcher<T, LedgerOutcome<R>>);

impl<T, R> LedgerBatcher<T, R>
where
    T: Clone + Send + Sync + 'static,
    R: Send + 'static,
{
    /// `call` returns the result of each request of its batch, in order.
    pub fn new<F>(config: BatchConfig, context: &ConsumerContext, call: F) -> Self
    where
        F: Fn(Arc<[T]>) -> BoxFuture<'static, Result<Vec<R>, StatementError>>
            + Send
            + Sync
            + 'static,
    {
        let retrier = Arc::new(LedgerRetrier {
            call,
            health: context.health.clone(),
            statements: Arc::clone(&context.statements),
            throttle: Arc::clone(&context.throttle),
            stop: context.stop.clone(),
        });
        Self(Batcher::new(config, move |batch| {
            let retrier = Arc::clone(&retrier);
            async move { retrier.flush(batch).await }.boxed()
        }))
    }

    pub async fn submit(&self, request: T) -> LedgerOutcome<R> {
        let outcome = self.0.submit(request).await;
        outcome.unwrap_or(LedgerOutcome::Interrupted)
    }
}

struct LedgerRetrier<F> {
    call: F,
    health: Health,
    statements: Arc<SlotShare>,
    throttle: Arc<Throttle>,
    stop: CancellationToken,
}

impl<F> LedgerRetrier<F> {
    async fn flush<T, R>(&self, batch: Vec<T>) -> Vec<LedgerOutcome<R>>
    where
        T: Clone,
        F: Fn(Arc<[T]>) -> BoxFuture<'static, Result<Vec<R>, StatementError>>,
    {
        let is_timeout = |cause: &FailureCause, rows| {
            cause.code == STATEMENT_CANCELLED
                || cause.code == LOCK_NOT_AVAILABLE && rows <= ROWS_BESIDE_LOCKED
        };
        let call = |part| self.call(part);
        flush_in_halves(batch, call, is_timeout, LedgerOutcome::Refused).await
    }

    /// False where nothing is tried any more.
    async fn waits_after(&self, tries: u32) -> bool {
        // Of a run that is gone nothing is written any more: others may have it.
        if self.stop.is_cancelled() || self.throttle.is_run_gone() {
            return false;
        }
        tokio::select! {
            biased;
            () = sleep(RETRY_BACKOFF.jittered_delay(tries, fastrand::f64())) => {}
            () = self.stop.cancelled() => {}
        }
        true
    }

    /// Tries until the database answers or the process stops. An error is a refusal.
    async fn call<T, R>(&self, part: Arc<[T]>) -> Result<Vec<LedgerOutcome<R>>, FailureCause>
    where
        F: Fn(Arc<[T]>) -> BoxFuture<'static, Result<Vec<R>, StatementError>>,
    {
        let (mut tries, mut suspicions) = (0, 0);
        let refused = |code: String, message| {
            // It answers.
            self.health.mark_up(Dependency::Database);
            Err(FailureCause {
                permanent: !may_pass(&code),
                code,
                message,
            })
        };
        loop {
            let mut slot = self.statements.acquire().await;
            let began = Instant::now();
            let result = tokio::select! {
                biased;
                result = contain_panic(async { (self.call)(Arc::clone(&part)).await }) => result,
                () = slot.recalled() => continue,
            };
            drop(slot);
            // A suspicion is no outage yet.
            let (reason, is_outage) = match result {
                Ok(Err(StatementError::Unavailable(reason))) => (reason, true),
                Ok(Ok(results)) => {
                    self.health.mark_up(Dependency::Database);
                    return Ok(results.into_iter().map(LedgerOutcome::Done).collect());
                }
                Ok(Err(StatementError::Rejected { code, message })) => {
                    if part.len() > 1 || self.passes_without_rows().await {
                        return refused(code, message);
                    }
                    (format!("{message} ({code})"), true)
                }
                Ok(Err(StatementError::Suspect { code, message })) => {
                    suspicions += 1;
                    if suspicions >= SUSPECT_TRIES && self.passes_without_rows().await {
                        return refused(code, message);
                    }
                    (format!("{message} ({code})"), suspicions >= SUSPECT_TRIES)
                }
                Err(panic) => {
                    // Nothing is known against the database, and nothing else may try this call.
                    self.health.mark_up(Dependency::Database);
                    return Err(FailureCause::panicked(panic));
                }
            };
            tries += 1;
            if is_outage {
                self.health
                    .record_failure(Dependency::Database, began, tries, &reason);
            }
            if !self.waits_after(tries).await {
                break;
            }
        }
        Ok(part.iter().map(|_| LedgerOutcome::Interrupted).collect())
    }

    /// Whether it is the rows that are refused, and not any call: by our rights, by a trigger of the statement, by
    /// a standby.
    async fn passes_without_rows<T, R>(&self) -> bool
    where
        F: Fn(Arc<[T]>) -> BoxFuture<'static, Result<Vec<R>, StatementError>>,
    {
        (self.call)(Arc::default()).await.is_ok()
    }
}

fn may_pass(code: &str) -> bool {
    // A statement that a trigger made too long is as long the next time.
    code != STATEMENT_CANCELLED && PASSING_CLASSES.iter().any(|class| code.starts_with(class))
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    const CONFIG: BatchConfig = BatchConfig {
        max: 8,
        min: 8,
        linger: Duration::from_millis(5),
        concurrency: 1,
    };

    /// What becomes of the numbers to 7 in batches of which those that hold a 5 fail like this.
    async fn outcomes_with_culprit(
        context: &ConsumerContext,
        fail: fn() -> StatementError,
    ) -> Vec<Option<FailureCause>> {
        let batcher = LedgerBatcher::new(CONFIG, context, move |batch: Arc<[i32]>| {
            async move {
                if batch.contains(&5) {
                    return Err(fail());
                }
                Ok(batch.to_vec())
            }
            .boxed()
        });
        let outcomes = futures::future::join_all((0..8).map(|number| batcher.submit(number))).await;
        let outcomes = (0..8).zip(outcomes).map(|(number, outcome)| match outcome {
            LedgerOutcome::Done(done) => {
                assert_eq!(done, number);
                None
            }
            LedgerOutcome::Refused(cause) => Some(cause),
            LedgerOutcome::Interrupted => panic!("interrupted"),
        });
        outcomes.collect()
    }

    fn rejected(code: &str, message: &str) -> StatementError {
        let (code, message) = (code.to_owned(), message.to_owned());
        StatementError::Rejected { code, message }
    }

    fn suspect() -> StatementError {
        StatementError::Suspect {
            code: "XX000".into(),
            message: "invalid memory alloc request size".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_database_refuses_fails_alone() {
        let fails: [(fn() -> StatementError, _, _, _); 3] = [
            (|| rejected("22001", "too long"), "22001", "too long", true),
            (|| panic!("a defect"), "Panic", "a defect", false),
            // It may be a row, and is one where the call passes without rows.
            (suspect, "XX000", "alloc request size", true),
        ];
        for (fail, code, message, permanent) in fails {
            let context = ConsumerContext::for_tests();
            let outcomes = outcomes_with_culprit(&context, fail).await;
            for (number, outcome) in outcomes.iter().enumerate() {
                assert_eq!(outcome.is_some(), number == 5, "{number}: {outcome:?}");
            }
            let cause = outcomes[5].as_ref().unwrap();
            assert!(
                cause.code == code && cause.message.ends_with(message),
                "{cause:?}"
            );
            assert_eq!(cause.permanent, permanent);
            assert!(context.health.is_up(Dependency::Database));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_refused_without_rows_too_is_an_outage() {
        for suspected in [true, false] {
            wait_for_statement(suspected).await;
        }
    }

    async fn wait_for_statement(suspected: bool) {
        let context = ConsumerContext::for_tests();
        let (health, began) = (context.health.clone(), Instant::now());
        let batcher = LedgerBatcher::new(CONFIG, &context, move |batch: Arc<[u32]>| {
            let is_over = began.elapsed() > Duration::from_mins(1);
            async move {
                match (is_over, suspected) {
                    (true, _) => Ok(batch.to_vec()),
                    (_, true) => Err(suspect()),
                    _ => Err(rejected("P0001", "closed for the night")),
                }
            }
            .boxed()
        });
        let submitted = batcher.submit(1);
        let (outcome, ()) = tokio::join!(submitted, async {
            sleep(Duration::from_secs(30)).await;
            assert!(!health.is_up(Dependency::Database));
        });
        assert!(matches!(outcome, LedgerOutcome::Done(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_waited_for() {
        let context = ConsumerContext::for_tests();
        let was_up = Arc::new(Mutex::new(Vec::new()));
        let (health, recorded) = (context.health.clone(), Arc::clone(&was_up));
        let batcher = LedgerBatcher::new(CONFIG, &context, move |batch: Arc<[u32]>| {
            let mut recorded = recorded.lock();
            recorded.push(health.is_up(Dependency::Database));
            let fails = recorded.len() <= 3;
            async move {
                if fails {
                    Err(StatementError::Unavailable("down".into()))
                } else {
                    Ok(batch.to_vec())
                }
            }
            .boxed()
        });
        assert!(matches!(batcher.submit(1).await, LedgerOutcome::Done(1)));
        // One failure is no outage; the second stops the receiving, the success starts it again.
        assert_eq!(*was_up.lock(), [true, true, false, false]);
        assert!(context.health.is_up(Dependency::Database));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_for_a_database_that_is_down() {
        let context = ConsumerContext::for_tests();
        let batcher: LedgerBatcher<u32, u32> = LedgerBatcher::new(CONFIG, &context, |_| {
            async { Err(StatementError::Unavailable("down".into())) }.boxed()
        });
        context.stop.cancel();
        assert!(matches!(
            batcher.submit(1).await,
            LedgerOutcome::Interrupted
        ));
    }
}
