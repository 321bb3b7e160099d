//! Seeding: what is promised is there, and the same seed makes the same.

use std::collections::BTreeSet;
use std::io::Cursor;

use anyhow::Result;
use bucket_brigade_testbed::application::{Application, ApplicationIdType, ImagesTable};
use bucket_brigade_testbed::cloud::{Cloud, CloudOptions};
use bucket_brigade_testbed::picture::random_png;
use bucket_brigade_testbed::postgres::Cluster;
use bucket_brigade_testbed::seed::{
    SeedOptions, SeededRow, SeededRowKind, expected_rows, seed_images,
};

use crate::world::TestWorld;

#[tokio::test]
async fn all_kinds_of_rows_with_their_objects() -> Result<()> {
    let world = TestWorld::new(200).await?;
    let seeded = &world.seeded;
    let kinds = [
        SeededRowKind::ToMove,
        SeededRowKind::AlreadyMoved,
        SeededRowKind::Missing,
        SeededRowKind::Outside,
    ]
    .map(|kind| seeded.count_kind(kind));
    assert_eq!(kinds, [195, 4, 1, 9]);
    assert_eq!(seeded.rows.iter().filter(|row| row.shared).count(), 4);
    let paths = world.application.read_paths(&world.pool).await?;
    for row in &seeded.rows {
        assert_eq!(paths.get(&row.id), Some(&row.path));
        let found = world
            .application
            .get_tagged_object(&world.application.location_of(&row.path))
            .await?;
        let found = found.map(|object| (object.sha256, object.properties));
        let expected = (row.kind != SeededRowKind::Missing)
            .then(|| (row.sha256.clone(), row.properties.clone()));
        assert_eq!(found, expected, "{:?}", row.path);
    }
    let contents: BTreeSet<&str> = seeded.rows.iter().map(|row| row.sha256.as_str()).collect();
    // Two shared pictures are seen twice; the missing one is empty.
    assert_eq!(contents.len(), seeded.rows.len() - 2);
    Ok(())
}

#[tokio::test]
async fn another_process_knows_what_was_seeded() -> Result<()> {
    let images = SeedOptions {
        largest_bytes: 4096,
        seed: 3,
        ..SeedOptions::new(50)
    };
    let world = TestWorld::with_seed(&images).await?;
    let known = expected_rows(&world.application, &images)?;
    let result = |rows: &[SeededRow]| format!("{rows:?}");
    assert_eq!(result(&known.rows), result(&world.seeded.rows));
    Ok(())
}

#[tokio::test]
async fn every_type_of_id() -> Result<()> {
    for id_type in [
        ApplicationIdType::BigInt,
        ApplicationIdType::Int,
        ApplicationIdType::Uuid,
        ApplicationIdType::Text,
    ] {
        let cloud = Cloud::start(CloudOptions::default())?;
        let url = Cluster::shared().await.create_database().await?;
        let table = ImagesTable {
            name: "\"Pictures\"".to_owned(),
            id_column: "key".to_owned(),
            ..ImagesTable::default()
        };
        let application = Application {
            table: ImagesTable { id_type, ..table },
            ..Application::new(&cloud, url)
        };
        let seeded = seed_images(&application, &SeedOptions::with_plain_keys(10)).await?;
        let pool = application.connect_pool(1).await?;
        for row in &seeded.rows {
            assert_eq!(
                application.read_path(&pool, &row.id).await?.as_ref(),
                Some(&row.path)
            );
        }
    }
    Ok(())
}

#[test]
fn pictures_are_valid_pngs_within_their_sizes() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut sizes = BTreeSet::new();
    for _ in 0..200 {
        let bytes = random_png(&mut random, 64 * 1024).expect("a picture");
        let mut reader = png::Decoder::new(Cursor::new(&bytes))
            .read_info()
            .expect("a header");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        reader.next_frame(&mut pixels).expect("pixels");
        sizes.insert(bytes.len());
    }
    assert!(
        *sizes.first().unwrap() >= 800 && *sizes.first().unwrap() < 2_000,
        "{:?}",
        sizes.first()
    );
    assert!(
        *sizes.last().unwrap() > 50_000 && *sizes.last().unwrap() <= 65_536,
        "{:?}",
        sizes.last()
    );
}

#[test]
fn the_same_dice_make_the_same_picture() {
    let one = || random_png(&mut fastrand::Rng::with_seed(9), 4096).expect("a picture");
    assert_eq!(one(), one());
}
