//! Pages of a command, several worked on at a time and recorded in their order.

use std::cell::Cell;
use std::pin::pin;

use futures::{StreamExt, stream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Pages worked on at a time: while one waits for the database, requests of others are under way.
pub(crate) const PAGES_IN_FLIGHT: usize = 4;

/// The operator wants the command to end: pages under way are given up where nothing of them is done yet.
#[derive(Debug, thiserror::Error)]
#[error("stopped before the end")]
pub(crate) struct CommandStopped;

/// For waits and requests that change nothing: given up at the stop.
pub(crate) fn until_stopped<T, E>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = anyhow::Result<T>>
where
    anyhow::Error: From<E>,
{
    // Most are too large for the futures that wait for them.
    let work = Box::pin(work);
    async move {
        ensure_not_stopped(stop)?;
        let ended = stop.run_until_cancelled(work).await;
        Ok(ended.ok_or(CommandStopped)??)
    }
}

pub(crate) fn ensure_not_stopped(stop: &CancellationToken) -> Result<(), CommandStopped> {
    if stop.is_cancelled() {
        return Err(CommandStopped);
    }
    Ok(())
}

/// Whether the end was reached.
pub(crate) fn is_complete(result: anyhow::Result<()>) -> anyhow::Result<bool> {
    match result {
        Err(error) if error.is::<CommandStopped>() => Ok(false),
        result => result.map(|()| true),
    }
}

/// Reads pages and the cursors after them until there are no more, works on several at a time, and records them one
/// by one, in order. After an error no further page is read, what is under way is finished and recorded without its
/// cursor, which must not move past what failed, and the first error is returned.
pub(crate) async fn run_pages<Page, Done>(
    read: impl AsyncFnMut() -> anyhow::Result<Option<(Page, Option<String>)>>,
    work: impl AsyncFn(Page) -> anyhow::Result<Done>,
    mut record: impl AsyncFnMut(Done, Option<String>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let has_failed = Cell::new(false);
    let pages = stream::unfold(read, |mut read| async {
        if has_failed.get() {
            return None;
        }
        let page = read().await.transpose()?;
        Some((page, read))
    });
    let worked = pages.map(|page| async {
        let (page, cursor) = page?;
        Ok((work(page).await?, cursor))
    });
    let (sender, mut receiver) = mpsc::channel(PAGES_IN_FLIGHT);
    let working = async {
        let mut worked = pin!(worked.buffered(PAGES_IN_FLIGHT));
        while let Some(result) = worked.next().await {
            has_failed.set(has_failed.get() || result.is_err());
            // The other end is there until this one is dropped.
            drop(sender.send(result).await);
        }
        drop(sender);
    };
    let recording = async {
        let mut outcome = Ok(());
        while let Some(worked) = receiver.recv().await {
            let recorded = match worked {
                Ok((done, cursor)) => record(done, cursor.filter(|_| outcome.is_ok())).await,
                Err(error) => Err(error),
            };
            has_failed.set(has_failed.get() || recorded.is_err());
            outcome = outcome.and(recorded);
        }
        outcome
    };
    tokio::join!(working, recording).1
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use tokio::time::{Instant, sleep};

    use super::*;

    async fn run(pages: u64, failing: Option<u64>) -> (Vec<(u64, bool)>, bool, Duration) {
        let (next, began, recorded) = (Cell::new(0), Instant::now(), RefCell::new(Vec::new()));
        let read = async || {
            next.set(next.get() + 1);
            Ok((next.get() <= pages).then(|| (next.get(), Some(String::new()))))
        };
        let work = async |page: u64| {
            // A later page is done before an earlier one.
            sleep(Duration::from_secs(100 - page)).await;
            anyhow::ensure!(failing != Some(page), "page {page}");
            Ok(page)
        };
        let record = async |page, cursor: Option<String>| {
            sleep(Duration::from_secs(1)).await;
            recorded.borrow_mut().push((page, cursor.is_some()));
            Ok(())
        };
        let result = run_pages(read, work, record).await;
        (recorded.into_inner(), result.is_ok(), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn pages_overlap_and_are_recorded_in_order() {
        let (recorded, is_ok, took) = run(8, None).await;
        let expected = (1..=8).map(|page| (page, true));
        assert_eq!(recorded, expected.collect::<Vec<_>>());
        assert!(is_ok && took < Duration::from_secs(210), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_what_is_under_way_is_recorded_and_nothing_is_begun() {
        let (recorded, is_ok, _) = run(100, Some(2)).await;
        assert!(!is_ok);
        assert_eq!(recorded[0], (1, true));
        let rest = &recorded[1..];
        assert!(rest.len() <= PAGES_IN_FLIGHT, "{rest:?}");
        assert!(rest.iter().all(|(_, has_cursor)| !has_cursor));
    }
}
