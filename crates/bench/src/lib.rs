//! How fast Bucket Brigade is, measured side by side with what it is made of and with the tools that
//! only copy: same objects, same server, same run.

pub mod bare_loop;
pub mod command;
pub mod images;
pub mod machine;
pub mod process;
pub mod results;
pub mod rig;
pub mod rows;
pub mod stats;
pub mod stub;

pub use command::main;
