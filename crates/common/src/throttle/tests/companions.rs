use super::*;

/// It is of rows: what belongs to an image goes with it.
#[tokio::test(start_paused = true)]
async fn companions_take_nothing_of_the_fleets_rate() {
    let throttle = unbounded_by_store(64).await;
    throttle.set_limits(limited(None, Some(10.0)));
    let began = Instant::now();
    for _ in 0..21 {
        throttle.acquire("a", CopySubject::Image).await.served();
        for _ in 0..3 {
            throttle.acquire("b", CopySubject::Companion).await.served();
        }
    }
    let took = began.elapsed().as_secs_f64();
    assert!((1.8..2.2).contains(&took), "{took}");
    throttle.set_limits(paused());
    let companion = throttle.acquire("b", CopySubject::Companion);
    let started = timeout(Duration::from_millis(1), companion).await;
    assert!(started.is_err(), "a pause holds them, too");
}
