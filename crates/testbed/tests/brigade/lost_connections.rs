//! A connection to Postgres that breaks at any moment of a start: the process goes on by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// More answers than a start takes.
const ANSWER_COUNT: usize = 45;

/// A proxy in front of Postgres that breaks one connection instead of passing on its `at`-th answer,
/// counted over all connections. Returns the URL that leads through it.
async fn start_breaking_proxy(url: &str, at: usize) -> String {
    let (front, rest) = url.rsplit_once(':').unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let server: u16 = server.parse().unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answers = Arc::new(AtomicUsize::new(0));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(proxy_connection(client, server, Arc::clone(&answers), at));
        }
    });
    format!("{front}:{port}/{database}")
}

async fn proxy_connection(client: TcpStream, server: u16, answers: Arc<AtomicUsize>, at: usize) {
    let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from_server.read(&mut buffer).await {
            if answers.fetch_add(1, Ordering::Relaxed) + 1 == at
                || to_client.write_all(&buffer[..count]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        () = there => {}
        () = back => {}
    }
}

#[tokio::test]
async fn at_any_moment_of_the_feeders_start() {
    futures::stream::iter((1..=ANSWER_COUNT).step_by(3))
        .for_each_concurrent(3, async |at| {
            let rig = TestRig::new().await;
            rig.add_images(3).await;
            let consumer = rig.spawn_consumer(&[]);
            let url = start_breaking_proxy(&rig.application.database_url, at).await;
            let mut feeder = rig.spawn("feeder", &[("DATABASE_URL", &url)], &[]);
            let ended = wait_for_exit(&mut feeder).await;
            assert_eq!(ended.code, Some(0), "answer {at}: {}", ended.log);
            assert_eq!(rig.count_rows("moves").await, 3, "answer {at}");
            stop_consumer(consumer).await;
        })
        .await;
}

#[tokio::test]
async fn at_any_moment_of_the_consumers_start() {
    futures::stream::iter((2..=ANSWER_COUNT).step_by(3))
        .for_each_concurrent(3, async |at| {
            let rig = TestRig::new().await;
            rig.open_run().await;
            let id = rig.add_image("image/one.png").await;
            rig.feed_row(&id, "image/one.png").await;
            let url = start_breaking_proxy(&rig.application.database_url, at).await;
            let consumer = rig.spawn_consumer(&[("DATABASE_URL", &url)]);
            wait_until("the move", async || rig.count_rows("moves").await == 1).await;
            rig.wait_until_drained().await;
            stop_consumer(consumer).await;
        })
        .await;
}

/// As after a failover whose old address still leads to the server that has become a replica.
#[tokio::test]
async fn connections_that_cannot_write_are_replaced() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let ids = rig.add_images(2).await;
    let consumer = rig.spawn_consumer(&[]);
    rig.feed_row(&ids[0], "image/0.png").await;
    wait_until("the first move", async || {
        rig.count_rows("moves").await == 1
    })
    .await;
    rig.execute_sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$",
    )
    .await;
    rig.query_number(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = 'bucket-brigade consumer'",
    )
    .await;
    rig.feed_row(&ids[1], "image/1.png").await;
    wait_until("a write to be refused", async || {
        consumer.log_tail(50).contains("read-only")
    })
    .await;
    rig.execute_sql(
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$",
    )
    .await;
    wait_until("the second move", async || {
        rig.count_rows("moves").await == 2
    })
    .await;
    stop_consumer(consumer).await;
}
