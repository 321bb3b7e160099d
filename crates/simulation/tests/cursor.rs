//! The cursor moves beside the feeding, on injected time: what a ledger that is slow, or fails, delays.

#![expect(clippy::unwrap_used, reason = "tests")]

#[expect(dead_code, reason = "the tests of outages use the rest")]
mod faulty_client;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bucket_brigade_feeder::feed::FeedLoop;
use bucket_brigade_feeder::retry::FeederStopped;
use bucket_brigade_simulation::client::SimulatedClient;
use bucket_brigade_simulation::fault_rates::FaultRates;
use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::shared_world::SharedWorld;
use bucket_brigade_simulation::simulate::build_feed;
use faulty_client::{FaultyClient, SimulatedOutage};
use tokio::time::{Instant, sleep};

/// Of three rows a page.
const ROW_COUNT: usize = 8;

struct Scene {
    shared: Arc<SharedWorld>,
    faulty: Arc<FaultyClient>,
}

impl Scene {
    fn queued(&self) -> usize {
        self.shared.lock().mailbox.queued.len()
    }

    /// The cursor, and how many rows were fed by it.
    fn cursor(&self) -> (Option<String>, u64) {
        let things = self.shared.lock();
        (things.table.cursor.clone(), things.table.fed)
    }

    async fn wait_for(&self, is_so: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            sleep(Duration::from_millis(5)).await;
            let waited = began.elapsed();
            assert!(waited < Duration::from_mins(5), "{:?}", self.cursor());
        }
    }
}

/// Runs a feeder beside `acts` until they end, which stops it. Returns how long that took it.
async fn feed_while(
    max_backlog: u64,
    outage: Option<SimulatedOutage>,
    acts: impl AsyncFnOnce(&Scene),
) -> (Scene, Duration) {
    let shared = Arc::new(SharedWorld::new(1, Sabotage::None));
    shared.lock().fault_rates = FaultRates::none();
    for id in 0..ROW_COUNT {
        let row = (id.to_string(), format!("image/{id}"));
        shared.lock().table.rows.insert(row.0, row.1);
    }
    let client = Arc::new(SimulatedClient::new(Arc::clone(&shared), None));
    let faulty = Arc::new(FaultyClient::new(Arc::clone(&client)));
    if let Some(outage) = outage {
        faulty.start_outage(outage);
    }
    let mut feed = FeedLoop {
        source: Arc::<FaultyClient>::clone(&faulty),
        ..build_feed(&client)
    };
    feed.options.max_backlog = max_backlog;
    let stop = feed.stop.clone();
    let scene = Scene { shared, faulty };
    let acting = async {
        acts(&scene).await;
        stop.cancel();
        Instant::now()
    };
    let (outcome, stopped) = tokio::join!(feed.run(), acting);
    assert_eq!(outcome.unwrap_err(), FeederStopped);
    (scene, stopped.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_move_of_the_cursor_that_does_not_end_delays_no_page() {
    let slow = Some(SimulatedOutage::SlowCursor);
    let (scene, _) = feed_while(100, slow, async |scene| {
        scene.wait_for(|scene| scene.queued() == ROW_COUNT).await;
        assert_eq!(scene.cursor(), (None, 0));
        scene.faulty.end_outage();
        scene.wait_for(|scene| scene.cursor().1 == 8).await;
    })
    .await;
    // The first page's, and the newest after it.
    assert_eq!(scene.faulty.cursor_moves.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn pages_wait_for_a_cursor_that_the_ledger_refuses_to_move() {
    let refused = Some(SimulatedOutage::Cursor);
    let (scene, _) = feed_while(100, refused, async |scene| {
        scene.wait_for(|scene| scene.queued() >= 3).await;
        sleep(Duration::from_mins(10)).await;
        // The page that was sent when it was refused, and the one after it.
        assert!(scene.queued() <= 6, "{}", scene.queued());
        scene.faulty.end_outage();
        scene.wait_for(|scene| scene.cursor().1 == 8).await;
    })
    .await;
    assert_eq!(scene.cursor().0.as_deref(), Some("7"));
}

#[tokio::test(start_paused = true)]
async fn what_is_confirmed_of_a_page_is_recorded_by_a_feeder_that_is_stopped() {
    let (scene, _) = feed_while(4, None, async |scene| {
        scene.wait_for(|scene| scene.queued() == 4).await;
        // Until the queue's response is there.
        sleep(Duration::from_secs(10)).await;
        assert_eq!(scene.cursor().1, 3);
    })
    .await;
    assert_eq!(scene.cursor(), (Some("3".into()), 4));
}

#[tokio::test(start_paused = true)]
async fn a_feeder_that_is_stopped_waits_for_its_cursor_and_not_for_ever() {
    for outage in [SimulatedOutage::SlowCursor, SimulatedOutage::Cursor] {
        let (_, took) = feed_while(100, Some(outage), async |scene| {
            scene.wait_for(|scene| scene.queued() >= 3).await;
        })
        .await;
        assert!(took < Duration::from_secs(6), "{took:?}");
    }
}
