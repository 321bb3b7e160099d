//! Everything the demo runs on.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;

use super::{Arguments, report};
use crate::application::Application;
use crate::cloud::{Cloud, CreateQueue, Options, QueueDepth, QueueUrls};
use crate::postgres::Cluster;
use crate::process::settings_env;
use crate::seed::{Kind, Seed, Seeded, seed};
use crate::traffic::Rates;

/// The application replaces or deletes one in so many images.
const IMAGES_PER_WRITE: usize = 25;

pub(super) struct Stage {
    pub(super) application: Application,
    pub(super) seeded: Arc<Seeded>,
    pub(super) cloud: Cloud,
    pub(super) queue: QueueUrls,
    seed: u64,
    cluster: Cluster,
}

impl Stage {
    pub(super) async fn set_up(arguments: &Arguments) -> Result<Self> {
        report::tell("Starting a private Postgres, S3 and SQS …");
        let cluster = Cluster::start().await?;
        let database_url = cluster.create_database().await?;
        let cloud = Cloud::start(Options {
            seed: arguments.seed,
            ..Options::default()
        })?;
        let queue = cloud.create_queue("images", CreateQueue::default()).await?;
        let application = Application::new(&cloud, database_url);
        report::tell(&format!("Seeding {} images …", arguments.images));
        let images = Seed {
            seed: arguments.seed,
            ..Seed::new(arguments.images as usize)
        };
        let seeded = Arc::new(seed(&application, &images).await?);
        Ok(Self {
            application,
            seeded,
            cloud,
            queue,
            seed: arguments.seed,
            cluster,
        })
    }

    /// The rows that are to move or to fail.
    pub(super) fn to_do(&self) -> usize {
        self.seeded.count(Kind::ToMove) + self.seeded.count(Kind::Missing)
    }

    /// How many rows the application may have written once `moved` images have moved: its writes are
    /// spread over the migration, and the first ones come before it.
    pub(super) fn writes_by(&self, moved: usize) -> usize {
        let most = self.to_do().div_ceil(IMAGES_PER_WRITE);
        most.min((moved + self.to_do() / 10).div_ceil(IMAGES_PER_WRITE))
    }

    pub(super) fn rates(&self) -> Rates {
        let most_writes = self.writes_by(0);
        Rates {
            writes_per_second: 200.0,
            most_writes,
            seed: self.seed,
            ..Rates::default()
        }
    }

    pub(super) fn environment(&self, program: &str) -> Vec<(String, String)> {
        settings_env(&self.application, &self.cloud, &self.queue.url, program)
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.cluster.directory().join(format!("{name}.log"))
    }

    pub(super) async fn queue_depth(&self) -> Result<QueueDepth> {
        self.cloud.queue_depth(&self.queue.url).await
    }

    pub(super) async fn dead_letters(&self) -> Result<u64> {
        match &self.queue.dead_letter_url {
            Some(url) => Ok(self.cloud.queue_depth(url).await?.total()),
            None => Ok(0),
        }
    }

    /// Leaves everything running until Ctrl-C.
    pub(super) async fn keep(&self) {
        report::tell("\nEverything is left running. To use it from another terminal:\n");
        for (name, value) in self.environment("test") {
            report::tell(&format!("export {name}='{value}'"));
        }
        if let Some(url) = &self.queue.dead_letter_url {
            report::tell(&format!("export DEAD_LETTER_QUEUE_URL='{url}'"));
        }
        report::tell(&format!(
            "\nLogs are in {}. Ctrl-C ends it all.",
            self.cluster.directory().display()
        ));
        std::future::pending::<()>().await;
    }
}
