//! Feeder and consumer, as real processes, against a real Postgres and the real S3 and SQS protocols.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod acknowledge;
mod bad_settings;
mod bad_tables;
mod blink;
mod browser;
mod commit;
mod copy;
mod decide;
mod feeder;
mod hostile;
mod installed;
mod messages;
mod multipart;
mod observability;
mod observation;
mod operate;
mod outage;
mod page;
mod page_in_browser;
mod plan;
mod policies;
mod prometheus;
mod proof;
mod rig;
mod second_pair;
mod secrets;
mod shutdown;
mod stack;
mod status_cost;
mod tls;
mod transcript;
mod twin;
mod upgrade;
mod whole;
