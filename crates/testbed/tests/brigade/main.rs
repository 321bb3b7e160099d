//! Feeder and consumer, as real processes, against a real Postgres and the real S3 and SQS protocols.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod acknowledge;
mod bad_settings;
mod bad_tables;
mod blink;
mod commit;
mod copy;
mod counters;
mod decide;
mod feeder;
mod hostile;
mod life;
mod messages;
mod multipart;
mod observability;
mod observation;
mod operate;
mod outage;
mod page;
mod plan;
mod policies;
mod proof;
mod rig;
mod second_pair;
mod secrets;
mod shutdown;
mod stack;
mod status_cost;
mod tls;
mod trace;
mod transcript;
mod twin;
mod upgrade;
mod whole;
