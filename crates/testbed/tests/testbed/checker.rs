//! A checker that cannot fail is worthless: every kind of violation is committed and found.

use anyhow::Result;
use bucket_brigade_testbed::application::{ObjectLocation, ObjectProperties};
use bucket_brigade_testbed::seed::SeededRowKind;
use bucket_brigade_testbed::traffic::{ApplicationWrite, WriteLog};

use crate::world::{TestWorld, new_path};

const IMAGE_COUNT: usize = 60;

type PropertyDamage = fn(&mut ObjectProperties);

async fn migrated_world() -> Result<TestWorld> {
    let world = TestWorld::new(IMAGE_COUNT).await?;
    world.migrate_rows().await?;
    Ok(world)
}

/// Sweeps and expects exactly one violation, which contains `words`.
async fn assert_finds(world: &TestWorld, log: &WriteLog, words: &str) -> Result<()> {
    let found = world.run_checker(log).await?.violations;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert!(found[0].contains(words), "{found:#?}");
    Ok(())
}

fn destination_object(key: &str) -> ObjectLocation {
    ObjectLocation {
        bucket: "images-new".to_owned(),
        key: key.to_owned(),
    }
}

#[tokio::test]
async fn a_finished_migration_holds() -> Result<()> {
    let verdict = migrated_world()
        .await?
        .run_checker(&WriteLog::default())
        .await?;
    assert_eq!(verdict.violations, Vec::<String>::new());
    assert_eq!(
        (verdict.images, verdict.failed, verdict.already_moved),
        (60, 1, 2)
    );
    assert_eq!((verdict.moved, verdict.changed_by_application), (57, 0));
    Ok(())
}

#[tokio::test]
async fn rows_that_were_never_moved_are_in_no_state() -> Result<()> {
    let world = TestWorld::new(IMAGE_COUNT).await?;
    let found = world.run_checker(&WriteLog::default()).await?.violations;
    assert_eq!(found.len(), 58);
    assert!(
        found
            .iter()
            .all(|found| found.contains("neither moved nor changed nor failed")),
        "{found:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_path_without_object() -> Result<()> {
    let world = migrated_world().await?;
    let key = new_path(world.some_row());
    world
        .application
        .s3
        .delete_object()
        .bucket("images-new")
        .key(key)
        .send()
        .await?;
    let found = world.run_checker(&WriteLog::default()).await?.violations;
    assert!(
        found
            .iter()
            .any(|found| found.contains("there is no object")),
        "{found:#?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_source_that_is_gone() -> Result<()> {
    let world = migrated_world().await?;
    let key = &world.some_row().path;
    world
        .application
        .s3
        .delete_object()
        .bucket("images-old")
        .key(key)
        .send()
        .await?;
    assert_finds(&world, &WriteLog::default(), "is gone").await
}

#[tokio::test]
async fn a_copy_of_other_bytes() -> Result<()> {
    let world = migrated_world().await?;
    let row = world.some_row();
    let at = destination_object(&new_path(row));
    world
        .application
        .put_object(&at, b"another".to_vec(), &row.properties)
        .await?;
    assert_finds(&world, &WriteLog::default(), "has SHA-256").await
}

#[tokio::test]
async fn a_copy_that_lost_each_property() -> Result<()> {
    let world = migrated_world().await?;
    let row = world
        .seeded
        .rows_of_kind(SeededRowKind::ToMove)
        .find(|row| !row.shared && !row.properties.tags.is_empty());
    let row = row.expect("a tagged row");
    let at = world.application.location_of(&row.path);
    let bytes = world
        .application
        .s3
        .get_object()
        .bucket(at.bucket)
        .key(at.key)
        .send()
        .await?;
    let bytes = bytes.body.collect().await?.to_vec();
    let spoils: [(&str, PropertyDamage); 6] = [
        ("has content type", |it| {
            it.content_type = Some("binary/octet-stream".to_owned());
        }),
        ("has cache control", |it| it.cache_control = None),
        ("has content encoding", |it| {
            it.content_encoding = Some("br".to_owned());
        }),
        ("has content disposition", |it| {
            it.content_disposition = Some("inline".to_owned());
        }),
        ("has metadata", |it| it.metadata.clear()),
        ("has tags", |it| it.tags.clear()),
    ];
    for (words, spoil) in spoils {
        let mut properties = row.properties.clone();
        spoil(&mut properties);
        world
            .application
            .put_object(
                &destination_object(&new_path(row)),
                bytes.clone(),
                &properties,
            )
            .await?;
        assert_finds(&world, &WriteLog::default(), words).await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_application_write_that_the_migration_undid() -> Result<()> {
    let world = migrated_world().await?;
    let row = world.some_row();
    let at = destination_object("avatar/mine.png");
    let sha256 = world
        .application
        .put_object(&at, b"mine".to_vec(), &ObjectProperties::default())
        .await?;
    let deed = ApplicationWrite::Replaced {
        path: at.key.clone(),
        sha256: sha256.clone(),
    };
    let log = WriteLog {
        rows: [(row.id.clone(), deed)].into(),
        objects: [(at, sha256)].into(),
    };
    let verdict = world.run_checker(&log).await?;
    assert_eq!(
        (verdict.lost_application_writes, verdict.overwritten_objects),
        (1, 0)
    );
    assert_finds(
        &world,
        &log,
        "set to \"avatar/mine.png\" by the application",
    )
    .await?;
    world
        .execute(&format!(
            "UPDATE images SET path = 'avatar/mine.png' WHERE id = {}",
            row.id
        ))
        .await?;
    assert_eq!(
        world.run_checker(&log).await?.violations,
        Vec::<String>::new()
    );
    Ok(())
}

#[tokio::test]
async fn an_object_of_the_application_that_was_overwritten() -> Result<()> {
    let world = migrated_world().await?;
    let row = world.some_row();
    let at = destination_object(&new_path(row));
    let deed = ApplicationWrite::Replaced {
        path: at.key.clone(),
        sha256: "mine".to_owned(),
    };
    let log = WriteLog {
        rows: [(row.id.clone(), deed)].into(),
        objects: [(at, "mine".to_owned())].into(),
    };
    let verdict = world.run_checker(&log).await?;
    assert_eq!(
        (verdict.lost_application_writes, verdict.overwritten_objects),
        (1, 1)
    );
    assert_eq!(verdict.violations.len(), 2, "{:#?}", verdict.violations);
    Ok(())
}

#[tokio::test]
async fn a_deleted_row_that_came_back() -> Result<()> {
    let world = migrated_world().await?;
    let log = WriteLog {
        rows: [(world.some_row().id.clone(), ApplicationWrite::Deleted)].into(),
        ..WriteLog::default()
    };
    assert_eq!(world.run_checker(&log).await?.lost_application_writes, 1);
    assert_finds(&world, &log, "now back").await
}

#[tokio::test]
async fn a_row_that_vanished() -> Result<()> {
    let world = migrated_world().await?;
    world
        .execute(&format!(
            "DELETE FROM images WHERE id = {}",
            world.some_row().id
        ))
        .await?;
    assert_finds(&world, &WriteLog::default(), "the row is gone").await
}

#[tokio::test]
async fn a_row_that_moved_without_evidence() -> Result<()> {
    let world = migrated_world().await?;
    let id = &world.some_row().id;
    world
        .execute(&format!(
            "DELETE FROM bucket_brigade.moves WHERE row_id = '{id}';
             UPDATE bucket_brigade.counters SET moved = moved - 1"
        ))
        .await?;
    assert_finds(
        &world,
        &WriteLog::default(),
        "neither moved nor changed nor failed",
    )
    .await
}

#[tokio::test]
async fn a_row_that_is_moved_and_failed() -> Result<()> {
    let world = migrated_world().await?;
    let id = &world.some_row().id;
    world
        .execute(&format!(
            "INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
                 VALUES (1, '{id}', 'x', 'SlowDown', 'slow', false);
             UPDATE bucket_brigade.counters SET failed = failed + 1"
        ))
        .await?;
    assert_finds(&world, &WriteLog::default(), "moved and failed").await
}

#[tokio::test]
async fn a_change_without_a_write() -> Result<()> {
    let world = migrated_world().await?;
    let row = world.some_row();
    world
        .execute(&format!(
            "DELETE FROM bucket_brigade.moves WHERE row_id = '{0}';
             INSERT INTO bucket_brigade.changes (run_id, row_id, old_path) VALUES (1, '{0}', 'x');
             UPDATE bucket_brigade.counters SET moved = moved - 1, changed = changed + 1",
            row.id
        ))
        .await?;
    assert_finds(&world, &WriteLog::default(), "was never changed").await
}

#[tokio::test]
async fn evidence_of_another_path() -> Result<()> {
    let world = migrated_world().await?;
    let id = &world.some_row().id;
    world
        .execute(&format!(
            "UPDATE bucket_brigade.moves SET new_path = 'avatar/x' WHERE row_id = '{id}'"
        ))
        .await?;
    assert_finds(&world, &WriteLog::default(), "the ledger has a move").await
}

#[tokio::test]
async fn counters_that_do_not_add_up() -> Result<()> {
    let world = migrated_world().await?;
    world
        .execute("UPDATE bucket_brigade.counters SET moved = moved + 1")
        .await?;
    assert_finds(
        &world,
        &WriteLog::default(),
        "the counters say 58 moved, the table has 57",
    )
    .await
}

#[tokio::test]
async fn a_row_outside_the_prefix_that_was_touched() -> Result<()> {
    let world = migrated_world().await?;
    world
        .execute("UPDATE images SET path = 'logo/b.png' WHERE path = 'logo/a.png'")
        .await?;
    assert_finds(&world, &WriteLog::default(), "outside the prefix").await
}
