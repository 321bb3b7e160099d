//! The commands after a migration: verify, report, rollback, clean. The ugly cases first.

mod clean;
mod clean_beside_runs;
mod clean_candidates;
mod clean_costs;
mod concurrent_commands;
mod confirm;
mod interrupted_commands;
mod late_requests;
mod orphans;
mod patience;
mod references;
mod report;
mod reused_names;
mod rights;
mod rollback;
mod runbook;
mod stale_rows;
mod verify;
mod verify_listings;

use bucket_brigade_testbed::process::ChildProcess;
use serde_json::Value;

use crate::rig::{ExitedProcess, TestRig, stop_consumer, wait_for_exit};

/// All orphans, whatever their age.
pub(crate) const CLEAN_ORPHANS: [&str; 6] = [
    "clean",
    "--orphans",
    "--older-than",
    "0s",
    "--confirm",
    "images-new",
];

/// What a command printed with `--json`.
#[derive(Debug)]
pub(crate) struct JsonCommandOutput {
    pub(crate) code: i32,
    pub(crate) json: Value,
}

impl JsonCommandOutput {
    pub(crate) fn number_of(&self, name: &str) -> i64 {
        self.json[name].as_i64().unwrap()
    }

    /// One field of each item of a list, sorted.
    pub(crate) fn sorted_fields(&self, list: &str, field: &str) -> Vec<String> {
        let items = self.json[list].as_array().unwrap().iter();
        let mut texts: Vec<String> = items
            .map(|item| item[field].as_str().unwrap_or("none").to_owned())
            .collect();
        texts.sort();
        texts
    }

    /// The field of the item with this id.
    pub(crate) fn field_of(&self, list: &str, id: &str, field: &str) -> String {
        let items = self.json[list].as_array().unwrap();
        let item = items.iter().find(|item| item["id"] == id);
        item.map_or("not listed", |item| item[field].as_str().unwrap())
            .to_owned()
    }
}

/// As if half an hour went by since all requests to remove.
pub(crate) async fn age_requests(rig: &TestRig) {
    rig.execute_sql(
        "UPDATE bucket_brigade.removals SET removing_at = removing_at - interval '31 minutes'",
    )
    .await;
}

impl TestRig {
    /// Runs a command of the feeder, without logs, and reads its answer.
    pub(crate) async fn run_json_command(&self, arguments: &[&str]) -> JsonCommandOutput {
        let ended = wait_for_exit(&mut self.spawn_json_command(arguments)).await;
        let json = serde_json::from_str(ended.log.trim());
        JsonCommandOutput {
            code: ended.code.unwrap(),
            json: json.unwrap_or_else(|error| panic!("{error}: {}", ended.log)),
        }
    }

    /// Starts a command of the feeder that answers with JSON and is otherwise silent.
    pub(crate) fn spawn_json_command(&self, arguments: &[&str]) -> ChildProcess {
        let arguments = [arguments, &["--json"]].concat();
        self.spawn("feeder", &[("RUST_LOG", "off")], &arguments)
    }

    /// Runs a command as people see it.
    pub(super) async fn run_command(&self, arguments: &[&str]) -> ExitedProcess {
        wait_for_exit(&mut self.spawn("feeder", &[], arguments)).await
    }

    /// Moves all that is in scope, by a feeder and a consumer.
    pub(crate) async fn run_migration(&self) {
        let consumer = self.spawn_consumer(&[("CONDITIONAL_COPY", "on")]);
        let ended = self.run_program("feeder", &[]).await;
        assert!(matches!(ended.code, Some(0 | 2)), "{}", ended.log);
        stop_consumer(consumer).await;
    }

    /// So many images, moved.
    pub(crate) async fn add_moved_images(&self, count: usize) -> Vec<String> {
        let ids = self.add_images(count).await;
        self.run_migration().await;
        assert_eq!(
            self.count_rows("moves").await,
            i64::try_from(count).unwrap()
        );
        ids
    }

    /// Rows with both objects and their evidence, without the way there: for many rows.
    pub(super) async fn insert_moved_rows(&self, count: usize) {
        self.open_run().await;
        // All sources before all copies, as it was.
        for (bucket, prefix) in [("images-old", "image"), ("images-new", "avatar")] {
            for number in 0..count {
                let key = format!("{prefix}/{number}.png");
                self.put_object(bucket, &key, b"one for all").await;
            }
        }
        // The MD5 of these bytes, which is what S3 has for an ETag.
        self.execute_sql(&format!(
            "INSERT INTO images (path) SELECT 'avatar/' || n || '.png' FROM generate_series(0, {count} - 1) n;
             INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
             SELECT 1, id::text, replace(path, 'avatar/', 'image/'), path, md5('one for all'), 'test' FROM images;
             INSERT INTO bucket_brigade.counters (run_id, worker, moved) VALUES (1, 'test', {count})"
        ))
        .await;
    }

    pub(crate) async fn object_exists(&self, bucket: &str, key: &str) -> bool {
        let head = self.cloud.s3_client().head_object().bucket(bucket).key(key);
        head.send().await.is_ok()
    }

    pub(crate) async fn delete_object(&self, bucket: &str, key: &str) {
        let delete = self
            .cloud
            .s3_client()
            .delete_object()
            .bucket(bucket)
            .key(key);
        delete.send().await.unwrap();
    }

    pub(crate) async fn set_path(&self, id: &str, path: &str) {
        self.execute_sql(&format!(
            "UPDATE images SET path = '{path}' WHERE id = {id}"
        ))
        .await;
    }

    /// The counters say what the tables hold.
    pub(crate) async fn assert_counts_agree(&self) {
        for (counter, table) in [
            ("moved", "moves"),
            ("orphans", "orphans"),
            ("failed", "failures"),
        ] {
            assert_eq!(
                self.ledger_counter(counter).await,
                self.count_rows(table).await,
                "{table}"
            );
        }
    }
}
