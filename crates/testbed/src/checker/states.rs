//! I4: every row in scope ends in exactly one state.

use super::{Sweep, Verdict};
use crate::seed::{Kind, Row};

enum State {
    Moved,
    Failed,
    Changed,
    AlreadyMoved,
}

impl Sweep<'_> {
    pub(super) fn check_states(&self, verdict: &mut Verdict) {
        for row in &self.seeded.rows {
            if row.kind == Kind::Outside {
                verdict.violations.extend(self.touched(row));
                continue;
            }
            verdict.images += 1;
            match self.state(row) {
                Ok(State::Moved) => verdict.moved += 1,
                Ok(State::Failed) => verdict.failed += 1,
                Ok(State::Changed) => verdict.changed_by_application += 1,
                Ok(State::AlreadyMoved) => verdict.already_moved += 1,
                Err(wrong) => verdict.violations.push(format!("row {}: {wrong}", row.id)),
            }
        }
    }

    fn state(&self, row: &Row) -> Result<State, String> {
        let told = self.told(&row.id);
        let written = self.log.rows.contains_key(&row.id);
        match (told.as_slice(), row.kind) {
            ([], Kind::AlreadyMoved) => self.must_be(row, &row.path).map(|()| State::AlreadyMoved),
            ([told, ..], Kind::AlreadyMoved) => {
                Err(format!("had moved before, yet the ledger has it as {told}"))
            }
            (["moved"], _) => self.moved(row).map(|()| State::Moved),
            (["failed"], _) => self.must_be(row, &row.path).map(|()| State::Failed),
            ([] | ["changed"], _) if written => Ok(State::Changed),
            ([], _) => Err(format!(
                "neither moved nor changed nor failed: {}",
                self.now(row)
            )),
            (["changed"], _) => Err(format!(
                "{:?} is recorded as changed, but nobody changed it",
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
    fn told(&self, id: &str) -> Vec<&'static str> {
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

    fn moved(&self, row: &Row) -> Result<(), String> {
        let new = self.new_path(row);
        let evidence = (row.path.clone(), new.clone());
        match self.ledger.moves.get(&row.id) {
            Some(found) if *found != evidence => Err(format!(
                "the ledger tells of a move from {:?} to {:?}",
                found.0, found.1
            )),
            _ => self.must_be(row, &new),
        }
    }

    /// Unless the application wrote the row, in which case its own check tells.
    fn must_be(&self, row: &Row, path: &str) -> Result<(), String> {
        let is = self.paths.get(&row.id).map(String::as_str);
        if is == Some(path) || self.log.rows.contains_key(&row.id) {
            return Ok(());
        }
        Err(format!("should be {path:?}: {}", self.now(row)))
    }

    fn now(&self, row: &Row) -> String {
        self.paths
            .get(&row.id)
            .map_or("the row is gone".to_owned(), |path| {
                format!("its path is {path:?}")
            })
    }

    /// What was done to a row outside the prefix.
    fn touched(&self, row: &Row) -> Vec<String> {
        let recorded = self
            .told(&row.id)
            .into_iter()
            .map(|told| format!("the ledger has it as {told}"));
        let wrong = recorded.chain(self.must_be(row, &row.path).err());
        wrong
            .map(|wrong| format!("row {}, outside the prefix: {wrong}", row.id))
            .collect()
    }
}
