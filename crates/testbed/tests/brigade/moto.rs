//! The same job on an independent S3 and SQS: moto, a Python package. Skipped where it is missing.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use bucket_brigade_testbed::process::binary_path;

use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

/// The server; ended with the test, also when it fails.
struct MotoServer {
    child: Child,
    endpoint: String,
}

impl Drop for MotoServer {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The Python that `script/setup-tools` furnished, beside what cargo built; else the machine's.
fn python() -> PathBuf {
    let built = binary_path("feeder").unwrap();
    let own = built.ancestors().nth(2).unwrap().join("tools/bin/python");
    if own.exists() { own } else { "python3".into() }
}

#[expect(clippy::print_stdout, reason = "a word on what is skipped")]
fn start_moto() -> Option<MotoServer> {
    let python = python();
    let is_there = Command::new(&python)
        .args(["-c", "import moto.server"])
        .stderr(Stdio::null())
        .status();
    if !is_there.is_ok_and(|status| status.success()) {
        println!("skipped: moto is not installed (script/setup-tools)");
        return None;
    }
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let child = Command::new(&python)
        .args([
            "-m",
            "moto.server",
            "-H",
            "127.0.0.1",
            "-p",
            &port.to_string(),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    Some(MotoServer {
        child,
        endpoint: format!("http://127.0.0.1:{port}"),
    })
}

#[tokio::test]
async fn the_main_job_on_moto() {
    let Some(moto) = start_moto() else {
        return;
    };
    let rig = TestRig::new().await;
    let credentials = Credentials::new("test", "test", None, None, "test");
    let s3 = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&moto.endpoint)
            .force_path_style(true)
            .credentials_provider(credentials.clone())
            .build(),
    );
    let sqs = aws_sdk_sqs::Client::from_conf(
        aws_sdk_sqs::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(&moto.endpoint)
            .credentials_provider(credentials)
            .build(),
    );
    wait_until("moto", async || sqs.list_queues().send().await.is_ok()).await;
    let application = rig.application.with_s3(s3);
    application.create_buckets().await.unwrap();
    let queue = sqs
        .create_queue()
        .queue_name("images")
        .send()
        .await
        .unwrap();
    for path in ["image/1.png", "image/a b+c%20é.png", "image/2.png"] {
        let at = crate::rig::location("images-old", path);
        application
            .put_object(
                &at,
                path.as_bytes().to_vec(),
                &crate::rig::image_properties(),
            )
            .await
            .unwrap();
        rig.add_row(path).await;
    }
    let settings = [
        ("AWS_ENDPOINT_URL", moto.endpoint.as_str()),
        ("QUEUE_URL", queue.queue_url().unwrap()),
    ];
    let consumer = rig.spawn_consumer(&settings);
    let ended = wait_for_exit(&mut rig.spawn("feeder", &settings, &[])).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert_eq!(
        rig.query_number("SELECT count(*) FROM images WHERE path LIKE 'avatar/%'")
            .await,
        3
    );
    for path in ["avatar/1.png", "avatar/a b+c%20é.png", "avatar/2.png"] {
        let object = application
            .get_tagged_object(&crate::rig::location("images-new", path))
            .await
            .unwrap();
        assert_eq!(
            object.unwrap().properties,
            crate::rig::image_properties(),
            "{path}"
        );
    }
    let log = stop_consumer(consumer).await;
    assert!(
        log.contains("method=stream"),
        "its copies overwrite and its uploads do not, which is found out: {log}"
    );
}
