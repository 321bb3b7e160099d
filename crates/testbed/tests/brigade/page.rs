//! The live page over HTTP: what it shows, what it lets a browser do, and who may steer.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::observation::{free_address, get};
use crate::rig::{Rig, end, eventually, stop};

const TOKEN: &str = "a-token-of-some-length";

/// The whole answer to an order.
async fn order(address: &str, path: &str, token: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn is_paused(rig: &Rig) -> bool {
    rig.number("SELECT count(*) FROM bucket_brigade.run WHERE paused")
        .await
        == 1
}

#[tokio::test]
async fn shows_the_run_and_is_steered_by_whoever_knows_the_token() {
    let rig = Rig::new().await;
    rig.images(12).await;
    let address = free_address();
    let settings = [("STATUS_ADDR", address.as_str()), ("STATUS_TOKEN", TOKEN)];
    let mut feeder = rig.spawn("feeder", &settings, &["--watch"]);
    let consumer = rig.consumer(&[]);
    eventually("the page", async || {
        get(&address, "/").await.contains("200 OK")
    })
    .await;
    let page = get(&address, "/").await.to_lowercase();
    assert!(page.contains("content-security-policy: default-src 'none'; script-src 'self'"));
    // Everything it names is served by itself.
    for asset in [
        "/page.js",
        "/page.css",
        "/charts.js",
        "/uplot.js",
        "/uplot.css",
    ] {
        assert!(page.contains(&asset[1..]), "{asset}");
        assert!(get(&address, asset).await.contains("200 OK"), "{asset}");
    }
    eventually("the moves", async || {
        get(&address, "/status.json").await.contains("\"moved\":12")
    })
    .await;
    assert!(
        order(&address, "/pause", "not-the-token-at-all", "{}")
            .await
            .contains("401")
    );
    assert!(get(&address, "/pause").await.contains("40"));
    assert!(!is_paused(&rig).await);
    assert!(
        order(&address, "/pause", TOKEN, "{}")
            .await
            .contains("200 OK")
    );
    assert!(is_paused(&rig).await);
    assert!(
        order(&address, "/limit", TOKEN, "{\"rate\":-1}")
            .await
            .contains("400")
    );
    assert!(
        order(&address, "/limit", TOKEN, "{\"rate\":5}")
            .await
            .contains("200 OK")
    );
    assert!(
        order(&address, "/resume", TOKEN, "")
            .await
            .contains("200 OK")
    );
    assert!(!is_paused(&rig).await);
    let limited = "SELECT count(*) FROM bucket_brigade.run WHERE rate_limit = 5";
    assert_eq!(rig.number(limited).await, 1);
    stop(consumer).await;
    feeder.terminate().await.unwrap();
    let ended = end(&mut feeder).await;
    assert_eq!(ended.code, Some(3), "{}", ended.log);
    assert!(!ended.log.contains(TOKEN), "{}", ended.log);
}

#[tokio::test]
async fn without_a_token_it_only_shows() {
    let rig = Rig::new().await;
    let address = free_address();
    let mut feeder = rig.spawn("feeder", &[("STATUS_ADDR", address.as_str())], &["--watch"]);
    eventually("the page", async || {
        get(&address, "/status.json").await.contains("200 OK")
    })
    .await;
    assert!(order(&address, "/pause", TOKEN, "{}").await.contains("404"));
    feeder.terminate().await.unwrap();
    end(&mut feeder).await;
}
