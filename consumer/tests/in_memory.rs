//! The pipeline over an in-memory queue, store and catalog, on paused time, with faults at every call
//! and an application that writes between: thousands of schedules in seconds, each repeated exactly
//! by its seed.

#![expect(clippy::unwrap_used, reason = "tests")]

mod world;

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::IdType;
use bucket_brigade_consumer::health::Health;
use bucket_brigade_consumer::lease::Leases;
use bucket_brigade_consumer::observation::Observation;
use bucket_brigade_consumer::pipeline::{Parts, run};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use world::World;

const ROWS: usize = 12;
const VISIBILITY: Duration = Duration::from_secs(4);

fn parts(world: &Arc<World>) -> Parts {
    Parts {
        queue: Arc::<World>::clone(world),
        store: Arc::<World>::clone(world),
        catalog: Arc::<World>::clone(world),
        id_type: IdType::Bigint,
        rule: PathRule::new("image/", "avatar/", None, None).unwrap(),
        has_dead_letter_queue: true,
        witness: None,
        max_concurrency: 4,
        visibility: VISIBILITY,
        grace: Duration::from_secs(25),
        observation: Observation {
            health: Health::default(),
            leases: Leases::new(VISIBILITY),
            tally: Arc::default(),
        },
    }
}

/// Two consumers move a small world while the application writes to it; one is stopped half way.
async fn simulate(seed: u64) {
    fastrand::seed(seed);
    let world = Arc::new(World::new(ROWS, seed));
    let (first, second) = (CancellationToken::new(), CancellationToken::new());
    let stopped_early = tokio::spawn(run(parts(&world), first.clone()));
    let to_the_end = tokio::spawn(run(parts(&world), second.clone()));
    for _ in 0..6 {
        sleep(Duration::from_millis(fastrand::u64(1..400))).await;
        world.application_writes();
    }
    first.cancel();
    assert!(
        stopped_early.await.unwrap(),
        "seed {seed}: the first consumer did not drain"
    );
    let drained = timeout(Duration::from_hours(1), world.drained()).await;
    assert!(drained.is_ok(), "seed {seed}: {:#?}", world.describe());
    second.cancel();
    assert!(
        to_the_end.await.unwrap(),
        "seed {seed}: the second consumer did not drain"
    );
    let violations = world.violations();
    assert!(violations.is_empty(), "seed {seed}: {violations:#?}");
}

#[test]
fn nothing_is_lost_whatever_fails() {
    for seed in 0..600 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(simulate(seed));
    }
}
