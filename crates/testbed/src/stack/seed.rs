//! The images to move. The cloud forgets everything when it ends and Postgres does not: whenever the
//! cloud is new, table and ledger are made anew.

use anyhow::{Result, bail};
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgPool;

use super::surroundings::{QUEUE, Surroundings};
use crate::cloud::CreateQueue;
use crate::run::tell;
use crate::seed::seed;

/// What marks a table as ours to drop.
const MARK: &str = "made by the testbed, which may drop it";

pub(super) async fn make(surroundings: &Surroundings) -> Result<bool> {
    // The queue is made last: where it is, all else is.
    if surroundings.queue_url(QUEUE).await?.is_some() {
        tell("The images are there already.");
        return Ok(true);
    }
    let Surroundings {
        application,
        services,
        seed: images,
    } = surroundings;
    let pool = application.pool(1).await?;
    forget(&pool, &application.table.name).await?;
    tell(&format!("Seeding {} images …", images.images));
    seed(application, images).await?;
    execute(
        &pool,
        format!("COMMENT ON TABLE {} IS '{MARK}'", application.table.name),
    )
    .await?;
    pool.close().await;
    services.create_queue(QUEUE, CreateQueue::default()).await?;
    tell("Seeded.");
    Ok(true)
}

/// Drops table and ledger of an earlier cloud, and nobody else's.
async fn forget(pool: &PgPool, table: &str) -> Result<()> {
    let (exists, is_ours): (bool, bool) = sqlx::query_as(
        "SELECT to_regclass($1) IS NOT NULL, \
                coalesce(obj_description(to_regclass($1), 'pg_class') = $2, false)",
    )
    .bind(table)
    .bind(MARK)
    .fetch_one(pool)
    .await?;
    if exists && !is_ours {
        bail!(
            "there is a table '{table}' that is not the testbed's: give it a database of its own"
        );
    }
    if exists {
        execute(pool, format!("DROP TABLE {table}")).await?;
        execute(
            pool,
            "DROP SCHEMA IF EXISTS bucket_brigade CASCADE".to_owned(),
        )
        .await?;
    }
    Ok(())
}

async fn execute(pool: &PgPool, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await?;
    Ok(())
}
