//! The images to move. The cloud forgets everything when it ends and Postgres does not: whenever the
//! cloud is new, table and ledger are made anew.

use anyhow::{Result, bail};
use sqlx::postgres::PgPool;

use super::environment::{QUEUE_NAME, StackEnvironment};
use super::table_mark::{self, TableMark, execute_sql};
use crate::cloud::CreateQueueOptions;
use crate::run::print_status;
use crate::seed::seed_images;

pub(super) async fn seed_stack(surroundings: &StackEnvironment) -> Result<bool> {
    // The queue is made last: where it is, all else is.
    if surroundings.queue_url(QUEUE_NAME).await?.is_some() {
        print_status("The images are there already; to begin anew: docker-compose down --volumes");
        return Ok(true);
    }
    let StackEnvironment {
        application,
        services,
        seed: images,
    } = surroundings;
    let pool = application.connect_pool(1).await?;
    let table = &application.table.name;
    drop_seeded_tables(&pool, table).await?;
    print_status(&format!("Seeding {} images …", images.images));
    seed_images(application, images).await?;
    table_mark::write_mark(&pool, table, TableMark::Seeded).await?;
    pool.close().await;
    services
        .create_queue(QUEUE_NAME, CreateQueueOptions::default())
        .await?;
    print_status(
        "Seeded. Now feeder, consumers and application work: watch them at http://127.0.0.1:9101 (or what docker-compose port feeder 9101 says)",
    );
    Ok(true)
}

/// Drops table and ledger of an earlier cloud, and no other's.
async fn drop_seeded_tables(pool: &PgPool, table: &str) -> Result<()> {
    let exists: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(table)
        .fetch_one(pool)
        .await?;
    let is_ours = exists && table_mark::read_mark(pool, table).await?.is_some();
    if exists && !is_ours {
        bail!(
            "there is a table '{table}' that is not the testbed's: give it a database of its own, or begin anew with docker-compose down --volumes"
        );
    }
    if exists {
        execute_sql(pool, format!("DROP TABLE {table}")).await?;
        execute_sql(
            pool,
            "DROP SCHEMA IF EXISTS bucket_brigade CASCADE".to_owned(),
        )
        .await?;
    }
    Ok(())
}
