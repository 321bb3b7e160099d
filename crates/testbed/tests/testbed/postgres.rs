//! The private Postgres: isolation, outages, and that nothing of it is left behind.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use bucket_brigade_testbed::postgres::Cluster;
use sqlx::{Connection, PgConnection};

async fn answers(url: &str) -> bool {
    match PgConnection::connect(url).await {
        Ok(mut connection) => connection.ping().await.is_ok(),
        Err(_) => false,
    }
}

#[tokio::test]
async fn databases_are_separate() -> Result<()> {
    let cluster = Cluster::shared().await;
    let (one, other) = (
        cluster.create_database().await?,
        cluster.create_database().await?,
    );
    assert_ne!(one, other);
    let mut connection = PgConnection::connect(&one).await?;
    sqlx::query("CREATE TABLE t (id int)")
        .execute(&mut connection)
        .await?;
    let mut connection = PgConnection::connect(&other).await?;
    sqlx::query("CREATE TABLE t (id int)")
        .execute(&mut connection)
        .await?;
    Ok(())
}

#[tokio::test]
async fn an_outage_keeps_data_and_port() -> Result<()> {
    let cluster = Cluster::start().await?;
    let url = cluster.create_database().await?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("CREATE TABLE t (id int)")
        .execute(&mut connection)
        .await?;
    cluster.stop().await?;
    assert!(!answers(&url).await);
    cluster.start_again().await?;
    cluster.restart().await?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query("SELECT id FROM t")
        .execute(&mut connection)
        .await?;
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_after_a_drop() -> Result<()> {
    let cluster = Cluster::start().await?;
    let (directory, url) = (cluster.directory().to_owned(), cluster.url("postgres"));
    assert!(answers(&url).await);
    drop(cluster);
    assert!(!directory.exists() && !answers(&url).await);
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_after_sigkill() -> Result<()> {
    let own = std::env::current_exe()?;
    let mut child = Command::new(own)
        .args([
            "--exact",
            "postgres::holds_a_cluster",
            "--ignored",
            "--nocapture",
        ])
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().expect("it is piped");
    let line = BufReader::new(stdout)
        .lines()
        .map_while(Result::ok)
        .find(|line| line.contains("cluster at "));
    let line = line.expect("the child prints where its cluster is");
    let (directory, url) = line
        .split_once("cluster at ")
        .unwrap()
        .1
        .split_once(' ')
        .unwrap();
    assert!(Path::new(directory).exists() && answers(url).await);
    child.kill()?;
    child.wait()?;
    let begun = Instant::now();
    while Path::new(directory).exists() || answers(url).await {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{directory} is still there"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The child of the test above.
#[tokio::test]
#[ignore = "runs until it is killed"]
async fn holds_a_cluster() -> Result<()> {
    let cluster = Cluster::shared().await;
    let directory = cluster.directory().display();
    writeln!(
        std::io::stdout(),
        "cluster at {directory} {}",
        cluster.url("postgres")
    )?;
    std::future::pending::<()>().await;
    Ok(())
}
