//! What the feeder and the consumer both speak: settings, the path rule, the message, the ledger,
//! the queue and the object store.

pub mod aws;
pub mod backoff;
pub mod catalog;
pub mod control;
pub mod dead_letter;
pub mod exit;
pub mod healthcheck;
pub mod histogram;
pub mod ledger;
pub mod message;
pub mod object_store;
pub mod objects;
pub mod observe;
pub mod path_rule;
pub mod preflight;
pub mod queue;
pub mod rate;
pub mod row_id;
pub mod s3;
pub mod scope;
pub mod settings;
pub mod sql;
pub mod sqs;
pub mod startup;
pub mod telemetry;
pub mod throttle;
pub mod trace;
