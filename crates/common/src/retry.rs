//! Calls that are retried: exponential back-off with jitter, for as long as an error is transient.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How long to wait between attempts: between half a ceiling that doubles and all of it, so that retries
/// neither rush nor come all at once.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// The ceiling of the first wait.
    pub initial_delay: Duration,
    pub max_delay: Duration,
}

impl Backoff {
    /// The waits after the first failed attempt, the second, and so on without end.
    pub fn delays(self) -> impl Iterator<Item = Duration> {
        (1..).map(move |failures| self.jittered_delay(failures, fastrand::f64()))
    }

    /// The longest wait after so many failed attempts.
    pub fn delay_ceiling(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.initial_delay
            .saturating_mul(1 << doublings)
            .min(self.max_delay)
    }

    /// The wait after so many failed attempts, a pure function for what counts them elsewhere. `random` is
    /// in 0..1.
    pub fn jittered_delay(&self, failures: u32, random: f64) -> Duration {
        self.delay_ceiling(failures).mul_f64(0.5 + random / 2.0)
    }
}

/// An error that may be over in a moment.
pub trait TransientError: std::error::Error {
    /// Whether the service did not respond; whatever it responded is final.
    fn is_transient(&self) -> bool;
}

/// Calls again, after each of `delays`, while the error is transient. `Backoff::delays().take(n)` bounds
/// the attempts to n + 1.
pub async fn retry<T, E>(
    mut delays: impl Iterator<Item = Duration>,
    is_transient: impl Fn(&E) -> bool,
    mut call: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match call().await {
            Err(error) if is_transient(&error) => match delays.next() {
                Some(delay) => sleep(delay).await,
                None => return Err(error),
            },
            result => return result,
        }
    }
}

/// Calls again, whatever the error, until a call succeeds; none when `stop` comes first.
pub async fn retry_until_stopped<T, E>(
    backoff: Backoff,
    stop: &CancellationToken,
    call: impl AsyncFnMut() -> Result<T, E>,
) -> Option<T> {
    let calls = retry(backoff.delays(), |_| true, call);
    stop.run_until_cancelled(calls).await?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    const BACKOFF: Backoff = Backoff {
        initial_delay: Duration::from_millis(100),
        max_delay: Duration::from_secs(1),
    };

    #[test]
    fn delays_double_up_to_their_limit() {
        let ceilings = [100, 200, 400, 800, 1000, 1000].map(Duration::from_millis);
        for (ceiling, delay) in ceilings.into_iter().zip(BACKOFF.delays()) {
            assert!(delay >= ceiling / 2 && delay <= ceiling, "{delay:?}");
        }
        assert_eq!(BACKOFF.delay_ceiling(u32::MAX), Duration::from_secs(1));
        assert_eq!(BACKOFF.jittered_delay(1, 0.0), Duration::from_millis(50));
        assert!(BACKOFF.jittered_delay(3, 0.999) <= Duration::from_millis(400));
    }

    #[tokio::test(start_paused = true)]
    async fn only_transient_errors_are_retried_and_only_so_often() {
        for (transient, calls) in [(u32::MAX, 4), (0, 1), (2, 3)] {
            let mut made = 0;
            let result = retry(
                BACKOFF.delays().take(3),
                |number| *number <= transient,
                async || {
                    made += 1;
                    Err::<(), u32>(made)
                },
            );
            assert_eq!(result.await, Err(calls));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_retries() {
        let (stop, began) = (CancellationToken::new(), Instant::now());
        let mut made = 0;
        let call = async || {
            made += 1;
            if made < 50 { Err(made) } else { Ok(made) }
        };
        assert_eq!(retry_until_stopped(BACKOFF, &stop, call).await, Some(50));
        assert!(began.elapsed() > Duration::from_secs(20));
        let never = async || Err::<(), ()>(());
        let stopping = async {
            sleep(Duration::from_mins(1)).await;
            stop.cancel();
        };
        let (result, ()) = tokio::join!(retry_until_stopped(BACKOFF, &stop, never), stopping);
        assert_eq!(result, None);
    }
}
