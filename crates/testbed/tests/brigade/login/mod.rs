//! Passwords that change while everything runs, and tokens of RDS.

mod iam_server;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::{CloudOptions, Cluster};

use self::iam_server::IamServer;
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// The role whose password is asked for; all others are trusted.
const USER: &str = "mover";

fn url_of(rig: &TestRig, user: &str, port: u16, query: &str) -> String {
    let database = rig.application.database_url.rsplit('/').next().unwrap();
    format!("postgres://{user}@127.0.0.1:{port}/{database}{query}")
}

async fn start_with_password(password: &str) -> (Cluster, TestRig) {
    let cluster = Cluster::start().await.unwrap();
    let rules =
        format!("host all {USER} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n");
    std::fs::write(cluster.directory().join("data/pg_hba.conf"), rules).unwrap();
    cluster.restart().await.unwrap();
    let (options, queue) = (CloudOptions::default(), CreateQueueOptions::default());
    let rig = TestRig::on_cluster(&cluster, options, queue).await;
    rig.application.create_table(&rig.pool).await.unwrap();
    rig.execute_sql(&format!(
        "CREATE ROLE {USER} LOGIN SUPERUSER PASSWORD '{password}'"
    ))
    .await;
    (cluster, rig)
}

/// Moves a row, ends every session, moves another, and once more while nothing is down.
async fn assert_goes_on(rig: &TestRig, settings: &[(&str, &str)], change_password: impl AsyncFn()) {
    let settings = [settings, &[("WATCH_INTERVAL", "100ms")]].concat();
    rig.add_image("image/first.png").await;
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let consumer = rig.spawn_consumer(&settings[..settings.len() - 1]);
    wait_until("the first move", async || {
        rig.count_rows("moves").await == 1
    })
    .await;
    change_password().await;
    rig.add_image("image/second.png").await;
    wait_until("the second move", async || {
        rig.count_rows("moves").await == 2
    })
    .await;
    let listed = rig.run_program_with("feeder", &settings, &["runs"]).await;
    assert_eq!(listed.code, Some(0), "{}", listed.log);
    feeder.terminate().unwrap();
    let ended = wait_for_exit(&mut feeder).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    stop_consumer(consumer).await;
    assert_eq!(rig.count_rows("failures").await, 0);
}

fn write_secret(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// `format` makes the file's text of a password.
async fn assert_survives_rotation(setting: &str, format: fn(&str) -> String) {
    let (cluster, rig) = start_with_password("first").await;
    let file = cluster.directory().join("secret");
    write_secret(&file, &format("first"));
    let url = url_of(&rig, USER, cluster.port(), "");
    let settings = [("DATABASE_URL", &*url), (setting, file.to_str().unwrap())];
    let rotate = async || {
        rig.execute_sql(&format!(
            "ALTER ROLE {USER} PASSWORD 'second';
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{USER}'"
        ))
        .await;
        let log = cluster.directory().join("server.log");
        wait_until("a refusal", async || {
            let log = std::fs::read_to_string(&log).unwrap();
            log.contains("password authentication failed")
        })
        .await;
        write_secret(&file, &format("second"));
    };
    assert_goes_on(&rig, &settings, rotate).await;
}

#[tokio::test]
async fn a_password_file_is_read_again() {
    assert_survives_rotation("DATABASE_PASSWORD_FILE", |password| format!("{password}\n")).await;
}

#[tokio::test]
async fn libpqs_password_file_is_read_again() {
    assert_survives_rotation("PGPASSFILE", |password| {
        format!("*:*:*:{USER}:{password}\n")
    })
    .await;
}

#[tokio::test]
async fn rds_gets_a_fresh_token_for_each_connection() {
    let cluster = Cluster::shared().await;
    let rig = TestRig::new().await;
    let server = IamServer::start(cluster.port()).await;
    let url = url_of(&rig, "postgres", server.port, "?sslmode=require");
    let settings = [("DATABASE_URL", &*url), ("DATABASE_AUTH", "iam")];
    assert_goes_on(&rig, &settings, async || server.expire_tokens()).await;
    let wrong = [&settings[..], &[("AWS_SECRET_ACCESS_KEY", "another")]].concat();
    let ended = rig.run_program("feeder", &wrong).await;
    assert_eq!(ended.code, Some(69), "{}", ended.log);
    assert!(ended.log.contains("rds-db:connect"), "{}", ended.log);
}

#[tokio::test]
async fn a_login_that_cannot_be_is_refused() {
    let rig = TestRig::new().await;
    let (plain, iam) = (
        rig.application.database_url.clone(),
        ("DATABASE_AUTH", "iam"),
    );
    let encrypted = format!("{plain}?sslmode=require");
    let (missing, no_key) = ("/nonexistent", ("AWS_ACCESS_KEY_ID", "-"));
    for (url, settings, code, words) in [
        (
            &plain,
            vec![iam],
            64,
            "DATABASE_AUTH: iam sends its token over TLS alone",
        ),
        (
            &plain,
            vec![("DATABASE_AUTH", "kerberos")],
            64,
            "DATABASE_AUTH: 'kerberos'",
        ),
        (
            &plain,
            vec![("DATABASE_PASSWORD_FILE", missing)],
            64,
            "DATABASE_PASSWORD_FILE: '/nonexistent'",
        ),
        (
            &encrypted,
            vec![iam, ("DATABASE_PASSWORD_FILE", missing)],
            64,
            "DATABASE_PASSWORD_FILE: is given beside",
        ),
        (
            &encrypted,
            vec![iam, no_key, ("AWS_EC2_METADATA_DISABLED", "true")],
            69,
            "DATABASE_AUTH=iam: no credentials",
        ),
    ] {
        let settings = [&[("DATABASE_URL", &**url)], &*settings].concat();
        let ended = rig.run_program_with("feeder", &settings, &["runs"]).await;
        assert_eq!(ended.code, Some(code), "{words}: {}", ended.log);
        assert!(ended.log.contains(words), "{words}: {}", ended.log);
    }
}

#[tokio::test]
async fn a_role_that_has_no_connection_left_is_named() {
    let rig = TestRig::new().await;
    let role = format!("limited_{:x}", fastrand::u64(..));
    rig.execute_sql(&format!(
        "CREATE ROLE {role} LOGIN CONNECTION LIMIT 1; GRANT ALL ON images TO {role};
         DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO {role}', current_database()); END $$"
    ))
    .await;
    let url = url_of(&rig, &role, Cluster::shared().await.port(), "");
    let ended = rig.run_program("feeder", &[("DATABASE_URL", &url)]).await;
    assert_eq!(ended.code, Some(69), "{}", ended.log);
    let words = format!("too many connections for role \"{role}\"");
    assert!(ended.log.contains(&words), "{}", ended.log);
}
