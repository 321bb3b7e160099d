//! The measurements, one file for each group of rows.

mod commands;
mod copying;
mod database;
mod feeding;
mod growing;
mod latency;
mod memory;
mod paging;
mod partitions;
mod peers;
mod scaling;
mod starting;
mod streaming;

use anyhow::Result;
use clap::ValueEnum;

use crate::results::BenchResults;
use crate::rig::BenchRig;

/// A group of rows, measured together.
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
    /// Cost from a thousand rows to ten million, and the operator's commands.
    Growing,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct MeasurementSize {
    /// Runs of each figure.
    pub rounds: usize,
    /// By what the number of rows is divided: 1 for figures to publish.
    pub divisor: u64,
    /// Whether the commands are measured at ten million rows too.
    pub ten_million_rows: bool,
}

impl MeasurementSize {
    /// So many rows, or fewer when it has to be quick.
    fn scaled_rows(self, most: u64) -> u64 {
        (most / self.divisor / 100 * 100).max(1000)
    }
}

impl RowGroup {
    /// Measures the group's rows.
    pub async fn measure(
        self,
        rig: &mut BenchRig,
        size: MeasurementSize,
        results: &mut BenchResults,
    ) -> Result<()> {
        match self {
            Self::Copying => copying::measure(rig, size, results).await,
            Self::Latency => latency::measure(rig, size, results).await,
            Self::Scaling => scaling::measure(rig, size, results).await,
            Self::Feeding => feeding::measure(rig, size, results).await,
            Self::Paging => paging::measure(rig, size, results).await,
            Self::Memory => memory::measure(rig, size, results).await,
            Self::Database => database::measure(rig, size, results).await,
            Self::Starting => starting::measure(rig, size, results).await,
            Self::Streaming => streaming::measure(rig, size, results).await,
            Self::Partitions => partitions::measure(rig, size, results).await,
            Self::Growing => growing::measure(rig, size, results).await,
        }
    }
}
