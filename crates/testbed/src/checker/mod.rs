//! What must hold, checked from outside: by the rows, the objects and what the application knows it
//! wrote. It shares no code with what it checks.

mod ledger;
mod objects;
mod states;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use crate::application::{Application, ObjectLocation, sha256_hex};
use crate::seed::{SeededRow, SeededRowKind, SeededRows, companion_bytes};
use crate::traffic::{ApplicationWrite, WriteLog};
use ledger::LedgerContents;
use objects::ExpectedObjects;

/// What a sweep over all rows and objects found.
#[derive(Debug, Clone, Default)]
pub struct CheckReport {
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

impl CheckReport {
    /// Adds what was found of another run.
    pub fn add(&mut self, other: Self) {
        self.images += other.images;
        self.moved += other.moved;
        self.changed_by_application += other.changed_by_application;
        self.failed += other.failed;
        self.already_moved += other.already_moved;
        self.lost_application_writes += other.lost_application_writes;
        self.overwritten_objects += other.overwritten_objects;
        self.violations.extend(other.violations);
    }

    pub fn has_passed(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Looks at every row and every object once. Nothing may write meanwhile.
///
/// Fails when the database or the store does not answer; what they answer wrongly is in the verdict.
pub async fn check_invariants(
    application: &Application,
    seeded: &SeededRows,
    log: &WriteLog,
) -> Result<CheckReport> {
    check_invariants_after_clean(application, seeded, log, &BTreeSet::new()).await
}

/// The same after an operator had these sources removed: they are gone, and all others are there.
pub async fn check_invariants_after_clean(
    application: &Application,
    seeded: &SeededRows,
    log: &WriteLog,
    removed: &BTreeSet<ObjectLocation>,
) -> Result<CheckReport> {
    let pool = application.connect_pool(1).await?;
    let paths = application.read_paths(&pool).await?;
    let ledger = LedgerContents::load(&pool, &application.table).await?;
    pool.close().await;
    let objects = ExpectedObjects::load(
        application,
        expected_locations(application, seeded, log, &paths),
    )
    .await?;
    let sweep = InvariantChecker {
        application,
        seeded,
        log,
        removed,
        paths,
        ledger,
        objects,
    };
    Ok(sweep.run_checks())
}

fn expected_locations(
    application: &Application,
    seeded_rows: &SeededRows,
    log: &WriteLog,
    paths: &BTreeMap<String, String>,
) -> BTreeSet<ObjectLocation> {
    let seeded = seeded_rows
        .rows
        .iter()
        .map(|row| application.location_of(&row.path));
    let current = paths.values().map(|path| application.location_of(path));
    let companions = rows_with_companions(seeded_rows).flat_map(|row| {
        let new = new_path(application, row);
        [&row.path, &new]
            .map(|path| application.companion_locations(path))
            .concat()
    });
    seeded
        .chain(companions)
        .chain(current)
        .chain(log.objects.keys().cloned())
        .collect()
}

struct InvariantChecker<'a> {
    application: &'a Application,
    seeded: &'a SeededRows,
    log: &'a WriteLog,
    removed: &'a BTreeSet<ObjectLocation>,
    paths: BTreeMap<String, String>,
    ledger: LedgerContents,
    objects: ExpectedObjects,
}

impl InvariantChecker<'_> {
    fn run_checks(&self) -> CheckReport {
        let mut verdict = CheckReport::default();
        self.check_every_path(&mut verdict.violations);
        self.check_seeded_objects(&mut verdict.violations);
        self.check_copies(&mut verdict.violations);
        self.check_companions(&mut verdict.violations);
        self.check_application_rows(&mut verdict);
        self.check_application_objects(&mut verdict);
        self.check_states(&mut verdict);
        verdict.violations.extend(self.ledger.counter_mismatches());
        verdict
    }

    /// I1: every row names an object that exists.
    fn check_every_path(&self, violations: &mut Vec<String>) {
        let missing: BTreeMap<&str, &str> = self
            .seeded
            .rows_of_kind(SeededRowKind::Missing)
            .map(|row| (row.id.as_str(), row.path.as_str()))
            .collect();
        for (id, path) in &self.paths {
            let at = self.application.location_of(path);
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
            .filter(|row| row.kind != SeededRowKind::Missing)
        {
            let at = self.application.location_of(&row.path);
            if self.removed.contains(&at) {
                let is_there = self.objects.get(&at).is_some();
                violations
                    .extend(is_there.then(|| format!("object {at} was removed, and is there")));
            } else if !self.log.objects.contains_key(&at) {
                violations.extend(self.objects.diff_object(row, &at));
            }
        }
    }

    /// I2: a copy is what its source is.
    fn check_copies(&self, violations: &mut Vec<String>) {
        for row in self
            .seeded
            .rows_of_kind(SeededRowKind::ToMove)
            .filter(|row| !self.log.rows.contains_key(&row.id))
        {
            let new = self.new_path(row);
            if self.paths.get(&row.id) == Some(&new) {
                violations.extend(
                    self.objects
                        .diff_object(row, &self.application.location_of(&new)),
                );
            }
        }
    }

    /// I3: rows are as the application last wrote them.
    fn check_application_rows(&self, verdict: &mut CheckReport) {
        for (id, deed) in &self.log.rows {
            if let Some(loss) = self.lost_write(id, deed) {
                verdict.lost_application_writes += 1;
                verdict.violations.push(format!("row {id}: {loss}"));
            }
        }
    }

    fn lost_write(&self, id: &str, deed: &ApplicationWrite) -> Option<String> {
        match (deed, self.paths.get(id)) {
            (ApplicationWrite::Deleted, None) => None,
            (ApplicationWrite::Deleted, Some(path)) => {
                Some(format!("deleted by the application, now back as {path:?}"))
            }
            (ApplicationWrite::Replaced { path, .. }, None) => {
                Some(format!("set to {path:?} by the application, now gone"))
            }
            (ApplicationWrite::Replaced { path, .. }, Some(found)) if path != found => {
                Some(format!("set to {path:?} by the application, now {found:?}"))
            }
            (ApplicationWrite::Replaced { path, sha256 }, Some(_)) => {
                let found = self.objects.get(&self.application.location_of(path));
                let shows_it = found.is_some_and(|object| object.sha256 == *sha256);
                (!shows_it).then(|| {
                    format!("{path:?} does not show the picture the application put there")
                })
            }
        }
    }

    /// I3: objects are as the application last put them.
    fn check_application_objects(&self, verdict: &mut CheckReport) {
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

    /// I1, I2 and I7 for companions: they are at the old place, and at the new one where the row is moved.
    fn check_companions(&self, violations: &mut Vec<String>) {
        for row in rows_with_companions(self.seeded) {
            let new = self.new_path(row);
            // The application brings no companions where it sets the new path itself.
            let is_moved =
                self.paths.get(&row.id) == Some(&new) && !self.log.rows.contains_key(&row.id);
            let places = [Some(&row.path), Some(&new).filter(|_| is_moved)];
            for path in places.into_iter().flatten() {
                let companions = self.application.companion_locations(path).into_iter();
                for (number, at) in companions
                    .enumerate()
                    .filter(|(_, at)| !self.removed.contains(at))
                {
                    let companion = SeededRow {
                        sha256: sha256_hex(&companion_bytes(&row.path, number)),
                        ..row.clone()
                    };
                    violations.extend(self.objects.diff_object(&companion, &at));
                }
            }
        }
    }

    fn new_path(&self, row: &SeededRow) -> String {
        new_path(self.application, row)
    }
}

fn rows_with_companions(seeded: &SeededRows) -> impl Iterator<Item = &SeededRow> {
    seeded.rows.iter().filter(|row| row.has_companions)
}

fn new_path(application: &Application, row: &SeededRow) -> String {
    let rest = row.path.strip_prefix(&application.old_prefix);
    format!("{}{}", application.new_prefix, rest.unwrap_or(&row.path))
}
