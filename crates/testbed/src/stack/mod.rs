//! The surroundings of feeder and consumers as services of their own, for containers: local S3 and
//! SQS, the images, and the application that uses them and checks everything at the end.

mod application;
mod cloud;
mod healthcheck;
mod mark;
mod seed;
mod surroundings;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::run::tell;

/// Surrounds feeder and consumers with what they need, each as a service of its own.
#[derive(Debug, Parser)]
#[command(name = "stack")]
struct Arguments {
    #[command(subcommand)]
    service: Service,
}

#[derive(Debug, Subcommand)]
enum Service {
    /// Answer as S3 and SQS, until killed
    Cloud(cloud::Arguments),
    /// Make queue, buckets, table and images anew, unless this cloud has them
    Seed(surroundings::Arguments),
    /// Read, replace and delete images until everything has moved; then check every row and object
    Application(surroundings::Arguments),
    /// Succeed when something listens on an address
    Healthcheck(healthcheck::Arguments),
}

/// Runs one of the services; fails also when what must hold does not.
pub async fn main() -> ExitCode {
    match run(Arguments::parse().service).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tell(&format!("stack: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(service: Service) -> Result<bool> {
    match service {
        Service::Cloud(arguments) => cloud::serve(arguments).await,
        Service::Seed(arguments) => seed::make(&arguments.surroundings()).await,
        Service::Application(arguments) => application::live(&arguments.surroundings()).await,
        Service::Healthcheck(arguments) => healthcheck::ask(&arguments),
    }
}
