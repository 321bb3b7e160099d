//! Application traffic: what it counts, and that it sees what is broken.

use std::time::{Duration, Instant};

use anyhow::Result;
use bucket_brigade_testbed::seed::{Kind, Seed};
use bucket_brigade_testbed::traffic::{Deed, Rates, Traffic};

use crate::world::World;

/// Waits for a condition as long as a slow machine may take.
async fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_mins(3),
            "it did not come about"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn busy() -> Rates {
    Rates {
        reads_per_second: 400.0,
        writes_per_second: 200.0,
        most_writes: 20,
        ..Rates::default()
    }
}

#[tokio::test]
async fn readers_and_writers_leave_everything_whole() -> Result<()> {
    let world = World::new(60).await?;
    world.migrate().await?;
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &busy()).await?;
    until(|| traffic.reads().0 > 200 && traffic.writes() == 20).await;
    let report = traffic.stop().await;
    assert_eq!(
        (report.broken_reads, report.read_errors, report.write_errors),
        (0, 0, 0),
        "{report:#?}"
    );
    assert_eq!(report.application_writes + report.deletes, 20);
    let verdict = world.sweep(&report.log).await?;
    assert_eq!(verdict.violations, Vec::<String>::new());
    assert_eq!(verdict.moved + verdict.failed + verdict.already_moved, 60);
    Ok(())
}

#[tokio::test]
async fn rows_the_application_wrote_before_they_moved_are_changed() -> Result<()> {
    let world = World::with(&Seed::plain(30)).await?;
    let rates = Rates {
        writes_per_second: 1000.0,
        most_writes: 1000,
        ..busy()
    };
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &rates).await?;
    until(|| traffic.writes() >= 40).await;
    let report = traffic.stop().await;
    assert!(report.log.rows.values().any(|deed| *deed == Deed::Deleted));
    let verdict = world.sweep(&report.log).await?;
    assert_eq!(verdict.changed_by_application, report.log.rows.len() as u64);
    assert_eq!(verdict.violations.len(), 30 - report.log.rows.len());
    Ok(())
}

#[tokio::test]
async fn a_path_changed_without_a_copy_is_a_broken_read() -> Result<()> {
    let world = World::with(&Seed::plain(10)).await?;
    let rates = Rates {
        most_writes: 0,
        ..busy()
    };
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &rates).await?;
    world
        .execute("UPDATE images SET path = 'avatar/' || substr(path, 7)")
        .await?;
    until(|| traffic.reads().1 > 0).await;
    let report = traffic.stop().await;
    assert!(
        report.broken[0].contains("names no object"),
        "{:?}",
        report.broken[0]
    );
    Ok(())
}

#[tokio::test]
async fn another_picture_is_a_broken_read() -> Result<()> {
    let world = World::with(&Seed::plain(10)).await?;
    let row = world.seeded.of(Kind::ToMove).next().expect("a row");
    let at = world.application.locate(&row.path);
    world
        .application
        .put_object(&at, b"another".to_vec(), &row.properties)
        .await?;
    let rates = Rates {
        most_writes: 0,
        ..busy()
    };
    let traffic = Traffic::start(&world.application, world.seeded.clone(), &rates).await?;
    until(|| traffic.reads().1 > 0).await;
    let report = traffic.stop().await;
    assert!(
        report.broken[0].contains("shows another picture"),
        "{:?}",
        report.broken[0]
    );
    Ok(())
}
