//! The simulation: thousands of seeds, each repeated exactly; and the test for the test.

use bucket_brigade_simulation::sabotage::Sabotage;
use bucket_brigade_simulation::simulate::{simulate_sabotaged, simulate_seed};

/// Run at every test; `script/chaos --simulate N` runs as many as you like.
const SEED_COUNT: u64 = 3_000;

#[test]
fn nothing_is_lost_whatever_fails() {
    let (mut moved, mut changed, mut failed, mut deaths) = (0, 0, 0, 0);
    for seed in 0..SEED_COUNT {
        let report = simulate_seed(seed);
        let wrong = &report.violations;
        assert!(wrong.is_empty(), "seed {seed}: {wrong:#?}");
        moved += report.moved;
        changed += report.changed;
        failed += report.failed;
        deaths += report.crashes;
    }
    println!("moved {moved}, changed {changed}, failed {failed}, {deaths} deaths");
    assert!([moved, changed, failed].iter().all(|count| *count > 1_000));
    assert!(deaths > 1_000);
}

#[test]
fn a_seed_repeats_exactly() {
    for seed in 0..50 {
        assert_eq!(simulate_seed(seed), simulate_seed(seed), "seed {seed}");
    }
}

/// The first seeds that find the sabotage.
fn first_detecting_seed(sabotage: Sabotage, words: &str) -> Option<u64> {
    let finds = |seed: &u64| {
        let report = simulate_sabotaged(*seed, sabotage);
        let mut found = report.violations.iter();
        found.any(|violation| violation.contains(words))
    };
    (0..200).find(finds)
}

#[test]
fn what_is_broken_on_purpose_is_found() {
    assert!(first_detecting_seed(Sabotage::NoCompareAndSet, "I3").is_some());
    assert!(first_detecting_seed(Sabotage::UnconditionalCopy, "I3").is_some());
    assert!(first_detecting_seed(Sabotage::DeleteBeforeCommit, "I5").is_some());
    assert!(first_detecting_seed(Sabotage::UnsentDeadLetter, "I5").is_some());
    assert!(first_detecting_seed(Sabotage::ForgottenCompanions, "lacks its companion").is_some());
}
