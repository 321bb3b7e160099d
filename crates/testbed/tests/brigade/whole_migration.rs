//! A migration from its plan to the removal of the sources, by the real programs while an application uses the
//! images; the checker at the end. What each command refuses has tests of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_testbed::checker::check_invariants_after_clean;
use bucket_brigade_testbed::cloud::{CreateQueueOptions, FaultHandle};
use bucket_brigade_testbed::picture::random_png;
use bucket_brigade_testbed::process::ChildProcess;
use bucket_brigade_testbed::seed::{SeedOptions, SeededRowKind, SeededRows, seed_images};
use bucket_brigade_testbed::traffic::{Traffic, TrafficRates};
use bucket_brigade_testbed::{CloudOptions, Fault, FaultEffect};

use crate::proof::JsonCommandOutput;
use crate::rig::{TestRig, stop_consumer};

const IMAGES: usize = 1000;
/// Slow enough that the application writes while images move.
const COPY_DURATION: Duration = Duration::from_millis(50);
const CLEAN: [&str; 5] = ["clean", "--older-than", "0s", "--confirm", "images-old"];

struct MigrationTest {
    rig: TestRig,
    seeded: SeededRows,
    traffic: Traffic,
    /// Old paths whose sources clean has removed.
    removed: BTreeSet<String>,
    _slow_copies: FaultHandle,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_from_the_plan_to_the_removal_of_the_sources() {
    let mut test = MigrationTest::set_up().await;
    test.plan().await;
    let consumers = [(); 2].map(|()| test.rig.spawn_consumer(&[("MAX_CONCURRENCY", "16")]));
    test.move_canary().await;
    test.move_all().await;
    test.retry_failed().await;
    test.report().await;
    let rolled_back = test.roll_back_some().await;
    test.move_again(&rolled_back).await;
    test.clean(&rolled_back).await;
    test.check(consumers).await;
}

impl MigrationTest {
    async fn set_up() -> Self {
        let rig =
            TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
        let images = SeedOptions {
            largest_bytes: 8 * 1024,
            ..SeedOptions::new(IMAGES)
        };
        let seeded = seed_images(&rig.application, &images).await.unwrap();
        let missing = seeded.rows_of_kind(SeededRowKind::Missing);
        let rates = TrafficRates {
            max_writes: 0,
            excluded_rows: missing.map(|row| row.id.clone()).collect(),
            ..TrafficRates::default()
        };
        let rows = Arc::new(seeded.clone());
        let slow = Fault::new("CopyObject", FaultEffect::Delay(COPY_DURATION));
        Self {
            traffic: Traffic::start(&rig.application, rows, &rates)
                .await
                .unwrap(),
            _slow_copies: rig.cloud.inject_fault(slow.caller("consumer")),
            seeded,
            removed: BTreeSet::new(),
            rig,
        }
    }

    async fn plan(&self) {
        let plan = self.run(&["plan"], &[0]).await;
        let (rows, count) = (&plan.json["rows"], |kind| self.seeded.count_kind(kind));
        let in_scope = count(SeededRowKind::ToMove) + count(SeededRowKind::Missing);
        assert_eq!(rows["in_scope"], in_scope);
        assert_eq!(rows["moved_already"], count(SeededRowKind::AlreadyMoved));
        assert_eq!(rows["outside"], count(SeededRowKind::Outside));
        assert_eq!(plan.number_of("failing"), 0);
    }

    /// One per cent, and nothing else is touched.
    async fn move_canary(&self) {
        self.traffic.allow_writes(10);
        self.feed(&["--sample", "1"]).await;
        let (moves, paths, written) = (self.moves().await, self.paths().await, self.written());
        assert!((1..=30).contains(&moves.len()), "{} moved", moves.len());
        for row in &self.seeded.rows {
            let is_known = moves.contains_key(&row.id) || written.contains(&row.id);
            assert!(is_known || paths.get(&row.id) == Some(&row.path), "{row:?}");
        }
        self.verify(&["verify"]).await;
    }

    async fn move_all(&self) {
        self.traffic.allow_writes(50);
        assert_eq!(self.feed(&[]).await, 2, "some images are missing");
        assert_eq!(
            self.unchanged(SeededRowKind::ToMove).await,
            BTreeSet::new(),
            "all that exist have moved"
        );
    }

    /// Every other missing image is uploaded; the others fail again.
    async fn retry_failed(&mut self) {
        let missing = self.unchanged(SeededRowKind::Missing).await;
        assert_eq!(self.failed().await, missing);
        let mut random = fastrand::Rng::with_seed(7);
        let rows = self.seeded.rows.iter_mut();
        for row in rows.filter(|row| missing.contains(&row.id)).step_by(2) {
            let (application, bytes) = (&self.rig.application, random_png(&mut random, 4096));
            let uploaded = self
                .traffic
                .upload_missing(application, row, bytes.unwrap());
            *row = uploaded.await.unwrap();
        }
        let retried = self.run(&["retry", "--yes"], &[0]).await;
        assert_eq!(retried.json["rows"], missing.len());
        assert_eq!(self.feed(&[]).await, 2, "some are still missing");
        assert_eq!(self.unchanged(SeededRowKind::ToMove).await, BTreeSet::new());
        let missing = self.unchanged(SeededRowKind::Missing).await;
        assert_eq!(self.failed().await, missing);
    }

    async fn report(&self) {
        self.traffic.allow_writes(60);
        self.verify(&["verify", "--full"]).await;
        let report = self.rig.run_feeder(&["report", "--format", "csv"]).await;
        for (state, table) in [
            ("moved", "moves"),
            ("changed", "changes"),
            ("failed", "failures"),
        ] {
            let is_of_state = |line: &&str| line.split(',').nth(1) == Some(state);
            let lines = i64::try_from(report.output.lines().filter(is_of_state).count());
            assert_eq!(lines, Ok(self.rig.count_rows(table).await), "{state}");
        }
    }

    /// Ours go back, and rows that the application has written since their move stay. The old paths of those
    /// that went back, by row.
    async fn roll_back_some(&self) -> BTreeMap<String, String> {
        let (moves, before, written) = (self.moves().await, self.paths().await, self.written());
        let (theirs, ours): (Vec<_>, Vec<_>) =
            moves.into_iter().partition(|(id, _)| written.contains(id));
        assert!(!theirs.is_empty(), "the application wrote no moved row");
        let ours = ours.into_iter().step_by(IMAGES / 50);
        let mut chosen: BTreeMap<_, _> = ours.chain(theirs.clone()).collect();
        let mut command = vec!["rollback", "--ids"];
        command.extend(chosen.keys().map(String::as_str));
        let preview = self.run(&command, &[0, 2]).await;
        assert_eq!(preview.json["done"], false);
        assert_eq!(self.rig.count_rows("rollbacks").await, 0);
        command.push("--yes");
        let done = self.run(&command, &[0, 2]).await;
        let left = done.sorted_fields("left_alone", "id");
        assert_eq!(done.json["rolled_back"], chosen.len() - left.len());
        assert!(theirs.iter().all(|(id, _)| left.contains(id)), "{left:?}");
        chosen.retain(|id, _| !left.contains(id));
        let (after, written) = (self.paths().await, self.written());
        assert!(left.iter().all(|id| written.contains(id)), "{left:?}");
        for (id, path) in &before {
            let expected = chosen.get(id).unwrap_or(path);
            assert!(
                after.get(id) == Some(expected) || written.contains(id),
                "{id}"
            );
        }
        chosen
    }

    async fn move_again(&self, rolled_back: &BTreeMap<String, String>) {
        self.feed(&[]).await;
        let (paths, written) = (self.paths().await, self.written());
        for (id, old) in rolled_back {
            let has_moved = paths.get(id) == Some(&new_path(old));
            assert!(has_moved || written.contains(id), "{id}");
        }
    }

    /// What moved again is not verified since, so its sources stay until it is.
    async fn clean(&mut self, moved_again: &BTreeMap<String, String>) {
        let sources = self.rig.cloud.count_objects("images-old");
        let preview = self.run(&CLEAN[..3], &[0]).await;
        assert_eq!(preview.json["done"], false);
        assert_eq!(self.rig.cloud.count_objects("images-old"), sources);
        let gone = self.confirm_clean().await;
        let moves = self.moves().await;
        let mut again = moved_again.iter().filter(|(id, _)| moves.contains_key(*id));
        assert!(again.all(|(_, path)| !gone.contains(path)));
        self.verify(&["verify", "--full"]).await;
        assert_ne!(self.confirm_clean().await, BTreeSet::new());
        assert!(self.removed.len() > IMAGES / 2);
        self.verify(&["verify", "--full"]).await;
    }

    /// Removes exactly the sources that may go; what the application does meanwhile makes them fewer.
    async fn confirm_clean(&mut self) -> BTreeSet<String> {
        let before = self.rig.cloud.list_etags("images-old");
        let might_go = self.removable(&before).await;
        let done = self.run(&CLEAN, &[0, 2]).await;
        let still_may = self.removable(&before).await;
        let after = self.rig.cloud.list_etags("images-old");
        let gone = before.into_keys().filter(|path| !after.contains_key(path));
        let gone: BTreeSet<String> = gone.collect();
        assert_eq!(done.json["removed"], gone.len());
        assert!(gone.is_subset(&might_go), "{:?}", &gone - &might_go);
        assert!(still_may.is_subset(&gone), "{:?}", &still_may - &gone);
        self.removed.extend(gone.iter().cloned());
        gone
    }

    /// By rows, objects and times on record: moved off, verified since, the copy as it was or the application's by
    /// now, the source as it was, named by no row.
    async fn removable(&self, sources: &BTreeMap<String, String>) -> BTreeSet<String> {
        let settled = "SELECT old_path, bool_or(verified_at > moved_at) IS TRUE, max(source_etag)
            FROM bucket_brigade.moves GROUP BY old_path
            HAVING bool_and(coalesce(verified_at > moved_at OR abandoned_at > moved_at, false))";
        let settled = sqlx::query_as(settled).fetch_all(&self.rig.pool);
        let named: BTreeSet<String> = self.paths().await.into_values().collect();
        let copies = self.rig.cloud.list_etags("images-new");
        let is_removable = |(path, has_copy, etag): &(String, bool, Option<String>)| {
            let is_copied = !has_copy || copies.get(&new_path(path)) == etag.as_ref();
            is_copied && sources.get(path) == etag.as_ref() && !named.contains(path)
        };
        let settled: Vec<(String, bool, Option<String>)> = settled.await.unwrap();
        let removable = settled.into_iter().filter(|one| is_removable(one));
        let there = removable.filter(|(path, ..)| sources.contains_key(path));
        there.map(|(path, ..)| path).collect()
    }

    async fn check(self, consumers: [ChildProcess; 2]) {
        for consumer in consumers {
            stop_consumer(consumer).await;
        }
        let traffic = self.traffic.stop().await;
        let (application, removed) = (&self.rig.application, self.removed.iter());
        let removed = removed.map(|path| application.location_of(path)).collect();
        let log = &traffic.log;
        let checked = check_invariants_after_clean(application, &self.seeded, log, &removed);
        let report = checked.await.unwrap();
        assert_eq!(report.violations, Vec::<String>::new());
        assert_eq!(traffic.broken_read_details, Vec::<String>::new());
        assert_eq!(traffic.write_errors, 0);
        assert!(traffic.reads > 0 && traffic.application_writes > 0 && traffic.deletes > 0);
        assert!(report.failed > 0, "{report:?}");
    }

    async fn run(&self, arguments: &[&str], codes: &[i32]) -> JsonCommandOutput {
        let output = self.rig.run_json_command(arguments).await;
        assert!(codes.contains(&output.code), "{arguments:?}: {output:?}");
        output
    }

    async fn feed(&self, arguments: &[&str]) -> i32 {
        let ended = self.rig.run_feeder(arguments).await;
        assert!(matches!(ended.code, 0 | 2), "{}", ended.log);
        self.rig.wait_until_drained().await;
        ended.code
    }

    /// All moves are checked. What is found wrong is what the application did: rows without an image. An image that
    /// it replaced under the very key of our copy is its own.
    async fn verify(&self, arguments: &[&str]) {
        let moves = self.rig.count_rows("moves").await;
        let missing = self.unchanged(SeededRowKind::Missing).await;
        let verified = self.run(arguments, &[0, 1]).await;
        assert_eq!(verified.number_of("checked"), moves);
        for mismatch in verified.json["mismatches"].as_array().unwrap() {
            let id = mismatch["id"].as_str().unwrap();
            let is_known = mismatch["code"] == "NoObject" && missing.contains(id);
            assert!(is_known, "{mismatch}");
        }
        let found = verified.sorted_fields("mismatches", "id");
        assert_eq!(verified.code, i32::from(!found.is_empty()));
        let is_full = arguments.contains(&"--full");
        assert!(!is_full || missing.iter().all(|id| found.contains(id)));
    }

    async fn failed(&self) -> BTreeSet<String> {
        let failures = self.run(&["failures", "--limit", "1000000"], &[2]).await;
        let rows = failures.sorted_fields("failures", "row_id");
        rows.into_iter().collect()
    }

    /// Old paths by row.
    async fn moves(&self) -> BTreeMap<String, String> {
        let query = sqlx::query_as("SELECT row_id, old_path FROM bucket_brigade.moves");
        let rows: Vec<(String, String)> = query.fetch_all(&self.rig.pool).await.unwrap();
        rows.into_iter().collect()
    }

    async fn paths(&self) -> BTreeMap<String, String> {
        let application = &self.rig.application;
        application.read_paths(&self.rig.pool).await.unwrap()
    }

    /// Rows of a kind that still are as they were seeded.
    async fn unchanged(&self, kind: SeededRowKind) -> BTreeSet<String> {
        let paths = self.paths().await;
        let rows = self.seeded.rows_of_kind(kind);
        let rows = rows.filter(|row| paths.get(&row.id) == Some(&row.path));
        rows.map(|row| row.id.clone()).collect()
    }

    fn written(&self) -> BTreeSet<String> {
        self.traffic.write_log().rows.into_keys().collect()
    }
}

fn new_path(path: &str) -> String {
    path.replacen("image/", "avatar/", 1)
}
