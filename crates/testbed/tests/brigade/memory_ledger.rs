//! The ledger in memory, on which model and simulation stand, against the real one on Postgres: the
//! same calls in any order, the same answers, the same tables.

use std::collections::{BTreeMap, BTreeSet};

use bucket_brigade_common::companions::CompanionCopies;
use bucket_brigade_common::ledger::feed_source::{FeedSource as _, PageReader as _, scan_pages};
use bucket_brigade_common::ledger::move_ledger::{
    ChangedRow, MoveFailure, MoveLedger, OrphanedCopy, PendingMove, PoisonRecord,
};
use bucket_brigade_common::ledger::{LockClaims, PostgresLedger};
use bucket_brigade_common::row_id::RowId;
use bucket_brigade_simulation::world::{MemoryTable, RecordedFailure, RecordedMove};
use fastrand::Rng;
use sqlx::AssertSqlSafe;

use crate::rig::TestRig;

/// Rows 10 to 17, so that their ids order alike as numbers and as text.
const ROW_IDS: std::ops::Range<u32> = 10..18;

/// Paths a row may hold: one to move, another to move, the new one, and one of the application's.
const ROW_PATHS: [&str; 4] = ["image/a", "image/b", "avatar/a", "avatar/own"];

struct LedgerPair {
    rig: TestRig,
    ledger: PostgresLedger,
    table: MemoryTable,
    dice: Rng,
}

impl LedgerPair {
    async fn new(seed: u64) -> Self {
        let rig = TestRig::new().await;
        let ledger = rig.open_run().await;
        let mut table = MemoryTable::default();
        for id in ROW_IDS {
            rig.execute_sql(&format!(
                "INSERT INTO images (id, path) VALUES ({id}, 'image/a')"
            ))
            .await;
            table.rows.insert(id.to_string(), "image/a".into());
        }
        let dice = Rng::with_seed(seed);
        Self {
            rig,
            ledger,
            table,
            dice,
        }
    }

    /// Some rows, each once.
    fn some_ids(&mut self) -> Vec<RowId> {
        let mut ids: Vec<u32> = ROW_IDS.collect();
        self.dice.shuffle(&mut ids);
        ids.truncate(self.dice.usize(1..4));
        let id = |id: u32| RowId::from_database(id.to_string());
        ids.into_iter().map(id).collect()
    }

    fn old_path(&mut self) -> String {
        ROW_PATHS[self.dice.usize(0..2)].into()
    }

    async fn random_operation(&mut self) {
        match self.dice.u32(0..10) {
            0..3 => self.commit_moves().await,
            3 => self.settle_rows().await,
            4 => self.record_failures().await,
            5 => self.write_paths().await,
            6 => self.read_rows().await,
            7 => self.record_poison().await,
            8 => {
                self.table.fence += 1;
                let raised = self.ledger.raise_fence(None, &LockClaims::new()).await;
                assert_eq!(raised.unwrap(), Some(self.table.fence));
            }
            _ => {
                let settle =
                    async |cursor: Option<&RowId>| self.ledger.settle_stale_failures(cursor).await;
                scan_pages(settle).await.unwrap();
                self.table.settle_stale_failures();
            }
        }
    }

    async fn commit_moves(&mut self) {
        let ids = self.some_ids();
        let moves: Vec<PendingMove> = ids
            .into_iter()
            .map(|id| {
                let old_path = self.old_path();
                let new_path = old_path.replace("image/", "avatar/");
                let is_late = self.dice.u32(0..20) == 0;
                PendingMove {
                    fence: self.table.fence - i64::from(is_late),
                    etag: format!("etag {}", self.dice.u32(0..9)),
                    destination_key: format!("{new_path}-{id}"),
                    id,
                    old_path,
                    new_path,
                    size_bytes: None,
                    is_source_gone: false,
                    is_found: false,
                    companions: CompanionCopies::new(),
                }
            })
            .collect();
        let moved = self
            .ledger
            .commit(&moves.iter().collect::<Vec<_>>())
            .await
            .unwrap();
        assert_eq!(moved, self.table.commit(&moves));
    }

    async fn settle_rows(&mut self) {
        let ids = self.some_ids();
        let settlements: Vec<ChangedRow> = ids
            .into_iter()
            .map(|id| {
                let old_path = self.old_path();
                let new_path = old_path.replace("image/", "avatar/");
                let orphan = self.dice.bool().then(|| OrphanedCopy {
                    destination_key: format!("{new_path}-{id}"),
                    etag: format!("etag {}", self.dice.u32(0..9)),
                });
                ChangedRow {
                    id,
                    old_path,
                    new_path,
                    found_path: self.dice.bool().then(|| "avatar/own".to_owned()),
                    is_final: self.dice.bool(),
                    orphan,
                }
            })
            .collect();
        self.ledger.record_changed_rows(&settlements).await.unwrap();
        self.table.settle_rows(&settlements);
    }

    async fn record_failures(&mut self) {
        let ids = self.some_ids();
        let failures: Vec<MoveFailure> = ids
            .into_iter()
            .map(|id| MoveFailure {
                id,
                path: self.old_path(),
                code: "NoSuchKey".into(),
                message: "gone".into(),
                permanent: self.dice.bool(),
                orphan: None,
            })
            .collect();
        self.ledger.record_failures(&failures).await.unwrap();
        self.table.record_failures(&failures);
    }

    /// The application changes, deletes or adds a row.
    async fn write_paths(&mut self) {
        let id = self.dice.u32(ROW_IDS);
        let path = ROW_PATHS[self.dice.usize(0..ROW_PATHS.len())];
        let sql = if self.dice.u32(0..4) == 0 {
            self.table.rows.remove(&id.to_string());
            format!("DELETE FROM images WHERE id = {id}")
        } else {
            self.table.rows.insert(id.to_string(), path.into());
            format!(
                "INSERT INTO images (id, path) VALUES ({id}, '{path}') ON CONFLICT (id) DO UPDATE SET path = excluded.path"
            )
        };
        self.rig.execute_sql(&sql).await;
    }

    async fn read_rows(&mut self) {
        let ids = self.some_ids();
        let rows = self.ledger.read_rows(&ids).await.unwrap();
        assert_eq!(rows, self.table.read_rows(&ids));
        let (cursor, size) = (self.dice.bool().then(|| &ids[0]), self.dice.u32(1..6));
        let page = self.ledger.read(cursor, size).await.unwrap();
        let size = usize::try_from(size).unwrap();
        assert_eq!(page, self.table.read_page(cursor, size));
        let left = async |cursor: Option<&RowId>| self.ledger.has_rows_left(cursor).await;
        let left = scan_pages(left).await.unwrap();
        assert_eq!(left, self.table.has_rows_left());
    }

    async fn record_poison(&mut self) {
        let records = [PoisonRecord {
            message_id: self.dice.u32(0..5).to_string(),
            reason: "not JSON".into(),
            excerpt: "x".into(),
        }];
        self.ledger.record_poison(&records).await.unwrap();
        self.table.record_poison(&records);
    }

    /// A table of the ledger, its columns as text, by the first of them.
    async fn dump_table(
        &self,
        columns: &str,
        table: &str,
    ) -> BTreeMap<String, Vec<Option<String>>> {
        let sql = format!("SELECT ARRAY[{columns}] FROM bucket_brigade.{table}");
        let rows: Vec<(Vec<Option<String>>,)> = sqlx::query_as(AssertSqlSafe(sql))
            .fetch_all(&self.rig.pool)
            .await
            .unwrap();
        let keyed = |(mut row,): (Vec<Option<String>>,)| (row.remove(0).unwrap(), row);
        rows.into_iter().map(keyed).collect()
    }

    async fn compare_tables(&self) {
        let rows = self
            .rig
            .application
            .read_paths(&self.rig.pool)
            .await
            .unwrap();
        assert_eq!(rows, self.table.rows);
        let moves = self
            .dump_table("row_id, old_path, new_path, etag", "moves")
            .await;
        let result = |one: &RecordedMove| {
            [&one.old_path, &one.new_path, &one.etag].map(|text| Some(text.clone()))
        };
        let twin = self.table.moves.iter();
        let twin = twin.map(|(id, one)| (id.clone(), result(one).to_vec()));
        assert_eq!(moves, twin.collect());
        let changes = self.dump_table("row_id, found_path", "changes").await;
        let twin = self.table.changes.iter();
        let twin = twin.map(|(id, path)| (id.clone(), vec![path.clone()]));
        assert_eq!(changes, twin.collect());
        let failures = self
            .dump_table("row_id, path, code, permanent::text", "failures")
            .await;
        let result = |one: &RecordedFailure| {
            [
                one.path.clone(),
                one.code.clone(),
                one.permanent.to_string(),
            ]
            .map(Some)
        };
        let twin = self.table.failures.iter();
        let twin = twin.map(|(id, one)| (id.clone(), result(one).to_vec()));
        assert_eq!(failures, twin.collect());
        let orphans = self.dump_table("destination_key, etag", "orphans").await;
        let twin = self.table.orphans.iter();
        let twin = twin.map(|(key, etag)| (key.clone(), vec![Some(etag.clone())]));
        assert_eq!(orphans, twin.collect());
        let poison = self.dump_table("message_id", "poison").await;
        let poison: BTreeSet<String> = poison.into_keys().collect();
        assert_eq!(poison, self.table.poison);
        self.compare_counters().await;
        let codes = "(SELECT code, sum(failed) FROM bucket_brigade.failure_counts
                       GROUP BY code HAVING sum(failed) <> 0)";
        let counted = "(SELECT code, count(*)::numeric FROM bucket_brigade.failures GROUP BY code)";
        let differences = format!(
            "SELECT count(*) FROM (({codes} EXCEPT {counted}) UNION ALL ({counted} EXCEPT {codes})) AS d"
        );
        assert_eq!(
            self.rig.query_number(&differences).await,
            0,
            "failures by code"
        );
    }

    /// The counters, which are never counted anew, agree with the tables.
    async fn compare_counters(&self) {
        for (name, count) in [
            ("moved", self.table.moves.len()),
            ("changed", self.table.changes.len()),
            ("failed", self.table.failures.len()),
            ("orphans", self.table.orphans.len()),
            ("poison", self.table.poison.len()),
        ] {
            let counted = self.rig.ledger_counter(name).await;
            assert_eq!(counted, i64::try_from(count).unwrap(), "{name}");
        }
    }
}

#[tokio::test]
async fn the_ledger_in_memory_is_the_ledger_on_postgres() {
    for seed in 0..4 {
        let mut twins = LedgerPair::new(seed).await;
        for step in 0..150 {
            println!("seed {seed}, step {step}");
            twins.random_operation().await;
            twins.compare_tables().await;
        }
    }
}
