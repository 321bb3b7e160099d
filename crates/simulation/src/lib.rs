//! Proof of what Bucket Brigade promises, without a machine: an exhaustive [`model`] of the protocol, and
//! [`simulate`](simulate::simulate), a seeded simulation of whole feeders and consumers; both over one
//! [`world`] in memory.

pub mod application;
pub mod client;
pub mod command;
pub mod fault_rates;
pub mod invariants;
pub mod model;
pub mod sabotage;
pub mod shared_world;
pub mod simulate;
pub mod world;
