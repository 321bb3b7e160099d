//! Users who replace and delete their pictures.
//!
//! One task, so that no two writes of the application race each other: what is last is certain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use fastrand::Rng;
use sqlx::AssertSqlSafe;
use tokio::time::MissedTickBehavior;

use super::{Hot, Rates, Shift, interval};
use crate::application::{Properties, sha256_hex};
use crate::picture::picture;
use crate::seed::{Kind, Row};

/// How many rows are looked at for one that has not moved: races with the migration are wanted.
const LOOKS: u32 = 8;
const LARGEST_BYTES: u32 = 16 * 1024;
const ATTEMPTS: u32 = 100;

struct Writer {
    shift: Shift,
    rates: Rates,
    random: Rng,
    deleted: BTreeSet<String>,
    uploads: u32,
    /// Where each row is among the seeded ones.
    places: BTreeMap<String, usize>,
}

/// Writes at each tick, as long as it has written less than it may.
pub(super) async fn write(shift: Shift, rates: Rates, most_writes: Arc<AtomicUsize>) {
    let mut ticks = tokio::time::interval(interval(rates.writes_per_second));
    if rates.hot.is_none() {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let (random, deleted) = (Rng::with_seed(rates.seed), BTreeSet::new());
    let rows = shift.seeded.rows.iter().enumerate();
    let places = rows.map(|(at, row)| (row.id.clone(), at)).collect();
    let mut writer = Writer {
        shift,
        rates,
        random,
        deleted,
        uploads: 0,
        places,
    };
    let mut written = 0;
    while writer.shift.goes_on(&mut ticks).await {
        if written >= most_writes.load(Ordering::Relaxed) {
            continue;
        }
        written += 1;
        if writer.write_once().await.is_err() {
            writer.shift.journal.gave_up();
        }
    }
}

impl Writer {
    async fn write_once(&mut self) -> Result<()> {
        let seeded = Arc::clone(&self.shift.seeded);
        let Some(row) = self.choose(&seeded.rows).await? else {
            return Ok(());
        };
        if self.random.f64() < self.rates.deletes {
            self.delete(row).await
        } else {
            self.replace(row).await
        }
    }

    /// A row in scope, one that has not moved if one is found soon.
    async fn choose<'a>(&mut self, rows: &'a [Row]) -> Result<Option<&'a Row>> {
        if let Some(hot) = self.rates.hot.clone() {
            return Ok((0..LOOKS).find_map(|_| self.choose_hot(&hot, rows)));
        }
        let mut chosen = None;
        for _ in 0..LOOKS {
            let Some(row) = self.random.choice(rows) else {
                break;
            };
            if !self.may_write(row) {
                continue;
            }
            chosen = Some(row);
            let path = self
                .shift
                .application
                .path_of(&self.shift.pool, &row.id)
                .await?;
            if path.is_some_and(|path| path.starts_with(&self.shift.application.old_prefix)) {
                break;
            }
        }
        Ok(chosen)
    }

    fn choose_hot<'a>(&mut self, hot: &Hot, rows: &'a [Row]) -> Option<&'a Row> {
        let id = hot.take(&mut self.random)?;
        let row = rows.get(*self.places.get(&id)?)?;
        self.may_write(row).then_some(row)
    }

    fn may_write(&self, row: &Row) -> bool {
        row.kind != Kind::Outside
            && !self.deleted.contains(&row.id)
            && !self.rates.spared.contains(&row.id)
    }

    async fn delete(&mut self, row: &Row) -> Result<()> {
        let table = &self.shift.application.table;
        let sql = format!("DELETE FROM {} WHERE {}", table.name, table.where_id());
        self.insist(&sql, &row.id, None).await?;
        self.deleted.insert(row.id.clone());
        self.shift.journal.deleted(&row.id);
        Ok(())
    }

    /// The object first, then the row: at no time does the row name an object that is not there.
    async fn replace(&mut self, row: &Row) -> Result<()> {
        let path = self.new_path(row);
        let bytes = picture(&mut self.random, LARGEST_BYTES)?;
        let sha256 = sha256_hex(&bytes);
        let (application, journal) = (&self.shift.application, &self.shift.journal);
        let at = application.locate(&path);
        let properties = Properties {
            content_type: Some("image/png".to_owned()),
            ..Properties::default()
        };
        journal.will_show(&row.id, &sha256);
        application.put_object(&at, bytes, &properties).await?;
        journal.put(at, sha256.clone());
        let table = &application.table;
        let sql = format!(
            "UPDATE {} SET {} = $2 WHERE {}",
            table.name,
            table.path_column,
            table.where_id()
        );
        self.insist(&sql, &row.id, Some(&path)).await?;
        journal.replaced(&row.id, path, sha256);
        Ok(())
    }

    /// The path the copy would get, or a fresh one. Rows that share a path get fresh ones alone: a
    /// sane application does not change another user's picture.
    fn new_path(&mut self, row: &Row) -> String {
        let application = &self.shift.application;
        let same = !row.shared && self.random.f64() < self.rates.same_key;
        match row.path.strip_prefix(&application.old_prefix) {
            Some(rest) if same => format!("{}{rest}", application.new_prefix),
            _ => {
                self.uploads += 1;
                format!("{}upload-{}.png", application.new_prefix, self.uploads)
            }
        }
    }

    /// Executes a statement on one row, again while the database is away: an application whose
    /// object is stored does not forget its row.
    async fn insist(&self, sql: &str, id: &str, path: Option<&str>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let statement = sqlx::query(AssertSqlSafe(sql.to_owned())).bind(id);
            let statement = if let Some(path) = path {
                statement.bind(path)
            } else {
                statement
            };
            if statement.execute(&self.shift.pool).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the database did not come back")
    }
}
