//! The measurements, one file for each group of rows.

mod checking;
mod commands;
mod copying;
mod database;
mod database_load;
mod feeding;
mod growth;
mod latency;
mod memory;
mod paging;
mod partitions;
mod peers;
mod snapshot;
mod starting;
mod store;
mod streaming;
mod sweeping;

use anyhow::Result;
use clap::ValueEnum;

use crate::results::BenchResults;
use crate::rig::{BenchRig, StoreAddress};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowGroup {
    /// CPU per image, images per second and requests per image, against bare loops and peers.
    Copying,
    /// Images per second when each copy takes 50 ms.
    Latency,
    /// One, two and four consumers.
    Scaling,
    /// The feeder against a bare loop.
    Feeding,
    /// A page at the beginning and at the end of ten million rows.
    Paging,
    /// Peak memory of consumer and feeder.
    Memory,
    /// Statements, the commit stage, and the application's own reads meanwhile.
    Database,
    /// Start to first copy, SIGTERM to exit.
    Starting,
    /// Images whose bytes go through the consumer, against rclone.
    Streaming,
    /// A store whose partitions serve so many copies a second each.
    Partitions,
    /// `verify` against `rclone check`.
    Checking,
    /// The consumer and tools that only copy on the store that --store names.
    Store,
    /// Cost from a thousand rows to ten million: of feeding, watching and the operator's commands.
    Growth,
}

/// What is measured, how much of it, and what came of it.
pub struct Bench {
    pub rig: BenchRig,
    pub results: BenchResults,
    pub rounds: usize,
    /// By what the number of rows is divided: 1 for figures to publish.
    pub divisor: u64,
    pub store: Option<StoreAddress>,
}

impl Bench {
    /// So many rows, or fewer when it has to be quick.
    fn scaled_rows(&self, most: u64) -> u64 {
        (most / self.divisor / 100 * 100).max(1000)
    }

    pub async fn measure(&mut self, group: RowGroup) -> Result<()> {
        match group {
            RowGroup::Copying => copying::measure(self).await,
            RowGroup::Latency => latency::measure(self).await,
            RowGroup::Scaling => latency::measure_scaling(self).await,
            RowGroup::Feeding => feeding::measure(self).await,
            RowGroup::Paging => paging::measure(self).await,
            RowGroup::Memory => memory::measure(self).await,
            RowGroup::Database => database::measure(self).await,
            RowGroup::Starting => starting::measure(self).await,
            RowGroup::Streaming => streaming::measure(self).await,
            RowGroup::Partitions => partitions::measure(self).await,
            RowGroup::Checking => checking::measure(self).await,
            RowGroup::Store => store::measure(self).await,
            RowGroup::Growth => growth::measure(self).await,
        }
    }
}
