//! What the application does while its images move: users look at pictures, replace and delete them.

mod hot;
mod log;
mod reader;
mod writer;

pub use hot::Hot;
pub use log::{Deed, Log};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::application::{Application, Properties, sha256_hex};
use crate::seed::{Kind, Row, Seeded};
use log::Journal;

/// So many that slow answers do not keep the rate down.
const READERS: u32 = 48;

/// How busy the application is.
#[derive(Debug, Clone)]
pub struct Rates {
    /// Pictures looked at each second, by all readers together.
    pub reads_per_second: f64,
    /// Pictures replaced or deleted each second.
    pub writes_per_second: f64,
    /// How many pictures are replaced or deleted, unless [`Traffic::allow_writes`] raises it.
    pub most_writes: usize,
    /// The share of writes that delete the row.
    pub deletes: f64,
    /// The share of replacements stored under the very key the copy would take.
    pub same_key: f64,
    /// Writes go to these rows alone, where they are given.
    pub hot: Option<Arc<Hot>>,
    /// Rows that nobody writes.
    pub spared: BTreeSet<String>,
    /// Where the dice start.
    pub seed: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            reads_per_second: 120.0,
            writes_per_second: 20.0,
            most_writes: 100,
            deletes: 0.2,
            same_key: 0.5,
            hot: None,
            spared: BTreeSet::new(),
            seed: 2,
        }
    }
}

/// What the traffic did and found.
#[derive(Debug, Clone, Default)]
pub struct TrafficReport {
    /// Pictures looked at.
    pub reads: u64,
    /// Reads of a path that named no object, or one with bytes the row never had.
    pub broken_reads: u64,
    /// Reads that got no answer: the database or the store was down.
    pub read_errors: u64,
    /// Pictures replaced.
    pub application_writes: u64,
    /// Rows deleted.
    pub deletes: u64,
    /// Writes given up because the store or the database refused them.
    pub write_errors: u64,
    /// Each broken read, told.
    pub broken: Vec<String>,
    /// All that was written.
    pub log: Log,
}

/// Running traffic; it stops when this is dropped.
pub struct Traffic {
    journal: Arc<Journal>,
    most_writes: Arc<AtomicUsize>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

/// What every reader and writer needs.
#[derive(Clone)]
struct Shift {
    application: Application,
    pool: sqlx::PgPool,
    seeded: Arc<Seeded>,
    journal: Arc<Journal>,
    stop: watch::Receiver<bool>,
}

impl Traffic {
    /// Starts the readers and the writer on the rows of `seeded`.
    pub async fn start(
        application: &Application,
        seeded: Arc<Seeded>,
        rates: &Rates,
    ) -> Result<Self> {
        let journal = Arc::new(Journal::new(&seeded));
        let (stop, stopped) = watch::channel(false);
        let pool = application.pool(READERS + 1).await?;
        let application = application.clone();
        let shift = Shift {
            application,
            pool,
            seeded,
            journal: Arc::clone(&journal),
            stop: stopped,
        };
        let mut tasks = JoinSet::new();
        for reader in 0..READERS {
            let pause = interval(rates.reads_per_second / f64::from(READERS));
            tasks.spawn(reader::read(
                shift.clone(),
                pause,
                rates.seed + u64::from(reader),
            ));
        }
        let most_writes = Arc::new(AtomicUsize::new(rates.most_writes));
        tasks.spawn(writer::write(
            shift,
            rates.clone(),
            Arc::clone(&most_writes),
        ));
        Ok(Self {
            journal,
            most_writes,
            stop,
            tasks,
        })
    }

    /// Allows `most` writes since the start: who raises it bit by bit spreads the writes over the
    /// migration, however long that takes.
    pub fn allow_writes(&self, most: usize) {
        self.most_writes.store(most, Ordering::Relaxed);
    }

    /// The reads and the broken reads so far.
    pub fn reads(&self) -> (u64, u64) {
        self.journal.reads()
    }

    /// The pictures replaced and the rows deleted so far.
    pub fn writes(&self) -> u64 {
        self.journal.writes()
    }

    /// What was written so far.
    pub fn log(&self) -> Log {
        self.journal.report().log
    }

    /// Uploads a picture that a row has named in vain until now. Returns the row as if it had been seeded so.
    pub async fn provide(
        &self,
        application: &Application,
        row: &Row,
        bytes: Vec<u8>,
    ) -> Result<Row> {
        let properties = Properties {
            content_type: Some("image/png".to_owned()),
            ..Properties::default()
        };
        let sha256 = sha256_hex(&bytes);
        self.journal.will_show(&row.id, &sha256);
        let at = application.locate(&row.path);
        application.put_object(&at, bytes, &properties).await?;
        Ok(Row {
            kind: Kind::ToMove,
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

impl Shift {
    /// Waits for the next tick; false when the traffic is to stop.
    async fn goes_on(&mut self, ticks: &mut tokio::time::Interval) -> bool {
        tokio::select! {
            _ = ticks.tick() => !*self.stop.borrow(),
            _ = self.stop.changed() => false,
        }
    }
}

/// The time between two events; a day where there are to be none.
fn interval(per_second: f64) -> Duration {
    Duration::try_from_secs_f64(1.0 / per_second).unwrap_or(Duration::from_hours(24))
}
