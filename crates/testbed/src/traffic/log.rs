//! What the application wrote, and what its readers found.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;

use super::TrafficReport;
use crate::application::Location;
use crate::seed::Seeded;

/// What the application did last to a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// It gave it a new picture.
    Replaced {
        /// The row's new path.
        path: String,
        /// The SHA-256 of the picture.
        sha256: String,
    },
    /// It deleted it.
    Deleted,
}

/// What the application wrote. Later writes replace earlier ones.
#[derive(Debug, Clone, Default)]
pub struct Log {
    /// The last deed to each row.
    pub rows: BTreeMap<String, Deed>,
    /// The last bytes put at each place, as SHA-256.
    pub objects: BTreeMap<Location, String>,
}

/// Shared between readers and writers.
pub(super) struct Journal(Mutex<Pages>);

struct Pages {
    report: TrafficReport,
    /// All that each row may show: what was seeded and what the application wrote or is writing.
    shown: BTreeMap<String, BTreeSet<String>>,
}

impl Journal {
    pub(super) fn new(seeded: &Seeded) -> Self {
        let rows = seeded.rows.iter().filter(|row| !row.sha256.is_empty());
        let shown = rows
            .map(|row| (row.id.clone(), BTreeSet::from([row.sha256.clone()])))
            .collect();
        Self(Mutex::new(Pages {
            report: TrafficReport::default(),
            shown,
        }))
    }

    pub(super) fn report(&self) -> TrafficReport {
        self.0.lock().report.clone()
    }

    /// The reads and the broken reads so far.
    pub(super) fn reads(&self) -> (u64, u64) {
        let report = &self.0.lock().report;
        (report.reads, report.broken_reads)
    }

    /// The pictures replaced and the rows deleted so far.
    pub(super) fn writes(&self) -> u64 {
        let report = &self.0.lock().report;
        report.application_writes + report.deletes
    }

    /// To be told before the row can show it.
    pub(super) fn will_show(&self, id: &str, sha256: &str) {
        self.0
            .lock()
            .shown
            .entry(id.to_owned())
            .or_default()
            .insert(sha256.to_owned());
    }

    pub(super) fn may_show(&self, id: &str, sha256: &str) -> bool {
        self.0
            .lock()
            .shown
            .get(id)
            .is_some_and(|shown| shown.contains(sha256))
    }

    pub(super) fn put(&self, at: Location, sha256: String) {
        self.0.lock().report.log.objects.insert(at, sha256);
    }

    pub(super) fn replaced(&self, id: &str, path: String, sha256: String) {
        let report = &mut self.0.lock().report;
        report.application_writes += 1;
        report
            .log
            .rows
            .insert(id.to_owned(), Deed::Replaced { path, sha256 });
    }

    pub(super) fn deleted(&self, id: &str) {
        let report = &mut self.0.lock().report;
        report.deletes += 1;
        report.log.rows.insert(id.to_owned(), Deed::Deleted);
    }

    pub(super) fn gave_up(&self) {
        self.0.lock().report.write_errors += 1;
    }

    pub(super) fn read(&self) {
        self.0.lock().report.reads += 1;
    }

    pub(super) fn read_failed(&self) {
        self.0.lock().report.read_errors += 1;
    }

    pub(super) fn broken(&self, what: String) {
        let report = &mut self.0.lock().report;
        report.broken_reads += 1;
        report.broken.push(what);
    }
}
