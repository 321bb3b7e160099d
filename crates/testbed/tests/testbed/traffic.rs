//! Application traffic: what it counts, and that it sees what is broken.

use std::time::{Duration, Instant};

use anyhow::Result;
use bucket_brigade_testbed::seed::{SeedOptions, SeededRowKind};
use bucket_brigade_testbed::traffic::{ApplicationWrite, Traffic, TrafficRates};

use crate::world::TestWorld;

/// Waits for a condition as long as a slow machine may take.
async fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_mins(3),
            "it did not come about"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn busy_rates() -> TrafficRates {
    TrafficRates {
        reads_per_second: 400.0,
        writes_per_second: 200.0,
        max_writes: 20,
        ..TrafficRates::default()
    }
}

#[tokio::test]
async fn readers_and_writers_leave_everything_whole() -> Result<()> {
    let world = TestWorld::new(60).await?;
    world.migrate_rows().await?;
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &busy_rates()).await?;
    wait_until(|| traffic.read_counts().0 > 200 && traffic.write_count() == 20).await;
    let report = traffic.stop().await;
    assert_eq!(
        (report.broken_reads, report.read_errors, report.write_errors),
        (0, 0, 0),
        "{report:#?}"
    );
    assert_eq!(report.application_writes + report.deletes, 20);
    let verdict = world.run_checker(&report.log).await?;
    assert_eq!(verdict.violations, Vec::<String>::new());
    assert_eq!(verdict.moved + verdict.failed + verdict.already_moved, 60);
    Ok(())
}

#[tokio::test]
async fn rows_the_application_wrote_before_they_moved_are_changed() -> Result<()> {
    let world = TestWorld::with_seed(&SeedOptions::with_plain_keys(30)).await?;
    let rates = TrafficRates {
        writes_per_second: 1000.0,
        max_writes: 1000,
        ..busy_rates()
    };
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &rates).await?;
    wait_until(|| traffic.write_count() >= 40).await;
    let report = traffic.stop().await;
    assert!(
        report
            .log
            .rows
            .values()
            .any(|deed| *deed == ApplicationWrite::Deleted)
    );
    let verdict = world.run_checker(&report.log).await?;
    assert_eq!(verdict.changed_by_application, report.log.rows.len() as u64);
    assert_eq!(verdict.violations.len(), 30 - report.log.rows.len());
    Ok(())
}

#[tokio::test]
async fn a_path_changed_without_a_copy_is_a_broken_read() -> Result<()> {
    let world = TestWorld::with_seed(&SeedOptions::with_plain_keys(10)).await?;
    let rates = TrafficRates {
        max_writes: 0,
        ..busy_rates()
    };
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &rates).await?;
    world
        .execute("UPDATE images SET path = 'avatar/' || substr(path, 7)")
        .await?;
    wait_until(|| traffic.read_counts().1 > 0).await;
    let report = traffic.stop().await;
    assert!(
        report.broken_read_details[0].contains("names no object"),
        "{:?}",
        report.broken_read_details[0]
    );
    Ok(())
}

#[tokio::test]
async fn another_picture_is_a_broken_read() -> Result<()> {
    let world = TestWorld::with_seed(&SeedOptions::with_plain_keys(10)).await?;
    let row = world
        .seeded
        .rows_of_kind(SeededRowKind::ToMove)
        .next()
        .expect("a row");
    let at = world.application.location_of(&row.path);
    world
        .application
        .put_object(&at, b"another".to_vec(), &row.properties)
        .await?;
    let rates = TrafficRates {
        max_writes: 0,
        ..busy_rates()
    };
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &rates).await?;
    wait_until(|| traffic.read_counts().1 > 0).await;
    let report = traffic.stop().await;
    assert!(
        report.broken_read_details[0].contains("shows another picture"),
        "{:?}",
        report.broken_read_details[0]
    );
    Ok(())
}
