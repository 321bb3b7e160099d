//! What the application does while its images move: users look at pictures, replace and delete them.

mod active_rows;
mod log;
mod reader;
mod writer;

pub use active_rows::ActiveRows;
pub use log::{ApplicationWrite, WriteLog};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::application::{Application, ObjectProperties, sha256_hex};
use crate::seed::{SeededRow, SeededRowKind, SeededRows};
use log::TrafficJournal;

/// So many that slow answers do not keep the rate down.
const READER_COUNT: u32 = 48;

/// How busy the application is.
#[derive(Debug, Clone)]
pub struct TrafficRates {
    /// Pictures read each second, by all readers together.
    pub reads_per_second: f64,
    /// Pictures replaced or deleted each second.
    pub writes_per_second: f64,
    /// How many pictures are replaced or deleted, unless [`Traffic::allow_writes`] raises it.
    pub max_writes: usize,
    /// The share of writes that delete the row.
    pub delete_share: f64,
    /// The share of replacements stored under the very key the copy would take.
    pub same_key_share: f64,
    /// Writes go to these rows alone, where they are given.
    pub active_rows: Option<Arc<ActiveRows>>,
    /// Rows that are never written.
    pub excluded_rows: BTreeSet<String>,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Default for TrafficRates {
    fn default() -> Self {
        Self {
            reads_per_second: 120.0,
            writes_per_second: 20.0,
            max_writes: 100,
            delete_share: 0.2,
            same_key_share: 0.5,
            active_rows: None,
            excluded_rows: BTreeSet::new(),
            seed: 2,
        }
    }
}

/// What the traffic did and found.
#[derive(Debug, Clone, Default)]
pub struct TrafficReport {
    pub reads: u64,
    /// Reads of a path that named no object, or one with bytes the row never had.
    pub broken_reads: u64,
    /// Reads that got no answer: the database or the store was down.
    pub read_errors: u64,
    pub application_writes: u64,
    pub deletes: u64,
    /// Writes given up because the store or the database refused them.
    pub write_errors: u64,
    /// Each broken read, described.
    pub broken_read_details: Vec<String>,
    pub log: WriteLog,
}

/// Running traffic; it stops when this is dropped.
pub struct Traffic {
    journal: Arc<TrafficJournal>,
    max_writes: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

#[derive(Clone)]
struct TrafficContext {
    application: Application,
    pool: sqlx::PgPool,
    seeded: Arc<SeededRows>,
    journal: Arc<TrafficJournal>,
    stop: watch::Receiver<bool>,
}

impl Traffic {
    /// Starts the readers and the writer on the rows of `seeded`.
    pub async fn start(
        application: &Application,
        seeded: Arc<SeededRows>,
        rates: &TrafficRates,
    ) -> Result<Self> {
        let journal = Arc::new(TrafficJournal::new(&seeded));
        let (stop, stopped) = watch::channel(false);
        let pool = application.connect_pool(READER_COUNT + 1).await?;
        let application = application.clone();
        let shift = TrafficContext {
            application,
            pool,
            seeded,
            journal: Arc::clone(&journal),
            stop: stopped,
        };
        let mut tasks = JoinSet::new();
        for reader in 0..READER_COUNT {
            let pause = tick_interval(rates.reads_per_second / f64::from(READER_COUNT));
            tasks.spawn(reader::run_reader(
                shift.clone(),
                pause,
                rates.seed + u64::from(reader),
            ));
        }
        let most_writes = Arc::new(AtomicUsize::new(rates.max_writes));
        tasks.spawn(writer::run_writer(
            shift,
            rates.clone(),
            Arc::clone(&most_writes),
        ));
        Ok(Self {
            journal,
            max_writes: most_writes,
            stop,
            tasks,
        })
    }

    /// Allows `most` writes since the start: who raises it bit by bit spreads the writes over the
    /// migration, however long that takes.
    pub fn allow_writes(&self, most: usize) {
        self.max_writes.store(most, Ordering::Relaxed);
    }

    /// The reads and the broken reads so far.
    pub fn read_counts(&self) -> (u64, u64) {
        self.journal.read_counts()
    }

    /// The pictures replaced and the rows deleted so far.
    pub fn write_count(&self) -> u64 {
        self.journal.write_count()
    }

    pub fn write_log(&self) -> WriteLog {
        self.journal.report().log
    }

    /// Uploads a picture that a row has named in vain until now. Returns the row as if it had been seeded so.
    pub async fn upload_missing(
        &self,
        application: &Application,
        row: &SeededRow,
        bytes: Vec<u8>,
    ) -> Result<SeededRow> {
        let properties = ObjectProperties {
            content_type: Some("image/png".to_owned()),
            ..ObjectProperties::default()
        };
        let sha256 = sha256_hex(&bytes);
        self.journal.allow_picture(&row.id, &sha256);
        let at = application.location_of(&row.path);
        application.put_object(&at, bytes, &properties).await?;
        Ok(SeededRow {
            kind: SeededRowKind::ToMove,
            sha256,
            properties,
            ..row.clone()
        })
    }

    /// Ends the traffic once every read and write under way is finished.
    pub async fn stop(mut self) -> TrafficReport {
        let _ = self.stop.send(true);
        while self.tasks.join_next().await.is_some() {}
        self.journal.report()
    }
}

impl TrafficContext {
    /// Waits for the next tick; false when the traffic is to stop.
    async fn wait_for_tick(&mut self, ticks: &mut tokio::time::Interval) -> bool {
        tokio::select! {
            _ = ticks.tick() => !*self.stop.borrow(),
            _ = self.stop.changed() => false,
        }
    }
}

/// The time between two events; a day where there are to be none.
fn tick_interval(per_second: f64) -> Duration {
    Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::from_hours(24))
}
