//! Images to move: rows, objects and what must become of them.

mod keys;
mod plan;

use std::collections::BTreeMap;

use anyhow::Result;
use fastrand::Rng;
use futures::{StreamExt, TryStreamExt};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use crate::application::{
    Application, ApplicationIdType, ObjectLocation, ObjectProperties, sha256_hex,
};
use crate::picture::random_png;

const MAX_CONCURRENT_UPLOADS: usize = 32;
const ROWS_PER_INSERT: usize = 5_000;

/// How many images of which kind.
#[derive(Debug, Clone)]
pub struct SeedOptions {
    /// The rows in scope: those to move, those without an object and those already moved.
    pub images: usize,
    /// How many of them name an object that does not exist.
    pub missing: usize,
    /// How many of them have moved before the migration starts.
    pub already_moved: usize,
    /// How many of them share the path of another.
    pub shared: usize,
    /// Whether some have odd keys, as far as there are rows for them.
    pub odd_keys: bool,
    /// Whether some have tags.
    pub has_tags: bool,
    /// Whether there are also rows outside the prefix.
    pub outside: bool,
    /// The largest picture, in bytes.
    pub largest_bytes: u32,
    /// Seed of the random numbers: the same seed makes the same images.
    pub seed: u64,
}

impl SeedOptions {
    /// A mixture of all kinds.
    pub fn new(images: usize) -> Self {
        Self {
            images,
            missing: images.div_ceil(200),
            already_moved: images.div_ceil(50),
            shared: images / 100,
            odd_keys: true,
            has_tags: true,
            outside: true,
            largest_bytes: 64 * 1024,
            seed: 1,
        }
    }

    /// Nothing but images to move with plain keys.
    pub fn with_plain_keys(images: usize) -> Self {
        let nothing = Self {
            missing: 0,
            already_moved: 0,
            shared: 0,
            ..Self::new(images)
        };
        Self {
            odd_keys: false,
            outside: false,
            ..nothing
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SeededRowKind {
    /// It has the old prefix and an object.
    ToMove,
    /// It has the new prefix and an object there.
    AlreadyMoved,
    /// It has the old prefix and no object.
    Missing,
    /// It has neither prefix.
    Outside,
}

#[derive(Debug, Clone)]
pub struct SeededRow {
    /// Its id, as text.
    pub id: String,
    pub path: String,
    /// What it is there for.
    pub kind: SeededRowKind,
    /// Whether another row has the same path.
    pub shared: bool,
    /// The SHA-256 of its object in hex; empty for [`Kind::Missing`].
    pub sha256: String,
    /// What else its object is.
    pub properties: ObjectProperties,
    /// Whether its image has companions, where the application has any: with the image's properties, and with the
    /// bytes that [`companion_bytes`] gives.
    pub has_companions: bool,
}

/// What a companion is made of, by its place in the list of them.
pub(crate) fn companion_bytes(path: &str, number: usize) -> Vec<u8> {
    let object = path.split(['?', '#']).next().unwrap_or_default();
    format!("companion {number} of {object}").into_bytes()
}

#[derive(Debug, Clone, Default)]
pub struct SeededRows {
    /// The rows, in the order of their ids as numbers.
    pub rows: Vec<SeededRow>,
}

impl SeededRows {
    pub fn rows_of_kind(&self, kind: SeededRowKind) -> impl Iterator<Item = &SeededRow> {
        self.rows.iter().filter(move |row| row.kind == kind)
    }

    /// How many rows are of this kind.
    pub fn count_kind(&self, kind: SeededRowKind) -> usize {
        self.rows_of_kind(kind).count()
    }
}

/// Creates the application's buckets and table and fills them.
pub async fn seed_images(application: &Application, seed: &SeedOptions) -> Result<SeededRows> {
    application.create_buckets().await?;
    let mut random = Rng::with_seed(seed.seed);
    let mut rows = plan::plan_rows(application, seed, &mut random);
    upload_pictures(application, seed, &mut rows).await?;
    let pool = application.connect_pool(2).await?;
    application.create_table(&pool).await?;
    insert_rows(application, &pool, &rows).await?;
    pool.close().await;
    Ok(SeededRows { rows })
}

/// The same for a further column of a table that was seeded with the same options: the rows are the same.
pub async fn seed_further_column(
    application: &Application,
    seed: &SeedOptions,
) -> Result<SeededRows> {
    application.create_buckets().await?;
    let mut rows = plan::plan_rows(application, seed, &mut Rng::with_seed(seed.seed));
    upload_pictures(application, seed, &mut rows).await?;
    let pool = application.connect_pool(1).await?;
    let (table, ids) = (&application.table, rows.iter().map(|row| &*row.id));
    let (name, id, path) = (&table.name, &table.id_column, &table.path_column);
    let add = format!("ALTER TABLE {name} ADD COLUMN {path} text NOT NULL DEFAULT ''");
    sqlx::query(AssertSqlSafe(add)).execute(&pool).await?;
    let update = format!(
        "UPDATE {name} t SET {path} = r.path FROM unnest($1::text[], $2::text[]) AS r (id, path) \
         WHERE t.{id} = r.id::{}",
        table.id_type.sql_name()
    );
    sqlx::query(AssertSqlSafe(update))
        .bind(ids.collect::<Vec<_>>())
        .bind(rows.iter().map(|row| &*row.path).collect::<Vec<_>>())
        .execute(&pool)
        .await?;
    pool.close().await;
    Ok(SeededRows { rows })
}

/// What [`seed`] makes of the same arguments, without making it: for who checks from another process.
pub fn expected_rows(application: &Application, seed: &SeedOptions) -> Result<SeededRows> {
    let mut rows = plan::plan_rows(application, seed, &mut Rng::with_seed(seed.seed));
    let hashes = distinct_pictures(application, &rows)
        .into_iter()
        .map(|(at, (number, _))| Ok((at, sha256_hex(&picture_bytes(seed, number)?))));
    let hashes = hashes.collect::<Result<_>>()?;
    set_hashes(application, &mut rows, &hashes);
    Ok(SeededRows { rows })
}

async fn upload_pictures(
    application: &Application,
    seed: &SeedOptions,
    rows: &mut [SeededRow],
) -> Result<()> {
    let pictures = distinct_pictures(application, rows).into_iter();
    let uploads = pictures.map(|(at, (number, properties))| async move {
        let bytes = picture_bytes(seed, number)?;
        let sha256 = application.put_object(&at, bytes, &properties).await?;
        anyhow::Ok((at, sha256))
    });
    let hashes: BTreeMap<ObjectLocation, String> = futures::stream::iter(uploads)
        .buffer_unordered(MAX_CONCURRENT_UPLOADS)
        .try_collect()
        .await?;
    set_hashes(application, rows, &hashes);
    upload_companions(application, rows).await
}

async fn upload_companions(application: &Application, rows: &[SeededRow]) -> Result<()> {
    let with = rows.iter().filter(|row| row.has_companions);
    let uploads = with.flat_map(|row| {
        let places = application.companion_locations(&row.path).into_iter();
        places.enumerate().map(async move |(number, at)| {
            let bytes = companion_bytes(&row.path, number);
            application
                .put_object(&at, bytes, &row.properties)
                .await
                .map(drop)
        })
    });
    futures::stream::iter(uploads)
        .buffer_unordered(MAX_CONCURRENT_UPLOADS)
        .try_collect()
        .await
}

/// Each picture once, with its number and properties; rows may share one.
fn distinct_pictures(
    application: &Application,
    rows: &[SeededRow],
) -> BTreeMap<ObjectLocation, (u64, ObjectProperties)> {
    let mut pictures = BTreeMap::new();
    for (number, row) in (0..)
        .zip(rows)
        .filter(|(_, row)| row.kind != SeededRowKind::Missing)
    {
        pictures
            .entry(application.location_of(&row.path))
            .or_insert((number, row.properties.clone()));
    }
    pictures
}

/// A picture by its number. Its random numbers are its own, so that the order of the uploads does not matter.
fn picture_bytes(seed: &SeedOptions, number: u64) -> Result<Vec<u8>> {
    let start = seed.seed.wrapping_mul(1_000_003).wrapping_add(number);
    random_png(&mut Rng::with_seed(start), seed.largest_bytes)
}

fn set_hashes(
    application: &Application,
    rows: &mut [SeededRow],
    hashes: &BTreeMap<ObjectLocation, String>,
) {
    for row in rows
        .iter_mut()
        .filter(|row| row.kind != SeededRowKind::Missing)
    {
        row.sha256 = hashes
            .get(&application.location_of(&row.path))
            .cloned()
            .unwrap_or_default();
    }
}

async fn insert_rows(application: &Application, pool: &PgPool, rows: &[SeededRow]) -> Result<()> {
    let table = &application.table;
    let (name, id, path, id_type) = (
        &table.name,
        &table.id_column,
        &table.path_column,
        table.id_type.sql_name(),
    );
    let sql = format!(
        "INSERT INTO {name} ({id}, {path}) SELECT r.id::{id_type}, r.path \
         FROM unnest($1::text[], $2::text[]) AS r (id, path)"
    );
    for rows in rows.chunks(ROWS_PER_INSERT) {
        let (ids, paths): (Vec<&str>, Vec<&str>) = rows
            .iter()
            .map(|row| (row.id.as_str(), row.path.as_str()))
            .unzip();
        sqlx::query(AssertSqlSafe(sql.clone()))
            .bind(ids)
            .bind(paths)
            .execute(pool)
            .await?;
    }
    restart_identity(application, pool).await
}

/// Lets rows that are inserted later without an id get one that is free.
async fn restart_identity(application: &Application, pool: &PgPool) -> Result<()> {
    let table = &application.table;
    if !matches!(
        table.id_type,
        ApplicationIdType::BigInt | ApplicationIdType::Int
    ) {
        return Ok(());
    }
    let (name, id) = (&table.name, &table.id_column);
    let largest = format!("SELECT coalesce(max({id}), 0)::bigint FROM {name}");
    let largest: i64 = sqlx::query_scalar(AssertSqlSafe(largest))
        .fetch_one(pool)
        .await?;
    let restart = format!(
        "ALTER TABLE {name} ALTER COLUMN {id} RESTART WITH {}",
        largest + 1
    );
    sqlx::query(AssertSqlSafe(restart)).execute(pool).await?;
    Ok(())
}
