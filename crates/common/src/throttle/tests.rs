mod companions;
mod key_ranges;

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::ledger::worker_state::WorkerState;

fn unlimited(max: usize) -> Throttle {
    Throttle::for_copies(max, DatabaseLimits::default())
}

fn limited(concurrency: Option<u64>, rate: Option<f64>) -> FleetLimits {
    FleetLimits {
        rate,
        concurrency,
        ..FleetLimits::default()
    }
}

fn paused() -> FleetLimits {
    FleetLimits {
        paused: Some("paused by ana".into()),
        ..FleetLimits::default()
    }
}

fn slow_above(millis: u64) -> DatabaseLimits {
    DatabaseLimits {
        commit_latency: Some(Duration::from_millis(millis)),
        replica_lag: Some(Duration::from_secs(5)),
    }
}

fn start_image(throttle: &Throttle) -> impl Future<Output = ThrottlePermit<'_>> {
    throttle.acquire("a", CopySubject::Image)
}

async fn may_start(throttle: &Throttle) -> bool {
    timeout(Duration::from_millis(1), start_image(throttle))
        .await
        .is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_what_has_not_begun() {
    let throttle = unlimited(4);
    assert!(may_start(&throttle).await);
    throttle.set_limits(paused());
    assert!(!may_start(&throttle).await);
    assert_eq!((throttle.max_in_hand(), throttle.concurrency()), (0, 0));
    let reason = ThrottleReason::Paused("paused by ana".into());
    assert_eq!(throttle.reasons(), [reason]);
    throttle.set_limits(FleetLimits::default());
    sleep(Duration::from_millis(200)).await;
    assert!(may_start(&throttle).await);
    assert_eq!(throttle.reasons(), []);
}

#[tokio::test(start_paused = true)]
async fn what_waits_learns_of_the_end_of_a_pause() {
    let throttle = Arc::new(unlimited(4));
    throttle.set_limits(paused());
    let waiting = {
        let throttle = Arc::clone(&throttle);
        tokio::spawn(async move { drop(start_image(&throttle).await) })
    };
    advance(Duration::from_hours(1)).await;
    assert!(!waiting.is_finished());
    throttle.set_limits(FleetLimits::default());
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn copies_in_flight_are_bounded_by_the_share() {
    let throttle = unlimited(64);
    throttle.set_limits(limited(Some(2), None));
    let (first, second) = (start_image(&throttle).await, start_image(&throttle).await);
    sleep(Duration::from_secs(1)).await;
    assert!(!may_start(&throttle).await);
    drop(first);
    assert!(may_start(&throttle).await);
    drop(second);
    throttle.set_limits(limited(Some(0), None));
    assert_eq!(throttle.max_in_hand(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_process_without_a_share_gives_back_what_it_has_unless_all_are_paused() {
    let throttle = unlimited(64);
    let is_excluded = async || timeout(Duration::ZERO, throttle.excluded()).await.is_ok();
    assert!(!is_excluded().await);
    let none = limited(Some(0), None);
    throttle.set_limits(none.clone());
    assert!(is_excluded().await);
    let paused = FleetLimits { ..paused() };
    throttle.set_limits(FleetLimits {
        concurrency: none.concurrency,
        ..paused
    });
    assert!(!is_excluded().await);
}

/// A throttle whose store has been served well for so long that its own rate is no bound.
async fn unbounded_by_store(max: usize) -> Throttle {
    let throttle = unlimited(max);
    for _ in 0..10_000 {
        start_image(&throttle).await.served();
    }
    throttle
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_kept_and_a_faster_one_takes_effect_at_once() {
    let throttle = unbounded_by_store(64).await;
    throttle.set_limits(limited(None, Some(100.0)));
    let began = Instant::now();
    for _ in 0..201 {
        start_image(&throttle).await.served();
    }
    let took = began.elapsed().as_secs_f64();
    assert!((1.9..2.1).contains(&took), "{took}");
    throttle.set_limits(limited(None, Some(0.001)));
    start_image(&throttle).await.served();
    throttle.set_limits(limited(None, Some(100.0)));
    let soon = timeout(Duration::from_millis(20), start_image(&throttle));
    assert!(soon.await.is_ok());
    let words = throttle.reasons()[0].to_string();
    assert_eq!(words, "limited to 100.0 rows per second");
}

#[tokio::test(start_paused = true)]
async fn slow_commits_slow_the_copies_and_fast_ones_let_them_grow_again() {
    let throttle = Throttle::for_copies(64, slow_above(100));
    throttle.commit_took(Duration::from_millis(50));
    assert_eq!(throttle.reasons(), []);
    for _ in 0..20 {
        throttle.commit_took(Duration::from_millis(400));
        advance(Duration::from_secs(1)).await;
    }
    assert_eq!(throttle.concurrency(), 1);
    let reasons = throttle.reasons();
    assert_eq!(reasons[0].worker_state(), WorkerState::DatabaseSlow);
    let words = reasons[0].to_string();
    assert!(words.starts_with("commits take 39"), "{words}");
    assert!(words.ends_with(": at most 1 copy at once"), "{words}");
    let mut seconds = 0;
    while !throttle.reasons().is_empty() {
        advance(Duration::from_secs(1)).await;
        throttle.commit_took(Duration::from_millis(20));
        throttle.set_limits(FleetLimits::default());
        seconds += 1;
        assert!(seconds < 60);
    }
    assert_eq!(throttle.concurrency(), 64);
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_for_a_moment_after_a_slow_commit() {
    let throttle = Throttle::for_copies(64, slow_above(100));
    throttle.commit_took(Duration::from_millis(400));
    assert!(!may_start(&throttle).await);
    advance(Duration::from_millis(800)).await;
    assert!(may_start(&throttle).await);
}

#[tokio::test(start_paused = true)]
async fn a_lagging_replica_stops_the_copies_until_it_has_caught_up() {
    let throttle = Throttle::for_copies(64, slow_above(100));
    throttle.set_replica_lag(Some(Duration::from_secs(6)));
    assert!(!may_start(&throttle).await);
    assert_eq!(throttle.max_in_hand(), 0);
    throttle.set_replica_lag(Some(Duration::from_secs(1)));
    assert!(may_start(&throttle).await);
}

#[tokio::test(start_paused = true)]
async fn rows_rest_after_a_slow_commit_and_wait_for_a_lagging_replica() {
    let throttle = Throttle::for_rows(slow_above(100));
    throttle.commit_took(Duration::from_millis(90));
    assert_eq!(throttle.held(), None);
    throttle.commit_took(Duration::from_millis(300));
    let reason = throttle.held().unwrap();
    assert_eq!(reason.worker_state(), WorkerState::DatabaseSlow);
    let words = "a commit took 300ms, MAX_COMMIT_LATENCY is 100ms";
    assert_eq!(reason.to_string(), words);
    advance(Duration::from_millis(601)).await;
    assert_eq!(throttle.held(), None);
    throttle.set_replica_lag(Some(Duration::from_secs(6)));
    let words = "a replica is 6.0 s behind, MAX_REPLICA_LAG is 5s";
    assert_eq!(throttle.held().unwrap().to_string(), words);
    throttle.set_replica_lag(None);
    assert_eq!(throttle.held(), None);
}

#[tokio::test(start_paused = true)]
async fn an_operators_pause_is_the_first_reason() {
    let throttle = Throttle::for_rows(slow_above(100));
    throttle.commit_took(Duration::from_millis(300));
    throttle.set_limits(paused());
    throttle.set_replica_lag(Some(Duration::from_secs(6)));
    let first = throttle.held();
    assert_eq!(first, Some(ThrottleReason::Paused("paused by ana".into())));
    assert_eq!(throttle.reasons().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn rows_go_at_the_fleets_rate_in_bursts_whatever_its_consumers() {
    let throttle = Throttle::for_rows(DatabaseLimits::default());
    assert_eq!(throttle.acquire_rows(5000).await, 5000);
    let limits = FleetLimits {
        other_consumers: 3,
        ..limited(None, Some(1000.0))
    };
    throttle.set_limits(limits);
    let (began, mut rows) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(10) {
        let burst = throttle.acquire_rows(5000).await;
        assert!(burst <= 100, "{burst}");
        rows += burst;
    }
    // A second's worth may be made up for.
    assert!((9_900..=11_200).contains(&rows), "{rows}");
}

/// Rows that wait for their rate learn of a pause, and of a faster rate, while they wait.
#[tokio::test(start_paused = true)]
async fn rows_that_wait_for_a_slow_rate_learn_of_each_change_at_once() {
    let throttle = Arc::new(Throttle::for_rows(DatabaseLimits::default()));
    throttle.set_limits(limited(None, Some(0.01)));
    while timeout(Duration::from_secs(1), throttle.acquire_rows(10))
        .await
        .is_ok()
    {}
    let waiting = {
        let throttle = Arc::clone(&throttle);
        tokio::spawn(async move { throttle.acquire_rows(10).await })
    };
    sleep(Duration::from_secs(1)).await;
    throttle.set_limits(paused());
    sleep(Duration::from_hours(10)).await;
    assert!(!waiting.is_finished());
    throttle.set_limits(limited(None, Some(1000.0)));
    let soon = timeout(Duration::from_millis(100), waiting).await;
    assert_eq!(soon.unwrap().unwrap(), 10);
}

/// A store that serves so many copies per second until a moment, and everything from then on.
struct RecoveringStore {
    per_second: f64,
    recovers_at: Instant,
    tokens: Mutex<(f64, Instant)>,
}

impl RecoveringStore {
    fn admits(&self) -> bool {
        let now = Instant::now();
        let mut tokens = self.tokens.lock();
        let elapsed = (now - tokens.1).as_secs_f64();
        *tokens = ((tokens.0 + elapsed * self.per_second).min(1.0), now);
        let is_admitted = tokens.0 >= 1.0 || now >= self.recovers_at;
        if is_admitted {
            tokens.0 -= 1.0;
        }
        is_admitted
    }
}

/// A process with as much in hand as a consumer with 64 copies in flight, at such a store.
struct BusyProcess {
    throttle: Arc<Throttle>,
    started: Arc<Mutex<Vec<Instant>>>,
    _tasks: JoinSet<()>,
}

impl BusyProcess {
    const LATENCY: Duration = Duration::from_millis(10);
    /// What it copies per second when nothing holds it back.
    const FULL_RATE: usize = 6_400;

    fn start(per_second: f64, limited_for: Duration) -> Self {
        let now = Instant::now();
        let store = Arc::new(RecoveringStore {
            per_second,
            recovers_at: now + limited_for,
            tokens: Mutex::new((1.0, now)),
        });
        let (throttle, started) = (Arc::new(unlimited(64)), Arc::default());
        let mut tasks = JoinSet::new();
        for _ in 0..168 {
            tasks.spawn(Self::copy_forever(
                Arc::clone(&store),
                Arc::clone(&throttle),
                Arc::clone(&started),
            ));
        }
        Self {
            throttle,
            started,
            _tasks: tasks,
        }
    }

    async fn copy_forever(
        store: Arc<RecoveringStore>,
        throttle: Arc<Throttle>,
        started: Arc<Mutex<Vec<Instant>>>,
    ) {
        loop {
            let permit = start_image(&throttle).await;
            started.lock().push(Instant::now());
            sleep(Self::LATENCY).await;
            if store.admits() {
                permit.served();
            } else {
                permit.throttled();
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    fn started_since(&self, since: Instant) -> usize {
        let started = self.started.lock();
        started.iter().filter(|at| **at >= since).count()
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_starts_within_a_second_of_a_pause_however_slow_the_store() {
    fastrand::seed(1);
    let process = BusyProcess::start(0.5, Duration::from_hours(24));
    // Under a lower rate one copy goes, and then none for long.
    let holds = [
        (paused(), 0),
        (limited(Some(0), None), 0),
        (limited(None, Some(1e-6)), 1),
    ];
    for (limits, first) in holds.into_iter().cycle().take(15) {
        sleep(Duration::from_millis(61_700)).await;
        assert!(process.throttle.store_limit().is_some());
        let now = Instant::now();
        process.throttle.set_limits(limits);
        sleep(Duration::from_mins(1)).await;
        assert!(process.started_since(now) <= first);
        process.throttle.set_limits(FleetLimits::default());
        sleep(Duration::from_secs(10)).await;
        assert!(process.started_since(now) > 1);
    }
}

/// The first copies of a process, all at hand at once, learn of a pause, too.
#[tokio::test(start_paused = true)]
async fn a_pause_reaches_what_waits_at_a_cold_start() {
    let process = BusyProcess::start(1e9, Duration::ZERO);
    sleep(Duration::from_millis(300)).await;
    assert!(process.started_since(Instant::now() - Duration::from_secs(1)) < 10);
    process.throttle.set_limits(paused());
    let now = Instant::now();
    sleep(Duration::from_mins(1)).await;
    assert_eq!(process.started_since(now), 0);
}

#[tokio::test(start_paused = true)]
async fn half_of_what_the_store_serves_is_used_a_minute_after_it_served_next_to_nothing() {
    for (seed, per_second) in [0.5, 0.5, 0.5, 1.0, 2.0].into_iter().enumerate() {
        fastrand::seed(u64::try_from(seed).unwrap());
        let two_minutes = Duration::from_mins(2);
        let process = BusyProcess::start(per_second, two_minutes);
        sleep(two_minutes).await;
        let limit = process.throttle.store_limit().unwrap();
        assert!(limit < 3.0, "{limit}");
        sleep(Duration::from_mins(1)).await;
        let now = Instant::now();
        sleep(Duration::from_secs(1)).await;
        let started = process.started_since(now);
        assert!(
            started > BusyProcess::FULL_RATE / 2,
            "{per_second}: {started}"
        );
    }
}

/// A copy that is interrupted before the store has answered does not stay the probe for ever.
/// Nothing was served by which the rate could have grown meanwhile.
#[tokio::test(start_paused = true)]
async fn a_store_that_refused_everything_for_minutes_is_not_flooded_when_it_is_back() {
    fastrand::seed(1);
    let refuses_for = Duration::from_mins(5);
    let process = BusyProcess::start(0.0, refuses_for);
    sleep(refuses_for).await;
    let back_at = Instant::now();
    sleep(Duration::from_secs(3)).await;
    let started = process.started_since(back_at);
    assert!((1..100).contains(&started), "{started} copies");
    let reason = process.throttle.reasons()[0].to_string();
    let rate: f64 = reason.split(' ').next().unwrap().parse().unwrap();
    assert!(rate < 100.0, "{reason}");
    sleep(Duration::from_mins(1)).await;
    let later = Instant::now();
    sleep(Duration::from_secs(1)).await;
    assert!(process.started_since(later) > BusyProcess::FULL_RATE / 10);
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_interrupted_is_made_by_another() {
    let throttle = unlimited(64);
    start_image(&throttle).await.throttled();
    sleep(Duration::from_secs(1)).await;
    let probe = start_image(&throttle).await;
    assert!(!may_start(&throttle).await);
    drop(probe);
    sleep(Duration::from_secs(1)).await;
    let again = timeout(Duration::from_millis(1), start_image(&throttle)).await;
    again.unwrap().served();
    sleep(Duration::from_secs(1)).await;
    let first = start_image(&throttle).await;
    sleep(Duration::from_secs(1)).await;
    assert!(may_start(&throttle).await);
    drop(first);
}

/// As one that takes long: it may be a large copy, or its connection dead.
#[tokio::test(start_paused = true)]
async fn a_probe_without_an_answer_is_not_waited_for() {
    let throttle = unlimited(64);
    start_image(&throttle).await.throttled();
    let _probe = start_image(&throttle).await;
    let began = Instant::now();
    let _next = start_image(&throttle).await;
    let waited = began.elapsed().as_secs_f64();
    assert!((4.9..5.5).contains(&waited), "{waited}");
}

#[tokio::test(start_paused = true)]
async fn a_throttled_process_says_so_and_has_little_in_hand() {
    let throttle = unlimited(64);
    assert_eq!(throttle.max_in_hand(), usize::MAX);
    start_image(&throttle).await.throttled();
    let reason = &throttle.reasons()[0];
    assert_eq!(reason.worker_state(), WorkerState::ThrottledByStore);
    assert_eq!(reason.to_string(), "3.6 copies per second");
    assert_eq!(throttle.max_in_hand(), 20);
    sleep(Duration::from_secs(11)).await;
    assert_eq!(throttle.reasons(), []);
}
