//! The life of a migration on a real store that is not S3: Ceph with RADOS Gateway at `CEPH_ENDPOINT`, key `test`,
//! secret `testtest`. Without it there is nothing to do.

use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::Object;

use crate::rig::{TestRig, wait_for_exit};
use crate::stores::migrate;

fn client(endpoint: &str) -> aws_sdk_s3::Client {
    let credentials = Credentials::new("test", "testtest", None, None, "ceph");
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .credentials_provider(SharedCredentialsProvider::new(credentials));
    aws_sdk_s3::Client::from_conf(config.build())
}

async fn put(s3: &aws_sdk_s3::Client, bucket: &str, key: &str, bytes: Vec<u8>) {
    let put = s3.put_object().bucket(bucket).key(key);
    let put = put.content_type("image/png").cache_control("max-age=60");
    let put = put.metadata("owner", "7").tagging("kind=avatar");
    put.body(ByteStream::from(bytes)).send().await.unwrap();
}

#[tokio::test]
async fn images_move_and_the_commands_hold() {
    let Ok(endpoint) = std::env::var("CEPH_ENDPOINT") else {
        eprintln!("skipped: CEPH_ENDPOINT names no Ceph");
        return;
    };
    let rig = TestRig::new().await;
    let s3 = client(&endpoint);
    let suffix = fastrand::u32(..);
    let (old, new) = (format!("old-{suffix}"), format!("new-{suffix}"));
    for bucket in [&old, &new] {
        s3.create_bucket().bucket(bucket).send().await.unwrap();
    }
    let mut ids = Vec::new();
    for (number, size) in [10, 0, 600_000, 3 << 20, 10].into_iter().enumerate() {
        let key = format!("image/{number} +é.png");
        put(&s3, &old, &key, vec![7; size]).await;
        ids.push(rig.add_row(&key).await);
    }
    let files = tempfile::TempDir::new().unwrap();
    let credentials = files.path().join("credentials");
    let profile = "[ceph]\naws_access_key_id = test\naws_secret_access_key = testtest\n";
    std::fs::write(&credentials, profile).unwrap();
    let settings = [
        ("AWS_ENDPOINT_URL_S3", endpoint.as_str()),
        ("S3_PROFILE", "ceph"),
        ("AWS_SHARED_CREDENTIALS_FILE", credentials.to_str().unwrap()),
        ("SOURCE_BUCKET_NAME", &old),
        ("DESTINATION_BUCKET_NAME", &new),
    ];
    let command = async |arguments: &[&str]| {
        let ended = wait_for_exit(&mut rig.spawn("feeder", &settings, arguments)).await;
        (ended.code, ended.log)
    };
    let (code, plan) = command(&["plan"]).await;
    assert_eq!(code, Some(0), "{plan}");
    assert!(plan.contains("bytes go through the consumers"), "{plan}");
    let log = migrate(&rig, &settings).await;
    assert!(log.contains("stream"), "{log}");
    assert_eq!(rig.count_rows("moves").await, 5);
    let head = s3.head_object().bucket(&new).key("avatar/3 +é.png");
    let head = head.send().await.unwrap();
    assert_eq!(head.content_length(), Some(3 << 20));
    assert_eq!(head.cache_control(), Some("max-age=60"));
    let tags = s3.get_object_tagging().bucket(&new).key("avatar/0 +é.png");
    assert_eq!(tags.send().await.unwrap().tag_set().len(), 1);
    let (code, verified) = command(&["verify", "--full"]).await;
    assert_eq!(code, Some(0), "{verified}");
    put(&s3, &old, "image/4 +é.png", b"newer".to_vec()).await;
    let (code, recopied) = command(&["verify", "--recopy"]).await;
    assert_eq!(code, Some(0), "{recopied}");
    let (code, undone) = command(&["rollback", "--ids", &ids[0], "--yes"]).await;
    assert_eq!(code, Some(0), "{undone}");
    // Uploaded anew since.
    put(&s3, &old, "image/1 +é.png", b"newer".to_vec()).await;
    let clean = ["clean", "--older-than", "0s", "--confirm", &old];
    let (code, cleaned) = command(&clean).await;
    assert_eq!(code, Some(2), "{cleaned}");
    assert!(!cleaned.contains("removes whatever stands"), "{cleaned}");
    let left = s3.list_objects_v2().bucket(&old).send().await.unwrap();
    let left: Vec<_> = left.contents().iter().filter_map(Object::key).collect();
    assert_eq!(left, ["image/0 +é.png", "image/1 +é.png"]);
}
