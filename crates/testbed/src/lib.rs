//! A private Postgres, local S3 and SQS, seeded images, application traffic and a checker of what
//! must hold, for Bucket Brigade's tests and its demo.

pub mod application;
pub mod chaos;
pub mod checker;
pub mod cloud;
pub mod compat;
pub mod demo;
pub mod picture;
pub use bucket_brigade_private_postgres as postgres;
pub mod process;
pub mod proxy;
mod run;
pub mod seed;
pub mod stack;
pub mod terminal;
pub mod traffic;
pub mod trials;

pub use cloud::{Cloud, CloudOptions, Fault, FaultEffect, FaultHandle};
pub use postgres::Cluster;
