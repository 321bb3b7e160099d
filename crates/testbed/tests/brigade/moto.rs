//! The same job on an independent S3 and SQS: moto, a Python package. Skipped where it is missing.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use aws_sdk_sqs::types::QueueAttributeName;
use bucket_brigade_testbed::CloudOptions;
use bucket_brigade_testbed::application::Application;
use bucket_brigade_testbed::cloud::CreateQueueOptions;
use bucket_brigade_testbed::process::binary_path;
use futures::future::join;

use crate::http_endpoint::free_address;
use crate::rig::{TestRig, image_properties, location, stop_consumer, wait_until};
use crate::shared_queue::{NO_RUN, spawn_consumer_of_all};

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
    let address = free_address();
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
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

/// A rig whose buckets and queue are moto's.
struct MotoRig {
    rig: TestRig,
    application: Application,
    queue_url: String,
    moto: MotoServer,
}

impl MotoRig {
    /// None where moto is missing.
    async fn start() -> Option<Self> {
        let moto = start_moto()?;
        let rig =
            TestRig::without_table(CloudOptions::default(), CreateQueueOptions::default()).await;
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
        let dead = sqs.create_queue().queue_name("images-dead");
        let dead = dead.attributes(QueueAttributeName::MessageRetentionPeriod, "1209600");
        dead.send().await.unwrap();
        let redrive = r#"{"deadLetterTargetArn":"arn:aws:sqs:us-east-1:123456789012:images-dead","maxReceiveCount":5}"#;
        let queue = sqs.create_queue().queue_name("images");
        let queue = queue.attributes(QueueAttributeName::RedrivePolicy, redrive);
        let queue_url = queue.send().await.unwrap().queue_url.unwrap();
        Some(Self {
            rig,
            application,
            queue_url,
            moto,
        })
    }

    fn settings(&self) -> [(&str, &str); 2] {
        [
            ("AWS_ENDPOINT_URL", &self.moto.endpoint),
            ("QUEUE_URL", &self.queue_url),
        ]
    }

    async fn put_source(&self, key: &str) {
        let at = location("images-old", key);
        let bytes = key.as_bytes().to_vec();
        let properties = image_properties();
        let put = self.application.put_object(&at, bytes, &properties);
        put.await.unwrap();
    }

    async fn assert_copied(&self, key: &str) {
        let copy = location("images-new", key);
        let copy = self.application.get_tagged_object(&copy).await.unwrap();
        assert_eq!(copy.unwrap().properties, image_properties(), "{key}");
    }

    async fn exists(&self, bucket: &str, key: &str) -> bool {
        let head = self.application.s3.head_object().bucket(bucket).key(key);
        head.send().await.is_ok()
    }

    async fn head(&self, key: &str) -> HeadObjectOutput {
        let head = self
            .application
            .s3
            .head_object()
            .bucket("images-new")
            .key(key);
        head.send().await.unwrap()
    }

    /// A command for the run of the URLs; the rest is in the ledger.
    async fn run_command(&self, arguments: &[&str]) {
        let settings = [&NO_RUN[..], &[("RUN_NAME", "images.path")]].concat();
        let (code, log) = self.run_feeder(&settings, arguments).await;
        assert_eq!(code, 0, "{arguments:?}: {log}");
    }

    async fn go_back_and_clean(&self) {
        self.run_command(&["verify", "--full"]).await;
        self.run_command(&["rollback", "--all", "--yes"]).await;
        let back = "SELECT count(*) FROM images WHERE path LIKE 'https://old.example/%'";
        assert_eq!(self.rig.query_number(back).await, 9);
        let (code, log) = self.run_feeder(&URLS, &[]).await;
        assert_eq!(code, 0, "{log}");
        self.run_command(&["verify"]).await;
        self.run_command(&["clean", "--older-than", "0s", "--confirm", "images-old"])
            .await;
        for key in ["u/a 1.png", "u/thumb_a 8.png", "u/a 1.png.200x200.jpg"] {
            assert!(!self.exists("images-old", key).await, "{key}");
            assert!(
                self.exists("images-new", &format!("i/{key}")).await,
                "{key}"
            );
        }
        for key in ["u/a 9.png", "image/1.png"] {
            assert!(self.exists("images-old", key).await, "{key}");
        }
    }

    /// What the feeder answers, with settings of its own.
    async fn run_feeder(&self, settings: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
        let settings = [&self.settings(), settings].concat();
        let ended = self.rig.run_program_with("feeder", &settings, arguments);
        let ended = ended.await;
        (ended.code.unwrap(), ended.log)
    }
}

#[tokio::test]
async fn the_main_job_on_moto() {
    let Some(moto) = MotoRig::start().await else {
        return;
    };
    let rig = &moto.rig;
    rig.application.create_table(&rig.pool).await.unwrap();
    for path in ["image/1.png", "image/a b+c%20é.png", "image/2.png"] {
        moto.put_source(path).await;
        rig.add_row(path).await;
    }
    let consumer = rig.spawn_consumer(&moto.settings());
    let (code, log) = moto.run_feeder(&[], &[]).await;
    assert_eq!(code, 0, "{log}");
    let moved = "SELECT count(*) FROM images WHERE path LIKE 'avatar/%'";
    assert_eq!(rig.query_number(moved).await, 3);
    for path in ["avatar/1.png", "avatar/a b+c%20é.png", "avatar/2.png"] {
        moto.assert_copied(path).await;
    }
    let log = stop_consumer(consumer).await;
    assert!(
        log.contains("method=stream"),
        "its copies overwrite and its uploads do not, which is found out: {log}"
    );
}

/// A column of encoded URLs with thumbnails and a filter.
const URLS: [(&str, &str); 12] = [
    ("ID_COLUMN", "tenant_id,id"),
    ("OLD_PREFIX", "https://old.example/"),
    ("NEW_PREFIX", "https://new.example/i/"),
    ("SOURCE_KEY_PREFIX", ""),
    ("DESTINATION_KEY_PREFIX", "i/"),
    ("PATH_ENCODING", "url"),
    ("ROW_FILTER", "deleted_at IS NULL"),
    ("COMPANIONS", "{key}.200x200.jpg,!{dir}/thumb_{name}"),
    ("STORAGE_CLASS", "STANDARD_IA"),
    ("COPY_ACL", "public-read"),
    ("SSE", "AES256"),
    ("EXPECTED_SOURCE_OWNER", "123456789012"),
];

/// Another column of the same table, and the same queue.
const BANNERS: [(&str, &str); 2] = [("ID_COLUMN", "tenant_id,id"), ("PATH_COLUMN", "banner")];

#[tokio::test]
async fn two_runs_with_all_that_applications_have_on_moto() {
    let Some(moto) = MotoRig::start().await else {
        return;
    };
    let rig = &moto.rig;
    rig.execute_sql(
        "CREATE EXTENSION citext;
         CREATE TABLE images (tenant_id char(2), id bigint, path text, banner citext, deleted_at date,
                              PRIMARY KEY (tenant_id, id)) PARTITION BY HASH (tenant_id);
         CREATE TABLE images_0 PARTITION OF images FOR VALUES WITH (MODULUS 2, REMAINDER 0);
         CREATE TABLE images_1 PARTITION OF images FOR VALUES WITH (MODULUS 2, REMAINDER 1);
         INSERT INTO images SELECT 't' || n % 3, n, 'https://old.example/u/a%20' || n || '.png?v=2',
                'image/' || n || '.png', CASE WHEN n = 9 THEN now() END FROM generate_series(1, 9) n",
    )
    .await;
    for n in 1..=9 {
        moto.put_source(&format!("u/a {n}.png")).await;
        moto.put_source(&format!("u/thumb_a {n}.png")).await;
        moto.put_source(&format!("image/{n}.png")).await;
    }
    moto.put_source("u/a 1.png.200x200.jpg").await;
    let plan = moto.run_feeder(&URLS, &["plan"]).await;
    assert_eq!(plan.0, 0, "{}", plan.1);
    let settings = moto.settings();
    let consumer = spawn_consumer_of_all(rig, &settings);
    let (urls, banners) = join(moto.run_feeder(&URLS, &[]), moto.run_feeder(&BANNERS, &[])).await;
    assert_eq!((urls.0, banners.0), (0, 0), "{}{}", urls.1, banners.1);
    let moved = "SELECT count(*) FILTER (WHERE path LIKE 'https://new.example/i/u/a%20_.png?v=2')
                  + count(*) FILTER (WHERE banner LIKE 'avatar/_.png') * 100 FROM images";
    assert_eq!(
        rig.query_number(moved).await,
        908,
        "one row is outside the filter"
    );
    for key in [
        "i/u/a 1.png",
        "i/u/thumb_a 8.png",
        "i/u/a 1.png.200x200.jpg",
        "avatar/9.png",
    ] {
        moto.assert_copied(key).await;
    }
    assert!(!moto.exists("images-new", "i/u/a 9.png").await);
    let head = moto.head("i/u/thumb_a 1.png").await;
    assert_eq!(
        head.storage_class().map(StorageClass::as_str),
        Some("STANDARD_IA")
    );
    assert_eq!(
        head.server_side_encryption()
            .map(ServerSideEncryption::as_str),
        Some("AES256")
    );
    moto.go_back_and_clean().await;
    stop_consumer(consumer).await;
}
