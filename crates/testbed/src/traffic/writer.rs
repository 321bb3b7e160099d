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

use super::{ActiveRows, TrafficContext, TrafficRates, tick_interval};
use crate::application::{ObjectProperties, sha256_hex};
use crate::picture::random_png;
use crate::seed::{SeededRow, SeededRowKind};

/// How many rows are tried for one that has not moved: races with the migration are wanted.
const MAX_CANDIDATES: u32 = 8;
const MAX_PICTURE_BYTES: u32 = 16 * 1024;
const MAX_ATTEMPTS: u32 = 100;

struct TrafficWriter {
    context: TrafficContext,
    rates: TrafficRates,
    random: Rng,
    deleted: BTreeSet<String>,
    uploads: u32,
    /// Where each row is among the seeded ones.
    row_indexes: BTreeMap<String, usize>,
}

/// Writes at each tick, as long as it has written less than it may.
pub(super) async fn run_writer(
    shift: TrafficContext,
    rates: TrafficRates,
    most_writes: Arc<AtomicUsize>,
) {
    let mut ticks = tokio::time::interval(tick_interval(rates.writes_per_second));
    if rates.active_rows.is_none() {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let (random, deleted) = (Rng::with_seed(rates.seed), BTreeSet::new());
    let rows = shift.seeded.rows.iter().enumerate();
    let places = rows.map(|(at, row)| (row.id.clone(), at)).collect();
    let mut writer = TrafficWriter {
        context: shift,
        rates,
        random,
        deleted,
        uploads: 0,
        row_indexes: places,
    };
    let mut written = 0;
    while writer.context.wait_for_tick(&mut ticks).await {
        if written >= most_writes.load(Ordering::Relaxed) {
            continue;
        }
        written += 1;
        if writer.write_once().await.is_err() {
            writer.context.journal.record_write_error();
        }
    }
}

impl TrafficWriter {
    async fn write_once(&mut self) -> Result<()> {
        let seeded = Arc::clone(&self.context.seeded);
        let Some(row) = self.choose_row(&seeded.rows).await? else {
            return Ok(());
        };
        if self.random.f64() < self.rates.delete_share {
            self.delete_row(row).await
        } else {
            self.replace_picture(row).await
        }
    }

    /// A row in scope, one that has not moved if one is found soon.
    async fn choose_row<'a>(&mut self, rows: &'a [SeededRow]) -> Result<Option<&'a SeededRow>> {
        if let Some(hot) = self.rates.active_rows.clone() {
            return Ok((0..MAX_CANDIDATES).find_map(|_| self.choose_active_row(&hot, rows)));
        }
        let mut chosen = None;
        for _ in 0..MAX_CANDIDATES {
            let Some(row) = self.random.choice(rows) else {
                break;
            };
            if !self.may_write(row) {
                continue;
            }
            chosen = Some(row);
            let path = self
                .context
                .application
                .read_path(&self.context.pool, &row.id)
                .await?;
            if path.is_some_and(|path| path.starts_with(&self.context.application.old_prefix)) {
                break;
            }
        }
        Ok(chosen)
    }

    fn choose_active_row<'a>(
        &mut self,
        hot: &ActiveRows,
        rows: &'a [SeededRow],
    ) -> Option<&'a SeededRow> {
        let id = hot.take(&mut self.random)?;
        let row = rows.get(*self.row_indexes.get(&id)?)?;
        self.may_write(row).then_some(row)
    }

    fn may_write(&self, row: &SeededRow) -> bool {
        row.kind != SeededRowKind::Outside
            && !self.deleted.contains(&row.id)
            && !self.rates.excluded_rows.contains(&row.id)
    }

    async fn delete_row(&mut self, row: &SeededRow) -> Result<()> {
        let table = &self.context.application.table;
        let sql = format!("DELETE FROM {} WHERE {}", table.name, table.where_id());
        self.execute_with_retry(&sql, &row.id, None).await?;
        self.deleted.insert(row.id.clone());
        self.context.journal.record_deleted(&row.id);
        Ok(())
    }

    /// The object first, then the row: at no time does the row name an object that is not there.
    async fn replace_picture(&mut self, row: &SeededRow) -> Result<()> {
        let path = self.new_path(row);
        let bytes = random_png(&mut self.random, MAX_PICTURE_BYTES)?;
        let sha256 = sha256_hex(&bytes);
        let (application, journal) = (&self.context.application, &self.context.journal);
        let at = application.location_of(&path);
        let properties = ObjectProperties {
            content_type: Some("image/png".to_owned()),
            ..ObjectProperties::default()
        };
        journal.allow_picture(&row.id, &sha256);
        application.put_object(&at, bytes, &properties).await?;
        journal.record_object(at, sha256.clone());
        let table = &application.table;
        let sql = format!(
            "UPDATE {} SET {} = $2 WHERE {}",
            table.name,
            table.path_column,
            table.where_id()
        );
        self.execute_with_retry(&sql, &row.id, Some(&path)).await?;
        journal.record_replaced(&row.id, path, sha256);
        Ok(())
    }

    /// The path the copy would get, or a fresh one. Rows that share a path get fresh ones alone: a
    /// sane application does not change another user's picture.
    fn new_path(&mut self, row: &SeededRow) -> String {
        let application = &self.context.application;
        let same = !row.shared && self.random.f64() < self.rates.same_key_share;
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
    async fn execute_with_retry(&self, sql: &str, id: &str, path: Option<&str>) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            let statement = sqlx::query(AssertSqlSafe(sql.to_owned())).bind(id);
            let statement = if let Some(path) = path {
                statement.bind(path)
            } else {
                statement
            };
            if statement.execute(&self.context.pool).await.is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        bail!("the database did not come back")
    }
}
