//! Throttling that does not hurt: consumers against a store that allows so many copies a second and
//! answers 503 above that, on paused time.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::control::Orders;
use bucket_brigade_common::object_store::{Copied, Destination, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::{PathRule, Route};
use bucket_brigade_common::settings::DatabaseLimits;
use bucket_brigade_consumer::copy::Copy;
use bucket_brigade_consumer::governor::Governor;
use bucket_brigade_consumer::health::Health;
use bucket_brigade_consumer::step::Event;
use bucket_brigade_consumer::tally::Tally;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long each run would take at the allowed rate.
const SECONDS: u32 = 100;

/// How the store counts.
#[derive(Debug, Clone, Copy)]
enum Limit {
    /// So many in each second by the clock.
    PerSecond,
    /// A bucket that fills steadily and holds a tenth of a second's worth.
    Bucket,
}

impl Limit {
    /// How many copies it lets through at one moment.
    fn most(self, rate: f64) -> f64 {
        match self {
            Self::PerSecond => rate,
            Self::Bucket => (rate / 10.0).max(1.0),
        }
    }
}

#[derive(Debug)]
struct State {
    tokens: f64,
    refilled: Instant,
    requests: u32,
    throttled: u32,
}

#[derive(Debug)]
struct Store {
    rate: f64,
    limit: Limit,
    latency: Duration,
    state: Mutex<State>,
}

impl Store {
    fn new(rate: f64, limit: Limit, latency: Duration) -> Self {
        let state = State {
            tokens: limit.most(rate),
            refilled: Instant::now(),
            requests: 0,
            throttled: 0,
        };
        Self {
            rate,
            limit,
            latency,
            state: Mutex::new(state),
        }
    }

    fn admit(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        let now = Instant::now();
        let elapsed = (now - state.refilled).as_secs_f64();
        match self.limit {
            Limit::PerSecond if elapsed >= 1.0 => {
                state.tokens = self.rate;
                state.refilled = now;
            }
            Limit::PerSecond => {}
            Limit::Bucket => {
                state.tokens = (state.tokens + elapsed * self.rate).min(self.limit.most(self.rate));
                state.refilled = now;
            }
        }
        state.requests += 1;
        if state.tokens >= 1.0 {
            state.tokens -= 1.0;
            return true;
        }
        state.throttled += 1;
        false
    }
}

#[async_trait]
impl ObjectStore for Store {
    async fn copy(&self, _: &Route) -> Result<Copied, StoreError> {
        sleep(self.latency / 2).await;
        let admitted = self.admit();
        sleep(self.latency / 2).await;
        if admitted {
            Ok(Copied {
                etag: "e".into(),
                size_bytes: None,
            })
        } else {
            Err(StoreError::Throttled {
                code: "SlowDown".into(),
            })
        }
    }

    async fn copy_in_parts(&self, route: &Route) -> Result<Copied, StoreError> {
        self.copy(route).await
    }

    async fn compare(&self, _: &Route) -> Result<Destination, StoreError> {
        Ok(Destination::Empty)
    }
}

/// What became of a run.
#[derive(Debug)]
struct Figures {
    /// The share of requests that were throttled.
    throttled: f64,
    /// The share of the allowed rate that was used.
    used: f64,
}

/// Copies for `seconds` worth of the allowed rate with so many consumers of 64 copies each.
async fn run(
    rate: u32,
    consumers: usize,
    seconds: u32,
    limit: Limit,
    latency: Duration,
) -> Figures {
    let store = Arc::new(Store::new(f64::from(rate), limit, latency));
    let todo = Arc::new(Mutex::new(rate * seconds));
    let tasks = TaskTracker::new();
    let started = Instant::now();
    for _ in 0..consumers {
        let (health, stop) = (Health::default(), CancellationToken::new());
        let objects: Arc<dyn ObjectStore> = Arc::<Store>::clone(&store);
        let unbounded = DatabaseLimits::default();
        let governor = Arc::new(Governor::new(64, unbounded, Orders::default()));
        let copy = Arc::new(Copy::new(
            objects,
            governor,
            64,
            None,
            health,
            Arc::new(Tally::default()),
            stop,
        ));
        // As many in hand as a consumer has room for.
        let in_hand = Arc::new(AtomicUsize::new(0));
        for _ in 0..168 {
            tasks.spawn(work(
                Arc::clone(&copy),
                Arc::clone(&in_hand),
                Arc::clone(&todo),
            ));
        }
    }
    tasks.close();
    tasks.wait().await;
    let state = store.state.lock().unwrap();
    Figures {
        throttled: f64::from(state.throttled) / f64::from(state.requests),
        used: f64::from(seconds) / started.elapsed().as_secs_f64(),
    }
}

async fn work(copy: Arc<Copy>, in_hand: Arc<AtomicUsize>, todo: Arc<Mutex<u32>>) {
    let route = PathRule::new("image/", "avatar/", None, None)
        .unwrap()
        .route("image/a")
        .unwrap();
    loop {
        // As the receivers do.
        while in_hand.load(Ordering::Relaxed) >= copy.pace().worth_having() {
            sleep(Duration::from_secs(1)).await;
        }
        {
            let mut todo = todo.lock().unwrap();
            if *todo == 0 {
                return;
            }
            *todo -= 1;
        }
        in_hand.fetch_add(1, Ordering::Relaxed);
        assert!(matches!(copy.copy(&route).await, Event::Copied(_)));
        in_hand.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The most that may be throttled, and the least of the rate that must be used.
const TARGET: (f64, f64) = (0.011, 0.85);

#[tokio::test(start_paused = true)]
async fn little_is_throttled_and_most_of_the_rate_is_used() {
    // The jitter's dice: the same at every run.
    fastrand::seed(1);
    let mut missed = Vec::new();
    for limit in [Limit::PerSecond, Limit::Bucket] {
        for rate in [40, 1000] {
            for (consumers, latency) in [(1, 10), (1, 50), (4, 10), (4, 50)] {
                let latency = Duration::from_millis(latency);
                let figures = run(rate, consumers, SECONDS, limit, latency).await;
                let what =
                    format!("{limit:?} {rate}/s, {consumers} consumers, {latency:?}: {figures:?}");
                println!("{what}");
                let (most, least) = TARGET;
                if figures.throttled > most || figures.used < least {
                    missed.push(what);
                }
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
