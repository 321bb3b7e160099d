//! I4: every row in scope ends in exactly one state.

use super::{CheckReport, InvariantChecker};
use crate::seed::{SeededRow, SeededRowKind};

enum FinalRowState {
    Moved,
    Failed,
    Changed,
    AlreadyMoved,
}

impl InvariantChecker<'_> {
    pub(super) fn check_states(&self, verdict: &mut CheckReport) {
        for row in &self.seeded.rows {
            if row.kind == SeededRowKind::Outside {
                verdict.violations.extend(self.check_outside_row(row));
                continue;
            }
            verdict.images += 1;
            match self.final_state(row) {
                Ok(FinalRowState::Moved) => verdict.moved += 1,
                Ok(FinalRowState::Failed) => verdict.failed += 1,
                Ok(FinalRowState::Changed) => verdict.changed_by_application += 1,
                Ok(FinalRowState::AlreadyMoved) => verdict.already_moved += 1,
                Err(wrong) => verdict.violations.push(format!("row {}: {wrong}", row.id)),
            }
        }
    }

    fn final_state(&self, row: &SeededRow) -> Result<FinalRowState, String> {
        let recorded = self.recorded_states(&row.id);
        let written = self.log.rows.contains_key(&row.id);
        match (recorded.as_slice(), row.kind) {
            ([], SeededRowKind::AlreadyMoved) => self
                .check_path(row, &row.path)
                .map(|()| FinalRowState::AlreadyMoved),
            ([recorded, ..], SeededRowKind::AlreadyMoved) => Err(format!(
                "had moved before, yet the ledger has it as {recorded}"
            )),
            (["moved"], _) => self.check_moved(row).map(|()| FinalRowState::Moved),
            (["failed"], _) => self
                .check_path(row, &row.path)
                .map(|()| FinalRowState::Failed),
            ([] | ["changed"], _) if written => Ok(FinalRowState::Changed),
            ([], _) => Err(format!(
                "neither moved nor changed nor failed: {}",
                self.describe_path(row)
            )),
            (["changed"], _) => Err(format!(
                "{:?} is recorded as changed, but was never changed",
                row.path
            )),
            (several, _) => Err(format!(
                "{:?} is recorded as {}",
                row.path,
                several.join(" and ")
            )),
        }
    }

    /// What the ledger has a row as.
    fn recorded_states(&self, id: &str) -> Vec<&'static str> {
        let tables = [
            ("moved", self.ledger.moves.contains_key(id)),
            ("failed", self.ledger.failures.contains_key(id)),
            ("changed", self.ledger.changes.contains_key(id)),
        ];
        tables
            .into_iter()
            .filter(|(_, has)| *has)
            .map(|(name, _)| name)
            .collect()
    }

    fn check_moved(&self, row: &SeededRow) -> Result<(), String> {
        let new = self.new_path(row);
        let evidence = (row.path.clone(), new.clone());
        match self.ledger.moves.get(&row.id) {
            Some(found) if *found != evidence => Err(format!(
                "the ledger has a move from {:?} to {:?}",
                found.0, found.1
            )),
            _ => self.check_path(row, &new),
        }
    }

    /// Unless the application wrote the row, which has a check of its own.
    fn check_path(&self, row: &SeededRow, path: &str) -> Result<(), String> {
        let is = self.paths.get(&row.id).map(String::as_str);
        if is == Some(path) || self.log.rows.contains_key(&row.id) {
            return Ok(());
        }
        Err(format!("should be {path:?}: {}", self.describe_path(row)))
    }

    fn describe_path(&self, row: &SeededRow) -> String {
        self.paths
            .get(&row.id)
            .map_or("the row is gone".to_owned(), |path| {
                format!("its path is {path:?}")
            })
    }

    /// What was done to a row outside the prefix.
    fn check_outside_row(&self, row: &SeededRow) -> Vec<String> {
        let recorded = self
            .recorded_states(&row.id)
            .into_iter()
            .map(|recorded| format!("the ledger has it as {recorded}"));
        let wrong = recorded.chain(self.check_path(row, &row.path).err());
        wrong
            .map(|wrong| format!("row {}, outside the prefix: {wrong}", row.id))
            .collect()
    }
}
