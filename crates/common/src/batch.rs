//! Batches: a statement or a queue request serves many requests, which come one by one.

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;
use tracing::Span;

use crate::trace;

#[derive(Debug, Clone, Copy)]
pub struct BatchConfig {
    /// The most requests in a batch.
    pub max: usize,
    /// A batch of so many does not wait for more.
    pub min: usize,
    /// The longest that a request waits for others.
    pub linger: Duration,
    /// The most batches in flight.
    pub concurrency: usize,
}

struct PendingRequest<T, R> {
    request: T,
    result: oneshot::Sender<R>,
    span: Span,
}

type FlushFn<T, R> = Arc<dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync>;

/// Collects requests, and returns to each its result when its batch has been flushed.
///
/// No task is woken for a single request: the first of a batch starts the task that will flush it, and
/// that wakes when there are enough.
pub struct Batcher<T, R>(Arc<BatchQueue<T, R>>);

struct BatchQueue<T, R> {
    config: BatchConfig,
    pending: Mutex<Vec<PendingRequest<T, R>>>,
    min_reached: Notify,
    slots: Arc<Semaphore>,
    flush: FlushFn<T, R>,
}

impl<T, R> Batcher<T, R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    /// `flush` returns the result of each request of its batch, in order. What was submitted is flushed
    /// even if the batcher and the futures that wait for results are dropped.
    pub fn new<F>(config: BatchConfig, flush: F) -> Self
    where
        F: Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync + 'static,
    {
        Self(Arc::new(BatchQueue {
            config,
            pending: Mutex::default(),
            min_reached: Notify::new(),
            slots: Arc::new(Semaphore::new(config.concurrency)),
            flush: Arc::new(flush),
        }))
    }

    /// Waits for the request's result; none only if `flush` panicked.
    pub async fn submit(&self, request: T) -> Option<R> {
        let (sender, result) = oneshot::channel();
        let span = trace::current_span();
        let count = {
            let mut pending = self.0.pending.lock();
            pending.push(PendingRequest {
                request,
                result: sender,
                span,
            });
            pending.len()
        };
        if count == 1 {
            tokio::spawn(flush_when_due(Arc::clone(&self.0)));
        }
        if count == self.0.config.min {
            self.0.min_reached.notify_one();
        }
        result.await.ok()
    }
}

impl<T, R> BatchQueue<T, R> {
    /// The batch, and whether requests are left over.
    fn take_batch(&self) -> (Vec<PendingRequest<T, R>>, bool) {
        let mut pending = self.pending.lock();
        // The permit was for this batch; the next one must not find it.
        let _ = self.min_reached.notified().now_or_never();
        if pending.len() <= self.config.max {
            return (mem::take(&mut *pending), false);
        }
        let rest = pending.split_off(self.config.max);
        (mem::replace(&mut *pending, rest), true)
    }
}

/// A batch is closed only when there is a slot for it, so that more requests join while others are in flight.
async fn flush_when_due<T, R>(queue: Arc<BatchQueue<T, R>>)
where
    T: Send + 'static,
    R: Send + 'static,
{
    // Either way, what is pending by then is flushed.
    drop(timeout(queue.config.linger, queue.min_reached.notified()).await);
    while let Ok(slot) = Arc::clone(&queue.slots).acquire_owned().await {
        let (batch, is_more) = queue.take_batch();
        if !is_more {
            return flush_batch(batch, &queue.flush, slot).await;
        }
        let queue = Arc::clone(&queue);
        tokio::spawn(async move { flush_batch(batch, &queue.flush, slot).await });
    }
}

async fn flush_batch<T, R>(
    batch: Vec<PendingRequest<T, R>>,
    flush: &FlushFn<T, R>,
    slot: OwnedSemaphorePermit,
) {
    let size = batch.len();
    let parts = batch.into_iter().map(|pending| {
        tracing::info!(
            target: trace::TARGET,
            parent: &pending.span,
            { bucket_brigade.batch_size = size },
            "batch sent"
        );
        (pending.request, pending.result)
    });
    let (requests, senders): (Vec<T>, Vec<oneshot::Sender<R>>) = parts.unzip();
    for (sender, result) in senders.into_iter().zip(flush(requests).await) {
        // The receiver may have been interrupted meanwhile.
        drop(sender.send(result));
    }
    drop(slot);
}

/// Tries a batch. An error means that it was refused as a whole: each half is then tried on its own, until
/// what is refused is alone; at once each alone where the error, of so many, is that of a time limit, which the one that
/// takes so long would reach in each half again, with the others waiting. Returns the results in order.
pub async fn flush_in_halves<T, R, E, F>(
    batch: Vec<T>,
    attempt: impl Fn(Arc<[T]>) -> F,
    is_timeout: impl Fn(&E, usize) -> bool,
    refused_single: impl Fn(E) -> R,
) -> Vec<R>
where
    T: Clone,
    F: Future<Output = Result<Vec<R>, E>>,
{
    let mut results = Vec::with_capacity(batch.len());
    // Last in, first out: the left part goes on top, so that the results come in order.
    let mut parts: Vec<Arc<[T]>> = vec![batch.into()];
    while let Some(part) = parts.pop() {
        match attempt(Arc::clone(&part)).await {
            Ok(done) => results.extend(done),
            Err(error) if part.len() == 1 => results.push(refused_single(error)),
            Err(error) if is_timeout(&error, part.len()) => {
                parts.extend(part.chunks(1).rev().map(Arc::from));
            }
            Err(_) => {
                let (left, right) = part.split_at(part.len() / 2);
                parts.push(right.into());
                parts.push(left.into());
            }
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::future::{join, join_all};
    use tokio::time::{Instant, sleep};

    const CONFIG: BatchConfig = BatchConfig {
        max: 100,
        min: 50,
        linger: Duration::from_millis(5),
        concurrency: 1,
    };

    fn doubling_batcher(config: BatchConfig) -> (Batcher<u32, u32>, Arc<Mutex<Vec<usize>>>) {
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&sizes);
        let batcher = Batcher::new(config, move |batch: Vec<u32>| {
            recorded.lock().push(batch.len());
            async move { batch.iter().map(|number| number * 2).collect() }.boxed()
        });
        (batcher, sizes)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_share_batches_and_each_gets_its_own_result() {
        let (batcher, sizes) = doubling_batcher(BatchConfig {
            max: 10,
            min: 10,
            concurrency: 2,
            ..CONFIG
        });
        let results = join_all((0..25).map(|number| batcher.submit(number))).await;
        let expected: Vec<Option<u32>> = (0..25).map(|number| Some(number * 2)).collect();
        assert_eq!(results, expected);
        assert_eq!(sizes.lock().iter().sum::<usize>(), 25);
        assert!(sizes.lock().len() <= 4);
    }

    #[tokio::test(start_paused = true)]
    async fn enough_do_not_wait_and_what_comes_while_others_are_in_flight_joins() {
        let config = BatchConfig {
            min: 4,
            linger: Duration::from_secs(5),
            ..CONFIG
        };
        let sizes = Arc::new(Mutex::new(Vec::new()));
        let recorded = Arc::clone(&sizes);
        let batcher = Batcher::new(config, move |batch: Vec<u32>| {
            recorded.lock().push(batch.len());
            async move {
                sleep(Duration::from_secs(1)).await;
                batch
            }
            .boxed()
        });
        let started = Instant::now();
        let first = join_all((0..4).map(|number| batcher.submit(number)));
        let second = async {
            sleep(Duration::from_millis(500)).await;
            join_all((0..9).map(|number| batcher.submit(number))).await
        };
        let _ = join(first, second).await;
        assert_eq!(*sizes.lock(), [4, 9]);
        assert!(started.elapsed() < Duration::from_millis(2100));
        // The nine were enough for their own batch: the next request waits for others.
        let again = Instant::now();
        batcher.submit(1).await;
        assert!(again.elapsed() > Duration::from_secs(5));
    }

    #[tokio::test(start_paused = true)]
    async fn a_single_request_does_not_wait_long() {
        let (batcher, _) = doubling_batcher(CONFIG);
        let started = Instant::now();
        assert_eq!(batcher.submit(4).await, Some(8));
        assert!(started.elapsed() <= Duration::from_millis(6));
    }

    #[tokio::test]
    async fn what_is_refused_is_alone_in_the_end() {
        for culprits in [vec![], vec![0], vec![7], vec![2, 3, 6], (0..8).collect()] {
            let attempt = async |part: Arc<[i32]>| {
                if part.iter().any(|number| culprits.contains(number)) {
                    Err("refused")
                } else {
                    Ok(part.iter().map(|number| Ok(*number)).collect())
                }
            };
            let results = flush_in_halves((0..8).collect(), attempt, |_, _| false, Err).await;
            let is_good = |number: &i32| !culprits.contains(number);
            let expected = (0..8).map(|number| Some(number).filter(is_good).ok_or("refused"));
            assert_eq!(results, expected.collect::<Vec<_>>());
        }
    }

    /// Its neighbours wait for two time limits, however many they are.
    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_alone_at_once() {
        let attempt = async |part: Arc<[i32]>| {
            if part.contains(&63) {
                sleep(Duration::from_secs(28)).await;
                return Err("too slow");
            }
            Ok(part.iter().map(|number| Ok(*number)).collect())
        };
        let began = Instant::now();
        let results = flush_in_halves((0..100).collect(), attempt, |_, _| true, Err).await;
        assert_eq!(began.elapsed().as_secs(), 2 * 28);
        let expected = (0..100).map(|number| Some(number).filter(|n| *n != 63).ok_or("too slow"));
        assert_eq!(results, expected.collect::<Vec<_>>());
    }
}
