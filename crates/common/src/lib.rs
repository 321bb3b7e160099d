//! What the feeder and the consumer both speak: settings, the path rule, the message, the ledger,
//! the queue and the object store.

pub mod aws;
pub mod batch;
pub mod companions;
mod connections;
pub mod database;
pub mod empty_scope;
pub mod exit;
pub mod health;
pub mod healthcheck;
pub mod heartbeat;
pub mod http_endpoints;
pub mod http_server;
mod id_time;
pub mod ledger;
pub mod logging;
pub mod manual;
pub mod message;
pub mod notify;
pub mod object_store;
pub mod panics;
pub mod path_encoding;
pub mod path_rule;
pub mod permissions;
pub mod preflight;
pub mod printable;
pub mod queue;
pub mod retry;
pub mod row_id;
pub mod sample;
pub mod settings;
pub mod sql;
pub mod startup;
pub mod throttle;
pub mod trace;
