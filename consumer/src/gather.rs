//! Gathers single requests into batches: a statement or a queue request serves many messages.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

/// How requests become batches.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The most requests in a batch.
    pub size: usize,
    /// The longest a request waits for company.
    pub linger: Duration,
    /// The most batches under way at a time.
    pub in_flight: usize,
}

type Waiting<T, R> = (T, oneshot::Sender<R>);
type Flush<T, R> = Arc<dyn Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync>;

/// Takes requests one by one and answers each when its batch has been carried out.
#[derive(Debug)]
pub struct Gather<T, R> {
    sender: mpsc::Sender<Waiting<T, R>>,
}

impl<T, R> Gather<T, R>
where
    T: Send + 'static,
    R: Send + 'static,
{
    /// Starts gathering. `flush` carries out a batch and answers every request of it, in order.
    /// It goes on until this value is dropped and all batches are done.
    pub fn start<F>(limits: Limits, flush: F) -> Self
    where
        F: Fn(Vec<T>) -> BoxFuture<'static, Vec<R>> + Send + Sync + 'static,
    {
        let (sender, receiver) = mpsc::channel(limits.size);
        tokio::spawn(gather(receiver, limits, Arc::new(flush)));
        Self { sender }
    }

    /// Hands in a request and waits for its answer; none only if the batch's work panicked.
    pub async fn submit(&self, request: T) -> Option<R> {
        let (answer, answered) = oneshot::channel();
        self.sender.send((request, answer)).await.ok()?;
        answered.await.ok()
    }
}

async fn gather<T, R>(
    mut receiver: mpsc::Receiver<Waiting<T, R>>,
    limits: Limits,
    flush: Flush<T, R>,
) where
    T: Send + 'static,
    R: Send + 'static,
{
    let slots = Arc::new(Semaphore::new(limits.in_flight));
    // A batch is closed only when there is a slot to carry it out: while the others are busy, more
    // requests join it.
    while let Some(first) = receiver.recv().await {
        let mut batch = vec![first];
        fill(&mut receiver, &mut batch, limits).await;
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        while batch.len() < limits.size
            && let Ok(more) = receiver.try_recv()
        {
            batch.push(more);
        }
        let flush = Arc::clone(&flush);
        tokio::spawn(async move {
            carry_out(batch, &flush).await;
            drop(slot);
        });
    }
}

async fn fill<T, R>(
    receiver: &mut mpsc::Receiver<Waiting<T, R>>,
    batch: &mut Vec<Waiting<T, R>>,
    limits: Limits,
) {
    let deadline = Instant::now() + limits.linger;
    while batch.len() < limits.size {
        match timeout_at(deadline, receiver.recv()).await {
            Ok(Some(more)) => batch.push(more),
            Ok(None) | Err(_) => return,
        }
    }
}

async fn carry_out<T, R>(batch: Vec<Waiting<T, R>>, flush: &Flush<T, R>) {
    let (requests, answers): (Vec<T>, Vec<oneshot::Sender<R>>) = batch.into_iter().unzip();
    for (answer, result) in answers.into_iter().zip(flush(requests).await) {
        // Whoever asked may have been interrupted meanwhile; the work is done all the same.
        drop(answer.send(result));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::sync::Mutex;

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
    async fn a_lonely_request_does_not_wait_for_company_for_long() {
        let limits = Limits {
            size: 100,
            linger: Duration::from_millis(5),
            in_flight: 1,
        };
        let (gather, _) = recording(limits);
        let started = Instant::now();
        assert_eq!(gather.submit(4).await, Some(8));
        assert!(started.elapsed() <= Duration::from_millis(6));
    }
}
