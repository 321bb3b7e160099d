//! The application's table and the ledger. Each call is one statement of [the real ledger]: all of
//! it or nothing, on what the statement found when it began. A test of the testbed runs both side by
//! side and compares what they hold.
//!
//! [the real ledger]: bucket_brigade_common::ledger

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use bucket_brigade_common::ledger::feed_source::RowPage;
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, CurrentRow, MoveFailure, OrphanedCopy, PendingMove, PoisonRecord,
};
use bucket_brigade_common::row_id::RowId;

use super::{NEW_PREFIX, OLD_PREFIX};

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordedMove {
    pub old_path: String,
    pub new_path: String,
    pub etag: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RecordedFailure {
    /// The path it was fed with.
    pub path: String,
    pub code: String,
    /// Whether trying again is pointless.
    pub permanent: bool,
}

/// The database. Rows are keyed by their id, which orders as text.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct MemoryTable {
    /// The application's rows: id to path. A deleted one is absent.
    pub rows: BTreeMap<String, String>,
    pub moves: BTreeMap<String, RecordedMove>,
    /// Rows the application changed, with the path found; none for a deleted row.
    pub changes: BTreeMap<String, Option<String>>,
    pub failures: BTreeMap<String, RecordedFailure>,
    /// Copies that lost their row: key to ETag.
    pub orphans: BTreeMap<String, String>,
    /// Poison messages by the queue's id.
    pub poison: BTreeSet<String>,
    /// Raised by operators: moves with a lower one change nothing.
    pub fence: i64,
    pub cursor: Option<String>,
    pub sweep: u64,
    pub sweep_fed: u64,
    pub fed: u64,
    /// Rows that had ended when this sweep began.
    pub sweep_accounted: u64,
}

impl MemoryTable {
    pub fn read_rows(&self, ids: &[RowId]) -> HashMap<RowId, CurrentRow> {
        let row = |id: &RowId| {
            let path = self.rows.get(id.as_str())?.clone();
            let failed_for_good = self
                .failures
                .get(id.as_str())
                .is_some_and(|failed| failed.permanent && failed.path == path);
            let earlier = self.moves.get(id.as_str());
            let copy_etag = earlier
                .filter(|earlier| earlier.old_path == path)
                .map(|earlier| earlier.etag.clone());
            let row = CurrentRow {
                fence: self.fence,
                path,
                has_permanent_failure: failed_for_good,
                copy_etag,
            };
            Some((id.clone(), row))
        };
        ids.iter().filter_map(row).collect()
    }

    /// The compare-and-set with its evidence.
    pub fn commit(&mut self, moves: &[PendingMove]) -> HashSet<RowId> {
        let still = |one: &&PendingMove| self.rows.get(one.id.as_str()) == Some(&one.old_path);
        let mut matching: Vec<&PendingMove> = moves.iter().filter(still).collect();
        if moves.iter().any(|one| one.fence < self.fence) {
            matching.clear();
        }
        for one in &matching {
            self.set_path(one);
        }
        matching.into_iter().map(|one| one.id.clone()).collect()
    }

    /// Sets a row's path and writes the evidence, whatever it holds.
    pub(crate) fn set_path(&mut self, one: &PendingMove) {
        let id = one.id.as_str();
        self.rows.insert(id.to_owned(), one.new_path.clone());
        let evidence = RecordedMove {
            old_path: one.old_path.clone(),
            new_path: one.new_path.clone(),
            etag: one.etag.clone(),
        };
        self.moves.insert(id.to_owned(), evidence);
        self.failures.remove(id);
        self.changes.remove(id);
        self.orphans.remove(&one.destination_key);
    }

    /// Records rows that need no move any more.
    pub fn settle_rows(&mut self, settlements: &[ChangedRow]) {
        for one in settlements {
            let id = one.id.as_str();
            if one.is_final && !self.moves.contains_key(id) {
                let found = one.found_path.clone();
                self.changes.entry(id.to_owned()).or_insert(found);
            }
            let failed = self.failures.get(id);
            if failed.is_some_and(|failed| one.is_final || failed.path == one.old_path) {
                self.failures.remove(id);
            }
            self.add_orphan(id, &one.new_path, one.orphan.as_ref());
        }
    }

    /// Unless the row names it: another delivery may have moved it since.
    fn add_orphan(&mut self, id: &str, new_path: &str, orphan: Option<&OrphanedCopy>) {
        if let Some(OrphanedCopy {
            destination_key,
            etag,
        }) = orphan
            && self.rows.get(id).is_none_or(|path| path != new_path)
        {
            self.orphans.insert(destination_key.clone(), etag.clone());
        }
    }

    /// Records failures of rows that still hold the path they were fed with.
    pub fn record_failures(&mut self, failures: &[MoveFailure]) {
        for one in failures {
            let id = one.id.as_str();
            let new_path = one.path.replacen(OLD_PREFIX, NEW_PREFIX, 1);
            self.add_orphan(id, &new_path, one.orphan.as_ref());
            if self.rows.get(id) != Some(&one.path) {
                continue;
            }
            let failed = RecordedFailure {
                path: one.path.clone(),
                code: one.code.clone(),
                permanent: one.permanent,
            };
            self.failures.insert(id.to_owned(), failed);
            self.changes.remove(id);
            self.moves.remove(id);
        }
    }

    pub fn record_poison(&mut self, records: &[PoisonRecord]) {
        let ids = records.iter().map(|record| record.message_id.clone());
        self.poison.extend(ids);
    }

    /// Whether a sweep would feed this row.
    pub fn needs_move(&self, id: &str, path: &str) -> bool {
        let failed = self.failures.get(id);
        path.starts_with(OLD_PREFIX) && failed.is_none_or(|failed| failed.path != path)
    }

    /// The rows to feed of the next `size` rows after `cursor`.
    pub fn read_page(&self, cursor: Option<&RowId>, size: usize) -> RowPage {
        let from = cursor.map_or(Bound::Unbounded, |cursor| Bound::Excluded(cursor.as_str()));
        let stretch: Vec<(&String, &String)> = self
            .rows
            .range::<str, _>((from, Bound::Unbounded))
            .take(size)
            .collect();
        let last = stretch.last();
        let last = last.map(|(id, _)| RowId::from_database((*id).clone()));
        let wanted = stretch
            .into_iter()
            .filter(|(id, path)| self.needs_move(id, path));
        let rows = wanted.map(|(id, path)| (RowId::from_database(id.clone()), path.clone()));
        RowPage {
            rows: rows.collect(),
            last_id: last,
            ..RowPage::default()
        }
    }

    /// Whether any row is left that a sweep would feed.
    pub fn has_rows_left(&self) -> bool {
        self.rows.iter().any(|(id, path)| self.needs_move(id, path))
    }

    /// Turns failures whose row the application has changed since into changes.
    pub fn settle_stale_failures(&mut self) {
        let stale: Vec<String> = self
            .failures
            .iter()
            .filter(|(id, failed)| self.rows.get(*id) != Some(&failed.path))
            .map(|(id, _)| id.clone())
            .collect();
        for id in &stale {
            self.failures.remove(id);
            let path = self.rows.get(id).cloned();
            let is_in_scope = path
                .as_ref()
                .is_some_and(|path| path.starts_with(OLD_PREFIX));
            if !is_in_scope && !self.moves.contains_key(id) {
                self.changes.entry(id.clone()).or_insert(path);
            }
        }
    }

    /// Moves the cursor past rows whose sends are confirmed.
    pub fn advance_cursor(&mut self, cursor: &RowId, fed: u64) {
        self.cursor = Some(cursor.as_str().to_owned());
        self.sweep_fed += fed;
        self.fed += fed;
    }

    pub fn begin_sweep(&mut self) {
        self.sweep += u64::from(self.cursor.is_some());
        self.cursor = None;
        self.sweep_fed = 0;
        self.sweep_accounted = self.accounted_rows();
    }

    /// Rows that have ended.
    pub fn accounted_rows(&self) -> u64 {
        let ended = self.moves.len() + self.changes.len() + self.failures.len();
        u64::try_from(ended).unwrap_or(u64::MAX)
    }

    /// In how many states the ledger holds a row: one in the end, and never more.
    pub fn count_states(&self, id: &str) -> usize {
        usize::from(self.moves.contains_key(id))
            + usize::from(self.changes.contains_key(id))
            + usize::from(self.failures.contains_key(id))
    }
}
