//! Batched calls to the catalog. A batch is tried until the database takes it: nothing that was
//! copied is copied again because a commit failed. A row that the database refuses is isolated by
//! halving, so that it fails alone.

use std::sync::Arc;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::move_ledger::StatementError;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::gather::{Gather, Limits};
use crate::health::{Dependency, Health};

/// Waits between tries of a batch.
const AGAIN: Backoff = Backoff {
    initial_delay: std::time::Duration::from_millis(50),
    max_delay: std::time::Duration::from_secs(15),
};

/// What became of one request of a batch.
#[derive(Debug, Clone)]
pub enum Answer<R> {
    /// It was carried out.
    Done(R),
    /// The database refuses it.
    Refused {
        /// The SQLSTATE.
        code: String,
        /// The database's own words.
        message: String,
    },
    /// The process is stopping, and the database does not answer.
    Interrupted,
}

/// One kind of call, on a batch of any size.
type Call<T, R> =
    Arc<dyn Fn(Arc<[T]>) -> BoxFuture<'static, Result<Vec<R>, StatementError>> + Send + Sync>;

/// Takes requests of one kind one by one.
pub struct Desk<T, R>(Gather<T, Answer<R>>);

impl<T, R> Desk<T, R>
where
    T: Clone + Send + Sync + 'static,
    R: Send + 'static,
{
    /// Opens the desk. `call` answers every request of its batch, in order.
    pub fn open<F>(limits: Limits, health: Health, stop: CancellationToken, call: F) -> Self
    where
        F: Fn(Arc<[T]>) -> BoxFuture<'static, Result<Vec<R>, StatementError>>
            + Send
            + Sync
            + 'static,
    {
        let call: Call<T, R> = Arc::new(call);
        Self(Gather::start(limits, move |batch| {
            let (health, stop, call) = (health.clone(), stop.clone(), Arc::clone(&call));
            async move { halve(batch, &call, &health, &stop).await }.boxed()
        }))
    }

    /// Hands in a request and waits for its answer.
    pub async fn submit(&self, request: T) -> Answer<R> {
        self.0.submit(request).await.unwrap_or(Answer::Interrupted)
    }
}

/// Carries out a batch; when the database refuses it, each half on its own.
async fn halve<T: Clone, R>(
    batch: Vec<T>,
    call: &Call<T, R>,
    health: &Health,
    stop: &CancellationToken,
) -> Vec<Answer<R>> {
    let mut answers = Vec::with_capacity(batch.len());
    let mut parts: Vec<Arc<[T]>> = vec![batch.into()];
    // Last in, first out: the left half goes on top, so the answers come in order.
    while let Some(part) = parts.pop() {
        match persist(&part, call, health, stop).await {
            Ok(Some(results)) => answers.extend(results.into_iter().map(Answer::Done)),
            Ok(None) => answers.extend(part.iter().map(|_| Answer::Interrupted)),
            Err((code, message)) if part.len() == 1 => {
                answers.push(Answer::Refused { code, message });
            }
            Err(_) => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.push(right.into());
                parts.push(left.into());
            }
        }
    }
    answers
}

/// Tries until the database answers; none when the process stops first. An error is a refusal: its
/// SQLSTATE and message.
async fn persist<T, R>(
    part: &Arc<[T]>,
    call: &Call<T, R>,
    health: &Health,
    stop: &CancellationToken,
) -> Result<Option<Vec<R>>, (String, String)> {
    for tries in 1.. {
        match call(Arc::clone(part)).await {
            Ok(results) => {
                health.up(Dependency::Database);
                return Ok(Some(results));
            }
            Err(StatementError::Rejected { code, message }) => {
                // It answers.
                health.up(Dependency::Database);
                return Err((code, message));
            }
            Err(StatementError::Unavailable(reason)) => {
                // A single failure is a deadlock, a failover's blink or a cut connection.
                if tries > 1 {
                    health.down(Dependency::Database, &reason);
                }
                if stop.is_cancelled() {
                    return Ok(None);
                }
                tokio::select! {
                    biased;
                    () = sleep(AGAIN.jittered_delay(tries, fastrand::f64())) => {}
                    () = stop.cancelled() => {}
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    const LIMITS: Limits = Limits {
        size: 8,
        enough: 8,
        linger: Duration::from_millis(5),
        in_flight: 1,
    };

    fn refusal() -> StatementError {
        StatementError::Rejected {
            code: "22001".into(),
            message: "too long".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_culprit_fails_alone() {
        let desk = Desk::open(
            LIMITS,
            Health::default(),
            CancellationToken::new(),
            |batch: Arc<[i32]>| {
                async move {
                    if batch.contains(&5) {
                        Err(refusal())
                    } else {
                        Ok(batch.to_vec())
                    }
                }
                .boxed()
            },
        );
        let answers = futures::future::join_all((0..8).map(|number| desk.submit(number))).await;
        for (number, answer) in (0..8).zip(answers) {
            match answer {
                Answer::Done(done) => assert!(done == number && number != 5),
                Answer::Refused { code, .. } => assert!(code == "22001" && number == 5),
                Answer::Interrupted => panic!("interrupted"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_waited_for() {
        let health = Health::default();
        let was_up = Arc::new(Mutex::new(Vec::new()));
        let (watching, seen) = (health.clone(), Arc::clone(&was_up));
        let stop = CancellationToken::new();
        let desk = Desk::open(LIMITS, health.clone(), stop, move |batch: Arc<[u32]>| {
            let mut seen = seen.lock().unwrap();
            seen.push(watching.is_up(Dependency::Database));
            let fails = seen.len() <= 3;
            async move {
                if fails {
                    Err(StatementError::Unavailable("down".into()))
                } else {
                    Ok(batch.to_vec())
                }
            }
            .boxed()
        });
        assert!(matches!(desk.submit(1).await, Answer::Done(1)));
        // One failure is a blink; the second stops the receiving, the answer starts it again.
        assert_eq!(*was_up.lock().unwrap(), [true, true, false, false]);
        assert!(health.is_up(Dependency::Database));
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_ends_the_wait_for_a_dead_database() {
        let stop = CancellationToken::new();
        let desk: Desk<u32, u32> = Desk::open(LIMITS, Health::default(), stop.clone(), |_| {
            async { Err(StatementError::Unavailable("down".into())) }.boxed()
        });
        stop.cancel();
        assert!(matches!(desk.submit(1).await, Answer::Interrupted));
    }
}
