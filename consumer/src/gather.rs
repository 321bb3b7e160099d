//! Gathers single requests into batches: a statement or a queue request serves many messages.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bucket_brigade_common::trace;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tracing::Span;

/// How requests become batches.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most requests in a batch.
    pub size: usize,
    /// How many are worth a batch: it does not wait for more.
    pub enough: usize,
    /// The longest a request waits for company.
    pub linger: Duration,
    /// The most batches under way at a time.
    pub in_flight: usize,
}

/// A request, who asked, and within which span.
struct Waiting<T, R> {
    request: T,
    answer: oneshot::Sender<R>,
    span: Span,
}

type Flush<T, R> = Arc<dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync>;

/// Takes requests one by one and answers each when its batch has been carried out.
///
/// Nobody is woken for a single request: the first of a batch starts the task that will carry it out, and
/// that wakes when there are enough.
pub struct Gather<T, R>(Arc<Shared<T, R>>);

struct Shared<T, R> {
    limits: Limits,
    waiting: Mutex<Vec<Waiting<T, R>>>,
    enough: Notify,
    slots: Arc<Semaphore>,
    flush: Flush<T, R>,
}

impl<T, R> Gather<T, R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    /// Starts gathering. `flush` carries out a batch and answers every request of it, in order. What
    /// was handed in is carried out whatever becomes of this value and of whoever asked.
    pub fn start<F>(limits: Limits, flush: F) -> Self
    where
        F: Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync + 'static,
    {
        Self(Arc::new(Shared {
            limits,
            waiting: Mutex::default(),
            enough: Notify::new(),
            slots: Arc::new(Semaphore::new(limits.in_flight)),
            flush: Arc::new(flush),
        }))
    }

    /// Hands in a request and waits for its answer; none only if the batch's work panicked.
    pub async fn submit(&self, request: T) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        let span = trace::current_span();
        let count = {
            let mut waiting = self.0.lock();
            waiting.push(Waiting {
                request,
                answer,
                span,
            });
            waiting.len()
        };
        if count == 1 {
            tokio::spawn(stand_by(Arc::clone(&self.0)));
        }
        if count == self.0.limits.enough {
            self.0.enough.notify_one();
        }
        answered.await.ok()
    }
}

impl<T, R> Shared<T, R> {
    fn lock(&self) -> MutexGuard<'_, Vec<Waiting<T, R>>> {
        // Nothing that can panic runs under this lock.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The batch, and whether somebody is left over.
    fn take(&self) -> (Vec<Waiting<T, R>>, bool) {
        let mut waiting = self.lock();
        // Whether there were enough matters no more; the next batch must not take it for its own.
        let _ = self.enough.notified().now_or_never();
        if waiting.len() <= self.limits.size {
            return (mem::take(&mut *waiting), false);
        }
        let rest = waiting.split_off(self.limits.size);
        (mem::replace(&mut *waiting, rest), true)
    }
}

/// Stands by while requests gather, and sees to it that all of them are carried out: a batch is closed
/// only when there is a slot for it, so that more join while the others are busy.
async fn stand_by<T, R>(shared: Arc<Shared<T, R>>)
where
    T: Send + 'static,
    R: Send + 'static,
{
    // Enough or late: what has gathered by then goes.
    drop(timeout(shared.limits.linger, shared.enough.notified()).await);
    while let Ok(slot) = Arc::clone(&shared.slots).acquire_owned().await {
        let (batch, is_more) = shared.take();
        if !is_more {
            return flush(batch, &shared.flush, slot).await;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { flush(batch, &shared.flush, slot).await });
    }
}

async fn flush<T, R>(batch: Vec<Waiting<T, R>>, flush: &Flush<T, R>, slot: OwnedSemaphorePermit) {
    let size = batch.len();
    let parts = batch.into_iter().map(|one| {
        tracing::info!(
            target: trace::TARGET,
            parent: &one.span,
            { bucket_brigade.batch_size = size },
            "batch sent"
        );
        (one.request, one.answer)
    });
    let (requests, answers): (Vec<T>, Vec<oneshot::Sender<R>>) = parts.unzip();
    for (answer, result) in answers.into_iter().zip(flush(requests).await) {
        // Whoever asked may have been interrupted meanwhile; the work is done all the same.
        drop(answer.send(result));
    }
    drop(slot);
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    fn recording(limits: Limits) -> (Gather<u32, u32>, Arc<Mutex<Vec<usize>>>) {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let gather = Gather::start(limits, move |batch: Vec<u32>| {
            seen.lock().unwrap().push(batch.len());
            async move { batch.iter().map(|number| number * 2).collect() }.boxed()
        });
        (gather, sizes)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_share_batches_and_each_gets_its_own_answer() {
        let limits = Limits {
            size: 10,
            enough: 10,
            linger: Duration::from_millis(5),
            in_flight: 2,
        };
        let (gather, sizes) = recording(limits);
        let answers = futures::future::join_all((0..25).map(|number| gather.submit(number))).await;
        let expected: Vec<Option<u32>> = (0..25).map(|number| Some(number * 2)).collect();
        assert_eq!(answers, expected);
        assert_eq!(sizes.lock().unwrap().iter().sum::<usize>(), 25);
        assert!(sizes.lock().unwrap().len() <= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn enough_do_not_wait_and_what_comes_while_others_are_busy_joins() {
        let limits = Limits {
            size: 100,
            enough: 4,
            linger: Duration::from_secs(5),
            in_flight: 1,
        };
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&sizes);
        let gather = Gather::start(limits, move |batch: Vec<u32>| {
            seen.lock().unwrap().push(batch.len());
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                batch
            }
            .boxed()
        });
        let started = Instant::now();
        let first = futures::future::join_all((0..4).map(|number| gather.submit(number)));
        let second = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            futures::future::join_all((0..9).map(|number| gather.submit(number))).await
        };
        let _ = futures::future::join(first, second).await;
        assert_eq!(*sizes.lock().unwrap(), [4, 9]);
        assert!(started.elapsed() < Duration::from_millis(2100));
        // The nine were enough for themselves alone: the next one waits for company.
        let again = Instant::now();
        gather.submit(1).await;
        assert!(again.elapsed() > Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lonely_request_does_not_wait_for_company_for_long() {
        let limits = Limits {
            size: 100,
            enough: 50,
            linger: Duration::from_millis(5),
            in_flight: 1,
        };
        let (gather, _) = recording(limits);
        let started = Instant::now();
        assert_eq!(gather.submit(4).await, Some(8));
        assert!(started.elapsed() <= Duration::from_millis(6));
    }
}
