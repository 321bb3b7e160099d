use std::sync::Arc;

use tokio::time::{advance, sleep, timeout};

use super::*;

/// A store that serves so many copies per second until a moment, and everything from then on.
struct FloorStore {
    per_second: f64,
    free_at: Instant,
    tokens: Mutex<(f64, Instant)>,
}

impl FloorStore {
    fn admits(&self) -> bool {
        let now = Instant::now();
        let mut tokens = self.tokens.lock().unwrap();
        let elapsed = (now - tokens.1).as_secs_f64();
        *tokens = ((tokens.0 + elapsed * self.per_second).min(1.0), now);
        let is_admitted = tokens.0 >= 1.0 || now >= self.free_at;
        if is_admitted {
            tokens.0 -= 1.0;
        }
        is_admitted
    }
}

/// Copies served in each second.
async fn served_by_second(
    per_second: f64,
    limited_for: Duration,
    then: Duration,
) -> Vec<(u32, u32)> {
    let now = Instant::now();
    let store = Arc::new(FloorStore {
        per_second,
        free_at: now + limited_for,
        tokens: Mutex::new((1.0, now)),
    });
    let seconds = usize::try_from((limited_for + then).as_secs()).unwrap();
    let throttle = Arc::new(Throttle::for_copies(64, DatabaseLimits::default()));
    let counts = Arc::new(Mutex::new(vec![(0, 0); seconds + 10]));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..168 {
        let (store, throttle) = (Arc::clone(&store), Arc::clone(&throttle));
        let counts = Arc::clone(&counts);
        tasks.spawn(async move {
            loop {
                let permit = throttle.acquire().await;
                sleep(Duration::from_millis(10)).await;
                let second = usize::try_from(now.elapsed().as_secs()).unwrap();
                if store.admits() {
                    counts.lock().unwrap()[second].0 += 1;
                    permit.served();
                } else {
                    counts.lock().unwrap()[second].1 += 1;
                    permit.throttled();
                    sleep(Duration::from_secs(1)).await;
                }
            }
        });
    }
    sleep(limited_for + then).await;
    let counts = counts.lock().unwrap().clone();
    counts
}

#[tokio::test(start_paused = true)]
async fn floor() {
    for seed in 0..5 {
        fastrand::seed(seed);
        for rate in [0.5, 1.0, 2.0, 5.0, 10.0] {
            let counts =
                served_by_second(rate, Duration::from_secs(120), Duration::from_secs(200)).await;
            let full = 6000;
            let half = counts.iter().position(|c| c.0 > full / 2);
            let refused: u32 = counts[0..120].iter().map(|c| c.1).sum();
            let served: u32 = counts[0..120].iter().map(|c| c.0).sum();
            println!("{rate}: half after {half:?}, refused {refused}, served {served}");
        }
    }
}
