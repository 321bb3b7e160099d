//! What must hold, checked from outside: by the rows, the objects and what the application knows it
//! wrote. It shares no code with what it checks.

mod ledger;
mod objects;
mod states;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::application::{Application, Location};
use crate::seed::{Kind, Row, Seeded};
use crate::traffic::{Deed, Log};
use ledger::Ledger;
use objects::Objects;

/// What a sweep over all rows and objects found.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Rows in scope: seeded as to move, missing or already moved.
    pub images: u64,
    /// Rows in scope that the ledger has as moved.
    pub moved: u64,
    /// Rows in scope that the application changed or deleted before they could be moved.
    pub changed_by_application: u64,
    /// Rows in scope that the ledger has as failed.
    pub failed: u64,
    /// Rows in scope that had moved before.
    pub already_moved: u64,
    /// Rows that are not as the application last wrote them.
    pub lost_application_writes: u64,
    /// Objects that are not as the application last put them.
    pub overwritten_objects: u64,
    /// All that is wrong, each with its row or object.
    pub violations: Vec<String>,
}

impl Verdict {
    /// Whether everything that must hold does.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Looks at every row and every object once. Nothing may write meanwhile.
///
/// Fails when the database or the store does not answer; what they answer wrongly is in the verdict.
pub async fn full_sweep(application: &Application, seeded: &Seeded, log: &Log) -> Result<Verdict> {
    full_sweep_after_clean(application, seeded, log, &BTreeSet::new()).await
}

/// The same after an operator had these sources removed: they are gone, and all others are there.
pub async fn full_sweep_after_clean(
    application: &Application,
    seeded: &Seeded,
    log: &Log,
    removed: &BTreeSet<Location>,
) -> Result<Verdict> {
    let pool = application.pool(1).await?;
    let paths = application.paths(&pool).await?;
    let ledger = Ledger::load(&pool).await?;
    pool.close().await;
    let objects = Objects::load(application, places(application, seeded, log, &paths)).await?;
    let sweep = Sweep {
        application,
        seeded,
        log,
        removed,
        paths,
        ledger,
        objects,
    };
    Ok(sweep.judge())
}

/// Every place an object is expected at.
fn places(
    application: &Application,
    seeded: &Seeded,
    log: &Log,
    paths: &BTreeMap<String, String>,
) -> BTreeSet<Location> {
    let seeded = seeded.rows.iter().map(|row| application.locate(&row.path));
    let current = paths.values().map(|path| application.locate(path));
    seeded
        .chain(current)
        .chain(log.objects.keys().cloned())
        .collect()
}

struct Sweep<'a> {
    application: &'a Application,
    seeded: &'a Seeded,
    log: &'a Log,
    removed: &'a BTreeSet<Location>,
    paths: BTreeMap<String, String>,
    ledger: Ledger,
    objects: Objects,
}

impl Sweep<'_> {
    fn judge(&self) -> Verdict {
        let mut verdict = Verdict::default();
        self.check_every_path(&mut verdict.violations);
        self.check_seeded_objects(&mut verdict.violations);
        self.check_copies(&mut verdict.violations);
        self.check_application_rows(&mut verdict);
        self.check_application_objects(&mut verdict);
        self.check_states(&mut verdict);
        verdict.violations.extend(self.ledger.disagreements());
        verdict
    }

    /// I1: every row names an object that exists.
    fn check_every_path(&self, violations: &mut Vec<String>) {
        let missing: BTreeMap<&str, &str> = self
            .seeded
            .of(Kind::Missing)
            .map(|row| (row.id.as_str(), row.path.as_str()))
            .collect();
        for (id, path) in &self.paths {
            let at = self.application.locate(path);
            let never_was = missing.get(id.as_str()) == Some(&path.as_str());
            if self.objects.get(&at).is_none() && !never_was {
                violations.push(format!("row {id}: there is no object {at}"));
            }
        }
    }

    /// I7: what was there before the migration is there unchanged, but for what the application replaced
    /// and what an operator had removed.
    fn check_seeded_objects(&self, violations: &mut Vec<String>) {
        for row in self
            .seeded
            .rows
            .iter()
            .filter(|row| row.kind != Kind::Missing)
        {
            let at = self.application.locate(&row.path);
            if self.removed.contains(&at) {
                let is_there = self.objects.get(&at).is_some();
                violations
                    .extend(is_there.then(|| format!("object {at} was removed, and is there")));
            } else if !self.log.objects.contains_key(&at) {
                violations.extend(self.objects.differs(row, &at));
            }
        }
    }

    /// I2: a copy is what its source is.
    fn check_copies(&self, violations: &mut Vec<String>) {
        for row in self
            .seeded
            .of(Kind::ToMove)
            .filter(|row| !self.log.rows.contains_key(&row.id))
        {
            let new = self.new_path(row);
            if self.paths.get(&row.id) == Some(&new) {
                violations.extend(self.objects.differs(row, &self.application.locate(&new)));
            }
        }
    }

    /// I3: rows are as the application last wrote them.
    fn check_application_rows(&self, verdict: &mut Verdict) {
        for (id, deed) in &self.log.rows {
            if let Some(loss) = self.loss(id, deed) {
                verdict.lost_application_writes += 1;
                verdict.violations.push(format!("row {id}: {loss}"));
            }
        }
    }

    fn loss(&self, id: &str, deed: &Deed) -> Option<String> {
        match (deed, self.paths.get(id)) {
            (Deed::Deleted, None) => None,
            (Deed::Deleted, Some(path)) => {
                Some(format!("deleted by the application, now back as {path:?}"))
            }
            (Deed::Replaced { path, .. }, None) => {
                Some(format!("set to {path:?} by the application, now gone"))
            }
            (Deed::Replaced { path, .. }, Some(found)) if path != found => {
                Some(format!("set to {path:?} by the application, now {found:?}"))
            }
            (Deed::Replaced { path, sha256 }, Some(_)) => {
                let found = self.objects.get(&self.application.locate(path));
                let shows_it = found.is_some_and(|object| object.sha256 == *sha256);
                (!shows_it).then(|| {
                    format!("{path:?} does not show the picture the application put there")
                })
            }
        }
    }

    /// I3: objects are as the application last put them.
    fn check_application_objects(&self, verdict: &mut Verdict) {
        for (at, sha256) in &self.log.objects {
            if self
                .objects
                .get(at)
                .is_none_or(|object| object.sha256 != *sha256)
            {
                verdict.overwritten_objects += 1;
                verdict
                    .violations
                    .push(format!("object {at} does not have the application's bytes"));
            }
        }
    }

    fn new_path(&self, row: &Row) -> String {
        let rest = row
            .path
            .strip_prefix(&self.application.old_prefix)
            .unwrap_or(&row.path);
        format!("{}{rest}", self.application.new_prefix)
    }
}
