//! What the feeder and the consumer both speak: settings, the path rule, the message, the ledger,
//! the queue and the object store.

pub mod aws;
pub mod backoff;
pub mod dead_letter;
pub mod exit;
pub mod feed_source;
pub mod fleet_control;
pub mod healthcheck;
pub mod heartbeat;
pub mod http_endpoints;
pub mod ledger;
pub mod logging;
pub mod message;
pub mod move_ledger;
pub mod object_store;
pub mod objects;
pub mod path_rule;
pub mod preflight;
pub mod queue;
pub mod row_id;
pub mod s3;
pub mod sample;
pub mod settings;
pub mod sql;
pub mod sqs;
pub mod startup;
pub mod throttle;
pub mod trace;
pub mod worker_state;
