//! A small seeded application, and a migration done by hand.

use std::sync::Arc;

use anyhow::Result;
use bucket_brigade_testbed::application::Application;
use bucket_brigade_testbed::checker::{CheckReport, check_invariants};
use bucket_brigade_testbed::cloud::{Cloud, CloudOptions};
use bucket_brigade_testbed::postgres::Cluster;
use bucket_brigade_testbed::seed::{
    SeedOptions, SeededRow, SeededRowKind, SeededRows, seed_images,
};
use bucket_brigade_testbed::traffic::WriteLog;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{AssertSqlSafe, PgPool};

/// The steps by which the feeder creates the ledger: all of them, in their order.
const MIGRATIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../common/migrations");

pub(crate) struct TestWorld {
    pub(crate) application: Application,
    pub(crate) seeded: Arc<SeededRows>,
    pub(crate) pool: PgPool,
    pub(crate) cloud: Cloud,
}

impl TestWorld {
    pub(crate) async fn new(images: usize) -> Result<Self> {
        Self::with_seed(&SeedOptions {
            largest_bytes: 4096,
            ..SeedOptions::new(images)
        })
        .await
    }

    pub(crate) async fn with_seed(images: &SeedOptions) -> Result<Self> {
        let cloud = Cloud::start(CloudOptions::default())?;
        let database_url = Cluster::shared().await.create_database().await?;
        let application = Application::new(&cloud, database_url);
        let seeded = Arc::new(seed_images(&application, images).await?);
        let pool = application.connect_pool(2).await?;
        Ok(Self {
            application,
            seeded,
            pool,
            cloud,
        })
    }

    pub(crate) async fn execute(&self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Moves every row that can be moved, and writes the ledger as consumers would.
    pub(crate) async fn migrate_rows(&self) -> Result<()> {
        self.execute("CREATE SCHEMA bucket_brigade").await?;
        let steps = std::fs::read_dir(MIGRATIONS)?.map(|step| Ok(step?.path()));
        let mut steps = steps.collect::<Result<Vec<_>>>()?;
        steps.sort();
        for step in steps {
            self.execute(&std::fs::read_to_string(step)?).await?;
        }
        self.execute(
            "INSERT INTO bucket_brigade.run (images_table, id_column, path_column, old_prefix, new_prefix,
                 source_bucket, source_key_prefix, destination_bucket, destination_key_prefix, name)
             VALUES ('images', 'id', 'path', 'image/', 'avatar/', 'images-old', 'image/', 'images-new', 'avatar/', 'images.path')",
        )
        .await?;
        for row in self.seeded.rows_of_kind(SeededRowKind::ToMove) {
            self.copy(row).await?;
        }
        self.execute(
            "INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
                 SELECT 1, id::text, path, 'avatar/' || substr(path, 7), 'etag', 'hand'
                 FROM images WHERE path LIKE 'image/%' AND path NOT LIKE 'image/missing-%';
             INSERT INTO bucket_brigade.failures (run_id, row_id, path, code, message, permanent)
                 SELECT 1, id::text, path, 'NoSuchKey', 'gone', true FROM images WHERE path LIKE 'image/missing-%';
             UPDATE images SET path = m.new_path FROM bucket_brigade.moves m WHERE m.row_id = images.id::text;
             INSERT INTO bucket_brigade.counters (run_id, worker, moved, failed)
                 SELECT 1, 'hand', (SELECT count(*) FROM bucket_brigade.moves),
                        (SELECT count(*) FROM bucket_brigade.failures);",
        )
        .await
    }

    pub(crate) async fn copy(&self, row: &SeededRow) -> Result<()> {
        let source = utf8_percent_encode(&row.path, NON_ALPHANUMERIC);
        let copy = self
            .application
            .s3
            .copy_object()
            .copy_source(format!("images-old/{source}"));
        copy.bucket("images-new").key(new_path(row)).send().await?;
        Ok(())
    }

    pub(crate) async fn run_checker(&self, log: &WriteLog) -> Result<CheckReport> {
        check_invariants(&self.application, &self.seeded, log).await
    }

    /// The first row to move that shares its path with no other.
    #[expect(clippy::expect_used, reason = "a helper of tests")]
    pub(crate) fn some_row(&self) -> &SeededRow {
        self.seeded
            .rows_of_kind(SeededRowKind::ToMove)
            .find(|row| !row.shared)
            .expect("rows to move")
    }
}

pub(crate) fn new_path(row: &SeededRow) -> String {
    row.path.replacen("image/", "avatar/", 1)
}
