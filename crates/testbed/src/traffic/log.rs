//! What the application wrote, and what its readers found.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::TrafficReport;
use crate::application::ObjectLocation;
use crate::seed::SeededRows;

/// What the application did last to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplicationWrite {
    /// It gave it a new picture.
    Replaced {
        /// The row's new path.
        path: String,
        /// The SHA-256 of the picture.
        sha256: String,
    },
    Deleted,
}

/// What the application wrote. Later writes replace earlier ones.
#[derive(Debug, Clone, Default)]
pub struct WriteLog {
    /// The last deed to each row.
    pub rows: BTreeMap<String, ApplicationWrite>,
    /// The last bytes put at each place, as SHA-256.
    pub objects: BTreeMap<ObjectLocation, String>,
}

/// Shared between readers and writers.
pub(super) struct TrafficJournal(Mutex<JournalState>);

struct JournalState {
    report: TrafficReport,
    /// All that each row may show: what was seeded and what the application wrote or is writing.
    allowed_pictures: BTreeMap<String, BTreeSet<String>>,
}

impl TrafficJournal {
    pub(super) fn new(seeded: &SeededRows) -> Self {
        let rows = seeded.rows.iter().filter(|row| !row.sha256.is_empty());
        let shown = rows
            .map(|row| (row.id.clone(), BTreeSet::from([row.sha256.clone()])))
            .collect();
        Self(Mutex::new(JournalState {
            report: TrafficReport::default(),
            allowed_pictures: shown,
        }))
    }

    pub(super) fn report(&self) -> TrafficReport {
        self.0.lock().report.clone()
    }

    /// The reads and the broken reads so far.
    pub(super) fn read_counts(&self) -> (u64, u64) {
        let report = &self.0.lock().report;
        (report.reads, report.broken_reads)
    }

    /// The pictures replaced and the rows deleted so far.
    pub(super) fn write_count(&self) -> u64 {
        let report = &self.0.lock().report;
        report.application_writes + report.deletes
    }

    /// Called before the row can name it.
    pub(super) fn allow_picture(&self, id: &str, sha256: &str) {
        self.0
            .lock()
            .allowed_pictures
            .entry(id.to_owned())
            .or_default()
            .insert(sha256.to_owned());
    }

    pub(super) fn is_allowed_picture(&self, id: &str, sha256: &str) -> bool {
        self.0
            .lock()
            .allowed_pictures
            .get(id)
            .is_some_and(|shown| shown.contains(sha256))
    }

    pub(super) fn record_object(&self, at: ObjectLocation, sha256: String) {
        self.0.lock().report.log.objects.insert(at, sha256);
    }

    pub(super) fn record_replaced(&self, id: &str, path: String, sha256: String) {
        let report = &mut self.0.lock().report;
        report.application_writes += 1;
        report
            .log
            .rows
            .insert(id.to_owned(), ApplicationWrite::Replaced { path, sha256 });
    }

    pub(super) fn record_deleted(&self, id: &str) {
        let report = &mut self.0.lock().report;
        report.deletes += 1;
        report
            .log
            .rows
            .insert(id.to_owned(), ApplicationWrite::Deleted);
    }

    pub(super) fn record_write_error(&self) {
        self.0.lock().report.write_errors += 1;
    }

    pub(super) fn record_read(&self) {
        self.0.lock().report.reads += 1;
    }

    pub(super) fn record_read_error(&self) {
        self.0.lock().report.read_errors += 1;
    }

    pub(super) fn record_broken_read(&self, what: String) {
        let report = &mut self.0.lock().report;
        report.broken_reads += 1;
        report.broken_read_details.push(what);
    }
}
