//! The services of `docker-compose.yml`, as processes: what they do needs no container.

use std::path::PathBuf;

use bucket_brigade_testbed::Cluster;
use bucket_brigade_testbed::process::ChildProcess;
use tempfile::TempDir;

use crate::http_endpoint::free_address;
use crate::rig::{ExitedProcess, stop_consumer, wait_for_exit, wait_until};

/// The environment that the compose file gives to all of them, and their logs.
struct StackServices {
    address: String,
    environment: Vec<(String, String)>,
    logs: TempDir,
}

impl StackServices {
    async fn new() -> Self {
        let address = free_address();
        let endpoint = format!("http://{address}");
        let database = Cluster::shared().await.create_database().await.unwrap();
        let environment = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "stack"),
            ("AWS_SECRET_ACCESS_KEY", "local"),
            ("S3_FORCE_PATH_STYLE", "true"),
            ("DATABASE_URL", &database),
            ("IMAGES", "300"),
            ("IMAGES_TABLE", "images"),
            ("QUEUE_URL", &format!("{endpoint}/000000000000/images")),
            ("SOURCE_BUCKET_NAME", "images-old"),
            ("DESTINATION_BUCKET_NAME", "images-new"),
            ("OLD_PREFIX", "image/"),
            ("NEW_PREFIX", "avatar/"),
            // As the compose file passes what is not set.
            ("MAX_CONCURRENCY", ""),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            address,
            environment: environment.to_vec(),
            logs: TempDir::new().unwrap(),
        }
    }

    fn start_program(&self, program: &str, arguments: &[&str]) -> ChildProcess {
        let number = self.logs.path().read_dir().unwrap().count();
        let log: PathBuf = self.logs.path().join(number.to_string());
        ChildProcess::spawn(program, &self.environment, arguments, Some(&log)).unwrap()
    }

    async fn run_program(&self, program: &str, arguments: &[&str]) -> ExitedProcess {
        wait_for_exit(&mut self.start_program(program, arguments)).await
    }

    async fn start_cloud(&self) -> ChildProcess {
        let cloud = self.start_program("stack", &["cloud", "--listen", &self.address]);
        wait_until("the cloud's health", async || {
            let asked = self
                .run_program("stack", &["healthcheck", &self.address])
                .await;
            asked.code == Some(0)
        })
        .await;
        cloud
    }

    async fn seed_images(&self) -> String {
        let ended = self.run_program("stack", &["seed"]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        ended.log
    }
}

#[tokio::test]
async fn the_whole_job_as_in_the_compose_file() {
    let stack = StackServices::new().await;
    let mut cloud = stack.start_cloud().await;
    let seeded = stack.seed_images().await;
    assert!(seeded.contains("Seeding 300 images"));
    let last = seeded.lines().last().unwrap();
    assert!(last.contains("http://127.0.0.1:9101"), "{last}");
    let consumer = stack.start_program("consumer", &[]);
    let mut application = stack.start_program("stack", &["application"]);
    let feeder = stack.run_program("feeder", &[]).await;
    assert_eq!(feeder.code, Some(0), "{}", feeder.log);
    let result = wait_for_exit(&mut application).await;
    assert_eq!(result.code, Some(0), "{}", result.log);
    assert!(result.log.contains("Everything that must hold held."));
    let last = result.log.lines().last().unwrap();
    assert!(last.contains("feeder verify --full"), "{last}");
    // Started again, as docker-compose does with whatever has ended, seed leaves all as it is, and
    // an application says that it cannot know what the first one wrote.
    assert!(stack.seed_images().await.contains("there already"));
    let again = stack.run_program("stack", &["application"]).await;
    assert_eq!(again.code, Some(1));
    assert!(again.log.contains("before: begin anew"), "{}", again.log);
    // A new cloud has forgotten everything; Postgres has not.
    cloud.kill().await.unwrap();
    let _cloud = stack.start_cloud().await;
    assert!(stack.seed_images().await.contains("Seeding 300 images"));
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_foreign_table_is_not_dropped() {
    let stack = StackServices::new().await;
    let _cloud = stack.start_cloud().await;
    let url = stack
        .environment
        .iter()
        .find(|(name, _)| name == "DATABASE_URL");
    let pool = sqlx::PgPool::connect(&url.unwrap().1).await.unwrap();
    let create = "CREATE TABLE images (id bigint PRIMARY KEY, path text)";
    sqlx::query(create).execute(&pool).await.unwrap();
    let ended = stack.run_program("stack", &["seed"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.log.contains("not the testbed's"), "{}", ended.log);
}
