//! The README's SQL is all that feeder, consumers and commands need of the database.

use crate::rig::{TestRig, stop_consumer};

/// The README's first block of that language.
fn sql_block() -> &'static str {
    let readme = include_str!("../../../../README.md");
    let (_, rest) = readme.split_once("```sql\n").unwrap();
    rest.split_once("\n```").unwrap().0
}

#[tokio::test]
async fn the_roles_of_the_readme_suffice_for_everything() {
    let rig = TestRig::new().await;
    rig.add_images(30).await;
    let suffix = format!("_{:x}", fastrand::u64(..));
    let role = |name: &str| format!("brigade_{name}{suffix}");
    let (feeder, consumer) = (role("feeder"), role("consumer"));
    let sql = sql_block()
        .replace("brigade_feeder", &feeder)
        .replace("brigade_consumer", &consumer);
    // As on RDS: the table's owner, who is no superuser.
    let owner = role("owner");
    rig.execute_sql(&format!(
        "CREATE ROLE {owner} CREATEROLE; ALTER TABLE images OWNER TO {owner};
         GRANT CREATE ON SCHEMA public TO {owner};
         DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {owner}', current_database()); END $$;
         SET ROLE {owner};
         {sql}
         RESET ROLE"
    ))
    .await;
    let (feeder_url, consumer_url) = (rig.url_as(&feeder), rig.url_as(&consumer));
    let settings = [("DATABASE_URL", feeder_url.as_str())];
    let run = async |arguments: &[&str]| {
        let ended = rig.run_program_with("feeder", &settings, arguments).await;
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.log);
    };
    run(&["plan", "--as-role", &consumer]).await;
    let at_work = rig.spawn_consumer(&[("DATABASE_URL", &consumer_url)]);
    run(&["--limit", "10"]).await;
    run(&[]).await;
    stop_consumer(at_work).await;
    run(&["verify", "--full"]).await;
    run(&["rollback", "--since", "1h", "--yes"]).await;
    rig.execute_sql(&format!("REVOKE {consumer} FROM {feeder}"))
        .await;
    let at_work = rig.spawn_consumer(&[("DATABASE_URL", &consumer_url)]);
    run(&[]).await;
    stop_consumer(at_work).await;
    run(&["verify"]).await;
    let undo = ["rollback", "--all", "--yes"];
    let refused = rig.run_program_with("feeder", &settings, &undo).await;
    assert_eq!(refused.code, Some(77), "{}", refused.log);
    run(&["clean", "--older-than", "0s", "--confirm", "images-old"]).await;
    assert_eq!(rig.cloud.count_objects("images-old"), 0);
}
