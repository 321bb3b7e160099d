//! The surroundings of feeder and consumers as services of their own, for containers: local S3 and
//! SQS, the images, and the application that uses them and checks everything at the end.

mod application;
mod cloud;
mod environment;
mod healthcheck;
mod seed;
mod table_mark;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::run::print_status;

/// Surrounds feeder and consumers with what they need, each as a service of its own.
#[derive(Debug, Parser)]
#[command(name = "stack")]
struct StackArguments {
    #[command(subcommand)]
    service: StackCommand,
}

#[derive(Debug, Subcommand)]
enum StackCommand {
    /// Answer as S3 and SQS, until killed
    Cloud(cloud::CloudArguments),
    /// Make queue, buckets, table and images anew, unless this cloud has them
    Seed(environment::StackEnvironmentArguments),
    /// Read, replace and delete images until everything has moved; then check every row and object
    Application(environment::StackEnvironmentArguments),
    /// Succeed when something listens on an address
    Healthcheck(healthcheck::ListenerCheckArguments),
}

/// Runs one of the services; fails also when what must hold does not.
pub async fn main() -> ExitCode {
    match run(StackArguments::parse().service).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            print_status(&format!("stack: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(service: StackCommand) -> Result<bool> {
    match service {
        StackCommand::Cloud(arguments) => cloud::serve_cloud(arguments).await,
        StackCommand::Seed(arguments) => seed::seed_stack(&arguments.into_environment()).await,
        StackCommand::Application(arguments) => {
            application::run_application(&arguments.into_environment()).await
        }
        StackCommand::Healthcheck(arguments) => healthcheck::check_listener(&arguments),
    }
}
