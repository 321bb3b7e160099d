//! A store that serves some keys more slowly than others.

use super::*;
use tokio::sync::Semaphore;

/// Copies of rows from 16 stretches in turn, at a store that serves one of these stretches slowly.
struct SpreadProcess {
    throttle: Arc<Throttle>,
    /// Of the other stretches.
    served: Arc<Mutex<Vec<Instant>>>,
    _tasks: JoinSet<()>,
}

impl SpreadProcess {
    const STRETCHES: u32 = 16;
    const SLOW_PER_SECOND: f64 = 5.0;
    const SLOTS: usize = 64;
    /// As many as a consumer has in hand by its own bound.
    const IN_HAND: usize = 168;

    fn start() -> Self {
        let now = Instant::now();
        let slow = Arc::new(RecoveringStore {
            per_second: Self::SLOW_PER_SECOND,
            recovers_at: now + Duration::from_hours(24),
            tokens: Mutex::new((1.0, now)),
        });
        let (throttle, served) = (Arc::new(unlimited(Self::SLOTS)), Arc::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(Self::receive(
            slow,
            Arc::clone(&throttle),
            Arc::clone(&served),
        ));
        Self {
            throttle,
            served,
            _tasks: tasks,
        }
    }

    async fn receive(
        slow: Arc<RecoveringStore>,
        throttle: Arc<Throttle>,
        served: Arc<Mutex<Vec<Instant>>>,
    ) {
        let mut in_hand = JoinSet::new();
        let slots = Arc::new(Semaphore::new(Self::SLOTS));
        for number in 0_u32.. {
            while let Some(copied) = in_hand.try_join_next() {
                copied.unwrap();
            }
            while in_hand.len() - throttle.excess_waiting()
                >= Self::IN_HAND.min(throttle.max_in_hand())
            {
                in_hand.join_next().await.unwrap().unwrap();
            }
            let stretch = number % Self::STRETCHES;
            let is_slow = stretch == 5;
            let key = format!("avatar-{stretch:02}{:06}", number / Self::STRETCHES);
            let (slow, slots) = (Arc::clone(&slow), Arc::clone(&slots));
            let (throttle, served) = (Arc::clone(&throttle), Arc::clone(&served));
            in_hand.spawn(async move {
                loop {
                    let take_slot = || slots.acquire();
                    let started = throttle.acquire_with(&key, CopySubject::Image, take_slot);
                    let (permit, _slot) = started.await;
                    sleep(Duration::from_millis(100)).await;
                    if is_slow && !slow.admits() {
                        permit.throttled();
                        sleep(Duration::from_millis(500)).await;
                        continue;
                    }
                    permit.served();
                    if !is_slow {
                        served.lock().push(Instant::now());
                    }
                    return;
                }
            });
        }
    }

    fn ranges(&self) -> usize {
        let state = self.throttle.state.lock();
        state.copies.as_ref().unwrap().ranges.count()
    }
}

#[tokio::test(start_paused = true)]
async fn neighbouring_keys_that_are_refused_do_not_slow_the_others() {
    fastrand::seed(1);
    let process = SpreadProcess::start();
    while process.ranges() == 1 {
        sleep(Duration::from_secs(1)).await;
    }
    sleep(Duration::from_secs(20)).await;
    let began = Instant::now();
    sleep(Duration::from_secs(20)).await;
    let served = process.served.lock();
    let served = served.iter().filter(|at| **at >= began).count() / 20;
    // 64 in flight for 100 ms each make 640 a second; the slow stretch would leave 75 to the others.
    assert!(served > 400, "{served} a second");
}

/// Refusals anywhere, whatever the order of the keys, are those of the whole store.
#[tokio::test(start_paused = true)]
async fn a_limit_to_all_keys_is_one_rate() {
    for (seed, is_spread) in [(1, false), (2, true)] {
        fastrand::seed(seed);
        let now = Instant::now();
        let store = RecoveringStore {
            per_second: 40.0,
            recovers_at: now + Duration::from_hours(24),
            tokens: Mutex::new((1.0, now)),
        };
        let throttle = unlimited(64);
        for number in 0..20_000_u32 {
            let stretch = if is_spread { number % 16 } else { 0 };
            let key = format!("avatar-{stretch:02}{number:06}");
            let permit = throttle.acquire(&key, CopySubject::Image).await;
            if store.admits() {
                permit.served();
            } else {
                permit.throttled();
            }
        }
        let state = throttle.state.lock();
        assert_eq!(
            state.copies.as_ref().unwrap().ranges.count(),
            1,
            "{is_spread}"
        );
    }
}

fn key(number: u32) -> String {
    format!("avatar-{number:04}")
}

/// Three ranges, of which the one in the middle has a limit.
async fn divided_ranges() -> KeyRanges {
    let mut ranges = KeyRanges::new(Instant::now());
    for round in 0..8_u32 {
        advance(Duration::from_secs(10)).await;
        let now = Instant::now();
        for number in (0..1000).step_by(20) {
            ranges.record_served(&key(number), true, now);
        }
        ranges.record_throttled(&key(500 + round), false, now, now);
    }
    assert_eq!(ranges.count(), 3);
    ranges
}

/// What S3 has split since has no limit of its own any more.
#[tokio::test(start_paused = true)]
async fn ranges_without_a_limit_are_one_again() {
    let mut ranges = divided_ranges().await;
    assert_ne!(ranges.gate_of(&key(10)), ranges.gate_of(&key(503)));
    advance(Duration::from_mins(5)).await;
    ranges.merge(Instant::now());
    assert_eq!(ranges.count(), 1);
}

/// The rate for the next copy to this key.
fn next_rate(ranges: &mut KeyRanges, number: u32) -> f64 {
    let (now, store_rate) = (Instant::now(), &mut ranges.of(&key(number)).store_rate);
    store_rate.skip_idle_time(now);
    store_rate.per_second(now)
}

/// The rate at their division and the rate once they are one again, with copies in the middle only, or in a pause.
async fn rates_around_merge(is_paused: bool) -> (f64, f64) {
    let mut ranges = divided_ranges().await;
    let parts = [0, 503, 900].map(|number| next_rate(&mut ranges, number));
    while ranges.count() > 1 {
        advance(Duration::from_secs(1)).await;
        if !is_paused {
            next_rate(&mut ranges, 503);
            let hot = &mut ranges.of(&key(503)).store_rate;
            hot.record_start(false, Instant::now());
        }
        ranges.merge(Instant::now());
    }
    advance(Duration::from_mins(1)).await;
    (parts.iter().sum(), next_rate(&mut ranges, 0))
}

#[tokio::test(start_paused = true)]
async fn ranges_that_are_one_again_have_the_sum_of_their_rates() {
    for is_paused in [false, true] {
        let (parts, merged) = rates_around_merge(is_paused).await;
        assert!(
            (parts..parts * 2.0).contains(&merged),
            "{merged} of {parts}"
        );
    }
}
