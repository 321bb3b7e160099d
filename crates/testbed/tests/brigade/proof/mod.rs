//! The commands after a migration: verify, report, rollback, clean. The ugly cases first.

mod at_once;
mod clean;
mod confirm;
mod cut_off;
mod orphans;
mod report;
mod rights;
mod rollback;
mod runbook;
mod verify;

use bucket_brigade_testbed::process::Process;
use serde_json::Value;

use crate::rig::{Ended, Rig, end, stop};

/// What a command answered with `--json`.
pub(super) struct Told {
    pub(super) code: i32,
    pub(super) json: Value,
}

impl Told {
    pub(super) fn number(&self, name: &str) -> i64 {
        self.json[name].as_i64().unwrap()
    }

    /// One field of each item of a list, sorted.
    pub(super) fn each(&self, list: &str, field: &str) -> Vec<String> {
        let items = self.json[list].as_array().unwrap().iter();
        let mut texts: Vec<String> = items
            .map(|item| item[field].as_str().unwrap_or("none").to_owned())
            .collect();
        texts.sort();
        texts
    }

    /// The field of the item with this id.
    pub(super) fn of(&self, list: &str, id: &str, field: &str) -> String {
        let items = self.json[list].as_array().unwrap();
        let item = items.iter().find(|item| item["id"] == id);
        item.map_or("not listed", |item| item[field].as_str().unwrap())
            .to_owned()
    }
}

impl Rig {
    /// Runs a command of the feeder, without logs, and reads its answer.
    pub(super) async fn tell(&self, arguments: &[&str]) -> Told {
        let ended = end(&mut self.begin(arguments)).await;
        let json = serde_json::from_str(ended.log.trim());
        Told {
            code: ended.code.unwrap(),
            json: json.unwrap_or_else(|error| panic!("{error}: {}", ended.log)),
        }
    }

    /// Starts a command of the feeder that answers with JSON and is otherwise silent.
    pub(super) fn begin(&self, arguments: &[&str]) -> Process {
        let arguments = [arguments, &["--json"]].concat();
        self.spawn("feeder", &[("RUST_LOG", "off")], &arguments)
    }

    /// Runs a command as people see it.
    pub(super) async fn command(&self, arguments: &[&str]) -> Ended {
        end(&mut self.spawn("feeder", &[], arguments)).await
    }

    /// Moves all that is in scope, by a feeder and a consumer.
    pub(super) async fn migrate(&self) {
        let consumer = self.consumer(&[("CONDITIONAL_COPY", "on")]);
        let ended = self.run("feeder", &[]).await;
        assert!(matches!(ended.code, Some(0 | 2)), "{}", ended.log);
        stop(consumer).await;
    }

    /// So many images, moved.
    pub(super) async fn moved(&self, count: usize) -> Vec<String> {
        let ids = self.images(count).await;
        self.migrate().await;
        assert_eq!(self.count("moves").await, i64::try_from(count).unwrap());
        ids
    }

    /// Rows with both objects and their evidence, without the way there: for many rows.
    pub(super) async fn moved_in_the_ledger(&self, count: usize) {
        self.open_run().await;
        // All sources before all copies, as it was.
        for (bucket, prefix) in [("images-old", "image"), ("images-new", "avatar")] {
            for number in 0..count {
                let key = format!("{prefix}/{number}.png");
                self.object(bucket, &key, b"one for all").await;
            }
        }
        // The MD5 of these bytes, which is what S3 has for an ETag.
        self.sql(&format!(
            "INSERT INTO images (path) SELECT 'avatar/' || n || '.png' FROM generate_series(0, {count} - 1) n;
             INSERT INTO bucket_brigade.moves (run_id, row_id, old_path, new_path, etag, consumer)
             SELECT 1, id::text, replace(path, 'avatar/', 'image/'), path, md5('one for all'), 'test' FROM images;
             INSERT INTO bucket_brigade.counters (run_id, worker, moved) VALUES (1, 'test', {count})"
        ))
        .await;
    }

    pub(super) async fn exists(&self, bucket: &str, key: &str) -> bool {
        let head = self.cloud.s3().head_object().bucket(bucket).key(key);
        head.send().await.is_ok()
    }

    pub(super) async fn remove(&self, bucket: &str, key: &str) {
        let delete = self.cloud.s3().delete_object().bucket(bucket).key(key);
        delete.send().await.unwrap();
    }

    pub(super) async fn set_path(&self, id: &str, path: &str) {
        self.sql(&format!(
            "UPDATE images SET path = '{path}' WHERE id = {id}"
        ))
        .await;
    }

    /// The counters say what the tables hold.
    pub(super) async fn counts_agree(&self) {
        for (counter, table) in [
            ("moved", "moves"),
            ("orphans", "orphans"),
            ("failed", "failures"),
        ] {
            assert_eq!(
                self.counter(counter).await,
                self.count(table).await,
                "{table}"
            );
        }
    }
}
