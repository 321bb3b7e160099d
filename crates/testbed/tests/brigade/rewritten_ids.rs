//! Triggers that give a row another id, or another partition: the row fails alone.

use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::cloud::CreateQueueOptions;

use crate::rig::{TestRig, stop_consumer};

/// Rows of a table that is partitioned by a column of their ids, on which this trigger works.
async fn partitioned_rig(trigger: &str) -> TestRig {
    let mut rig =
        TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
    rig.application.table.id_column = "id,kind".into();
    rig.execute_sql(&format!(
        "CREATE TABLE images (id bigint GENERATED ALWAYS AS IDENTITY, kind text DEFAULT 'a', path text,
            PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
         CREATE TABLE images_a PARTITION OF images FOR VALUES IN ('a');
         CREATE TABLE images_b PARTITION OF images FOR VALUES IN ('b');
         CREATE TABLE images_c PARTITION OF images FOR VALUES IN ('c');
         CREATE FUNCTION set_kind() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            NEW.kind := TG_ARGV[0]; RETURN NEW; END $$;
         {trigger}"
    ))
    .await;
    rig.add_images(20).await;
    rig
}

const MOVE_ROW: &str =
    "CREATE TRIGGER set_kind BEFORE UPDATE ON images_a FOR EACH ROW WHEN (OLD.id = 7)
    EXECUTE FUNCTION set_kind('b');";

#[tokio::test]
async fn a_row_that_may_not_change_its_partition_fails_alone() {
    let on_arrival =
        "CREATE TRIGGER set_other BEFORE INSERT ON images FOR EACH ROW WHEN (NEW.kind = 'b')
        EXECUTE FUNCTION set_kind('c');";
    let rig = partitioned_rig(&format!("{MOVE_ROW} {on_arrival}")).await;
    expect_one_failure(&rig, IN_PARTITION, "0A000").await;
}

#[tokio::test]
async fn a_row_whose_id_a_trigger_changes_fails_alone() {
    let rig = partitioned_rig(MOVE_ROW).await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(plan.output.contains("IdRewritten"), "{}", plan.output);
    expect_one_failure(&rig, IN_PARTITION, "IdRewritten").await;
}

#[tokio::test]
async fn a_row_whose_id_a_late_trigger_changes_fails_alone() {
    let rig = TestRig::new().await;
    rig.add_images(20).await;
    rig.execute_sql(
        "ALTER TABLE images ALTER COLUMN id DROP IDENTITY;
         CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            UPDATE images SET id = 70 WHERE id = NEW.id; RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER renumber AFTER UPDATE ON images DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW WHEN (NEW.id = 7) EXECUTE FUNCTION renumber()",
    )
    .await;
    let plan = rig.run_feeder(&["plan"]).await;
    assert!(plan.output.contains("IdRewritten"), "{}", plan.output);
    expect_one_failure(&rig, "7", "IdRewritten").await;
}

const IN_PARTITION: &str = "[7, \"a\"]";

/// That of row 7 of twenty.
async fn expect_one_failure(rig: &TestRig, id: &str, code: &str) {
    let consumer = rig.spawn_consumer(&[]);
    let ended = rig.run_program("feeder", &[]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert_eq!(rig.count_rows("moves").await, 19);
    assert_eq!(rig.failure_code(id).await.unwrap(), code);
    stop_consumer(consumer).await;
}
