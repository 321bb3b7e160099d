//! Where database and services are, and which images there are.

use aws_sdk_sqs::operation::get_queue_url::GetQueueUrlError;
use clap::Args;

use crate::application::Application;
use crate::cloud::CloudEndpoint;
use crate::seed::SeedOptions;

/// The queue between feeder and consumers.
pub(super) const QUEUE_NAME: &str = "images";

/// What services other than the cloud need to know, from the environment as feeder and consumer do.
#[derive(Debug, Args)]
pub(super) struct StackEnvironmentArguments {
    /// Postgres: a database of the stack's own, made anew whenever the cloud is
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
    /// S3 and SQS
    #[arg(long, env = "AWS_ENDPOINT_URL")]
    aws_endpoint_url: String,
    /// Images in scope of the migration
    #[arg(long, env = "IMAGES", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(10..))]
    images: u32,
    /// Seed of the random numbers for images and traffic
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,
}

pub(super) struct StackEnvironment {
    pub(super) application: Application,
    pub(super) services: CloudEndpoint,
    pub(super) seed: SeedOptions,
}

impl StackEnvironmentArguments {
    pub(super) fn into_environment(self) -> StackEnvironment {
        let services = CloudEndpoint::new(self.aws_endpoint_url);
        let seed = SeedOptions {
            // Every row can move, so that the feeder ends with 0.
            missing: 0,
            seed: self.seed,
            ..SeedOptions::new(self.images as usize)
        };
        StackEnvironment {
            application: Application::with_endpoint(&services, self.database_url),
            services,
            seed,
        }
    }
}

impl StackEnvironment {
    /// The URL of a queue; none when there is no such queue.
    pub(super) async fn queue_url(&self, name: &str) -> anyhow::Result<Option<String>> {
        let sqs = self.services.sqs_client_for("test");
        match sqs.get_queue_url().queue_name(name).send().await {
            Ok(found) => Ok(found.queue_url),
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(GetQueueUrlError::is_queue_does_not_exist) =>
            {
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}
