//! The images to move. The cloud forgets everything when it ends and Postgres does not: whenever the
//! cloud is new, table and ledger are made anew.

use anyhow::{Result, bail};
use sqlx::postgres::PgPool;

use super::mark::{self, Mark, execute};
use super::surroundings::{QUEUE, Surroundings};
use crate::cloud::CreateQueue;
use crate::run::tell;
use crate::seed::seed;

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
    let table = &application.table.name;
    forget(&pool, table).await?;
    tell(&format!("Seeding {} images …", images.images));
    seed(application, images).await?;
    mark::set(&pool, table, Mark::Seeded).await?;
    pool.close().await;
    services.create_queue(QUEUE, CreateQueue::default()).await?;
    tell("Seeded.");
    Ok(true)
}

/// Drops table and ledger of an earlier cloud, and nobody else's.
async fn forget(pool: &PgPool, table: &str) -> Result<()> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .fetch_one(pool)
        .await?;
    let is_ours = exists && mark::of(pool, table).await?.is_some();
    if exists && !is_ours {
        bail!(
            "there is a table '{table}' that is not the testbed's: give it a database of its own, or begin anew with docker-compose down --volumes"
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
